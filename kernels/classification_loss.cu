// The losses of one class label per item or position: Hinge, MultinomialLogistic, Infogain.
//
//   Hinge         E = 1 / num sum over items and classes of m or m^2, m = max(0, 1 - s x), s = 1 at the label, else -1
//                 dx = -s dE / num where m > 0  (L1),   -2 s m dE / num  (L2)
//   Multinomial   E = -1 / num sum over items of log(max(p[label], 1e-20))
//                 dp[label] = -dE / num / max(p[label], 1e-20), 0 for the other classes
//   Infogain      E = -sum over positions and classes c of H[label, c] log(max(p[c], 1e-20)) / normalizer
//                 p = softmax(x)
//                 dx[c] = (p[c] (sum over k of H[label, k]) - H[label, c]) dE / normalizer
//
// Memory: scores and probabilities are (outer, channels, inner), row-major; Hinge and Multinomial have no inner part.
// Labels come as classes from loss.cu's label_classes, below 0 where they are ignored or no class: these contribute
// nothing, neither to the loss nor to the gradient, and are no index.
// Threads: a block per item, whose threads share the classes; for Infogain with an inner part a block per chunk of an
// item's positions, whose threads share these; going back, a block per plane of one class.
// The partial sums of the blocks meet in loss.cu, always in the same order.  NaN in a score makes the loss NaN (the
// original's max hides it in Hinge).

#define LEAST_PROBABILITY 1e-20f

// 1 - s x where that is positive, else 0.
DEVICE float hinge_margin(float x, bool is_label) {
  const float margin = 1.0f + (is_label ? -x : x);
  return margin <= 0 ? 0.0f : margin;
}

// Sums the margins of one item, or their squares.  Overwrites partial.
extern "C" __global__ void hinge_loss_forward(int rows, int channels, int squares,
                                              const float* __restrict__ score SIZE(rows * channels),
                                              const int* __restrict__ classes SIZE(rows), float* partial SIZE(rows)) {
  ROW_LOOP(r, rows) {
    const float* x = score + (long long)r * channels;
    const int label = classes[r];
    float sum = 0;
    LANE_LOOP_SUM(c, channels, sum) {
      const float margin = hinge_margin(x[c], c == label);
      sum += squares ? margin * margin : margin;
    }
    sum = block_sum(sum);
    if (FIRST_LANE) partial[r] = label < 0 ? 0.0f : sum;
  }
}

// Computes the gradient of one item; scale is 1 / num.  Overwrites bottom_diff.
extern "C" __global__ void hinge_loss_backward(int rows, int channels, int squares, float scale,
                                               const float* __restrict__ score SIZE(rows * channels),
                                               const int* __restrict__ classes SIZE(rows),
                                               const float* __restrict__ top_diff SIZE(1),
                                               float* __restrict__ bottom_diff SIZE(rows * channels)) {
  ROW_LOOP(r, rows) {
    const long long first = (long long)r * channels;
    const int label = classes[r];
    const float factor = label < 0 ? 0.0f : scale * top_diff[0] * (squares ? 2.0f : 1.0f);
    LANE_LOOP(c, channels) {
      const float margin = hinge_margin(score[first + c], c == label);
      const float slope = squares ? margin : margin > 0 ? 1.0f : margin;  // NaN stays
      bottom_diff[first + c] = (c == label ? -factor : factor) * slope;
    }
  }
}

// Sums the losses of one chunk of items.  Overwrites partial.
extern "C" __global__ void multinomial_loss_forward(int rows, int num, int channels, int chunk,
                                                    const float* __restrict__ prob SIZE(num * channels),
                                                    const int* __restrict__ classes SIZE(num),
                                                    float* partial SIZE(rows)) {
  ROW_LOOP(r, rows) {
    const int begin = r * chunk, left = num - begin;
    float sum = 0;
    LANE_LOOP_SUM(i, left < chunk ? left : chunk, sum) {
      const int item = begin + i, label = classes[item];
      const float p = prob[(long long)item * channels + (label < 0 ? 0 : label)];
      sum -= label < 0 ? 0.0f : vlog(p < LEAST_PROBABILITY ? LEAST_PROBABILITY : p);
    }
    sum = block_sum(sum);
    if (FIRST_LANE) partial[r] = sum;
  }
}

// Computes the gradient of one item; scale is -1 / num.  Overwrites bottom_diff.
extern "C" __global__ void multinomial_loss_backward(int rows, int channels, float scale,
                                                     const float* __restrict__ prob SIZE(rows * channels),
                                                     const int* __restrict__ classes SIZE(rows),
                                                     const float* __restrict__ top_diff SIZE(1),
                                                     float* __restrict__ bottom_diff SIZE(rows * channels)) {
  ROW_LOOP(r, rows) {
    const long long first = (long long)r * channels;
    const int label = classes[r];
    const float p = prob[first + (label < 0 ? 0 : label)];
    const float diff = scale * top_diff[0] / (p < LEAST_PROBABILITY ? LEAST_PROBABILITY : p);
    LANE_LOOP(c, channels) bottom_diff[first + c] = c == label ? diff : 0.0f;
  }
}

// Sums one row of the matrix H.  Overwrites sums.
extern "C" __global__ void infogain_loss_sums(int rows, const float* __restrict__ gain SIZE(rows * rows),
                                              float* __restrict__ sums SIZE(rows)) {
  ROW_LOOP(r, rows) {
    float sum = 0;
    LANE_LOOP_SUM(c, rows, sum) sum += gain[(long long)r * rows + c];
    sum = block_sum(sum);
    if (FIRST_LANE) sums[r] = sum;
  }
}

// Sums the losses of one item with one label (inner == 1).  Overwrites partial.
extern "C" __global__ void infogain_loss_forward(int rows, int channels,
                                                 const float* __restrict__ prob SIZE(rows * channels),
                                                 const int* __restrict__ classes SIZE(rows),
                                                 const float* __restrict__ gain SIZE(channels * channels),
                                                 float* partial SIZE(rows)) {
  ROW_LOOP(r, rows) {
    const int label = classes[r];
    const float* p = prob + (long long)r * channels;
    const float* gains = gain + (long long)(label < 0 ? 0 : label) * channels;
    float sum = 0;
    LANE_LOOP_SUM(c, channels, sum)
      sum -= gains[c] * vlog(p[c] < LEAST_PROBABILITY ? LEAST_PROBABILITY : p[c]);
    sum = block_sum(sum);
    if (FIRST_LANE) partial[r] = label < 0 ? 0.0f : sum;
  }
}

struct InfogainShape {
  int outer, channels, inner, chunk;
};

// Sums the losses of one chunk of an item's positions.  Overwrites partial.
extern "C" __global__ void infogain_loss_forward_spatial(
    int rows, InfogainShape shape, const float* __restrict__ prob SIZE(shape.outer * shape.channels * shape.inner),
    const int* __restrict__ classes SIZE(shape.outer * shape.inner),
    const float* __restrict__ gain SIZE(shape.channels * shape.channels), float* partial SIZE(rows)) {
  const int chunks = (shape.inner + shape.chunk - 1) / shape.chunk;
  ROW_LOOP(r, rows) {
    const int item = r / chunks, begin = r % chunks * shape.chunk, left = shape.inner - begin;
    const int width = left < shape.chunk ? left : shape.chunk;
    const int* labels = classes + (long long)item * shape.inner + begin;
    float sum = 0;
    for (int c = 0; c < shape.channels; ++c) {
      const float* plane = prob + ((long long)item * shape.channels + c) * shape.inner + begin;
      LANE_LOOP_SUM(i, width, sum) {
        const float p = plane[i], h = gain[(labels[i] < 0 ? 0 : labels[i]) * shape.channels + c];
        const float loss = h * vlog(p < LEAST_PROBABILITY ? LEAST_PROBABILITY : p);
        sum -= labels[i] < 0 ? 0.0f : loss;
      }
    }
    sum = block_sum(sum);
    if (FIRST_LANE) partial[r] = sum;
  }
}

// Computes the gradient of one item with one label (inner == 1).  Overwrites bottom_diff.
extern "C" __global__ void infogain_loss_backward(
    int rows, int channels, const float* __restrict__ prob SIZE(rows * channels),
    const int* __restrict__ classes SIZE(rows), const float* __restrict__ gain SIZE(channels * channels),
    const float* __restrict__ sums SIZE(channels), const float* __restrict__ normalizer SIZE(1),
    const float* __restrict__ top_diff SIZE(1), float* __restrict__ bottom_diff SIZE(rows * channels)) {
  const float factor = top_diff[0] / normalizer[0];
  ROW_LOOP(r, rows) {
    const int label = classes[r], known = label < 0 ? 0 : label;
    const long long first = (long long)r * channels;
    const float* gains = gain + (long long)known * channels;
    const float sum = sums[known];
    LANE_LOOP(c, channels) {
      const float diff = (prob[first + c] * sum - gains[c]) * factor;
      bottom_diff[first + c] = label < 0 ? 0.0f : diff;
    }
  }
}

// Computes the gradient of one item's plane of one class.  rows = outer * channels.  Overwrites bottom_diff.
extern "C" __global__ void infogain_loss_backward_spatial(
    int rows, int channels, int inner, const float* __restrict__ prob SIZE(rows * inner),
    const int* __restrict__ classes SIZE(rows / channels * inner),
    const float* __restrict__ gain SIZE(channels * channels), const float* __restrict__ sums SIZE(channels),
    const float* __restrict__ normalizer SIZE(1), const float* __restrict__ top_diff SIZE(1),
    float* __restrict__ bottom_diff SIZE(rows * inner)) {
  const float factor = top_diff[0] / normalizer[0];
  ROW_LOOP(r, rows) {
    const int item = r / channels, c = r % channels;
    const int* labels = classes + (long long)item * inner;
    const long long first = (long long)r * inner;
    LANE_LOOP(s, inner) {
      const int label = labels[s], known = label < 0 ? 0 : label;
      const float diff = (prob[first + s] * sums[known] - gain[known * channels + c]) * factor;
      bottom_diff[first + s] = label < 0 ? 0.0f : diff;
    }
  }
}
