// The losses of a distance between two blobs of the same shape.
//
//   Euclidean     E = 1 / (2 num) sum (a - b)^2                            da = (a - b) dE / num,  db = -da
//   Contrastive   E = 1 / (2 num) sum over pairs of                        da = (a - b) factor,    db = -da
//                   d^2                   similar pairs                    factor = dE / num
//                   max(margin - d, 0)^2  dissimilar ones                  factor = -dE / num (margin - d) / (d + 1e-4)
//                   max(margin - d^2, 0)  dissimilar, legacy               factor = -dE / num
//                 d^2 = sum over channels of (a - b)^2                     dissimilar pairs beyond the margin: 0
//
// Memory: Euclidean sees n elements, whatever their shape; Contrastive num x channels, row-major, one label a pair.
// Threads: a block per chunk of elements, or per pair; its threads share the elements.  Going back, a thread per
// element of the Euclidean loss.  The blocks' partial sums meet in loss.cu's loss_forward_scale, in one order.
// A pair is dissimilar if its label is 0 with the fraction cut off; every other label, NaN too, means similar.
// NaN in a or b makes the loss NaN.  Unlike the original's GPU code, but like its CPU code, the legacy gradient of a
// dissimilar pair has the factor a - b.

// Sums the squares of one chunk.  Overwrites partial.
extern "C" __global__ void euclidean_loss_forward(int rows, int n, int chunk, const float* __restrict__ a SIZE(n),
                                                  const float* __restrict__ b SIZE(n), float* partial SIZE(rows)) {
  ROW_LOOP(r, rows) {
    const int begin = r * chunk, left = n - begin;
    float sum = 0;
    LANE_LOOP_SUM(i, left < chunk ? left : chunk, sum) {
      const float difference = a[begin + i] - b[begin + i];
      sum += difference * difference;
    }
    sum = block_sum(sum);
    if (FIRST_LANE) partial[r] = sum;
  }
}

// Computes one element of a bottom's diff; scale is 1 / num for a, -1 / num for b.  Overwrites bottom_diff.
extern "C" __global__ void euclidean_loss_backward(int n, float scale, const float* __restrict__ a SIZE(n),
                                                   const float* __restrict__ b SIZE(n),
                                                   const float* __restrict__ top_diff SIZE(1),
                                                   float* __restrict__ bottom_diff SIZE(n)) {
  const float factor = scale * top_diff[0];
  ELEMENT_LOOP(i, n) bottom_diff[i] = factor * (a[i] - b[i]);
}

// Computes the squared distance of one pair, and its loss.  Overwrites squared and partial.
extern "C" __global__ void contrastive_loss_forward(int rows, int channels, float margin, int legacy,
                                                    const float* __restrict__ a SIZE(rows * channels),
                                                    const float* __restrict__ b SIZE(rows * channels),
                                                    const float* __restrict__ label SIZE(rows),
                                                    float* squared SIZE(rows), float* partial SIZE(rows)) {
  ROW_LOOP(r, rows) {
    const long long first = (long long)r * channels;
    float sum = 0;
    LANE_LOOP_SUM(c, channels, sum) {
      const float difference = a[first + c] - b[first + c];
      sum += difference * difference;
    }
    sum = block_sum(sum);
    if (FIRST_LANE) {
      const bool similar = truncf(label[r]) != 0;
      const float beyond = margin - (legacy ? sum : sqrtf(sum)), lacking = beyond <= 0 ? 0.0f : beyond;
      squared[r] = sum;
      partial[r] = similar ? sum : legacy ? lacking : lacking * lacking;
    }
  }
}

// Computes one pair's part of a bottom's diff; scale as above.  Overwrites bottom_diff.
extern "C" __global__ void contrastive_loss_backward(
    int rows, int channels, float margin, int legacy, float scale, const float* __restrict__ a SIZE(rows * channels),
    const float* __restrict__ b SIZE(rows * channels), const float* __restrict__ label SIZE(rows),
    const float* __restrict__ squared SIZE(rows), const float* __restrict__ top_diff SIZE(1),
    float* __restrict__ bottom_diff SIZE(rows * channels)) {
  const float alpha = scale * top_diff[0];
  ROW_LOOP(r, rows) {
    const long long first = (long long)r * channels;
    const float distance = sqrtf(squared[r]), beyond = margin - (legacy ? squared[r] : distance);
    const float apart = beyond <= 0 ? 0.0f : legacy ? -alpha : -alpha * beyond / (distance + 1e-4f);
    const float factor = truncf(label[r]) != 0 ? alpha : apart;
    LANE_LOOP(c, channels) bottom_diff[first + c] = factor * (a[first + c] - b[first + c]);
  }
}
