// Softmax along one axis of a blob seen as (outer, channels, inner), row-major.
//
//   y[c] = exp(x[c] - max x) / sum over k of exp(x[k] - max x)
//   dx[c] = y[c] * (dy[c] - sum over k of dy[k] * y[k])
//
// Two mappings, each reads and writes neighbours with neighbouring threads (and vectors, on the host):
//   inner == 1   a block per row of `channels` contiguous elements, a thread per class
//   *_spatial    a block per `tile` positions of one outer item, a thread per position, a loop over the classes;
//                what belongs to a position (maximum, sum, dot product) waits in a scratch buffer between the loops,
//                where only the thread that wrote it reads it
// NaN or +inf among the scores makes every probability of that position NaN, as in the original.
// In place (top is bottom, top_diff is bottom_diff) is allowed: a thread reads an element before it overwrites it,
// and the elements of others only through block_sum and block_max.

// Computes one row's probabilities.  Overwrites top.
extern "C" __global__ void softmax_forward(int rows, int channels, const float* bottom SIZE(rows * channels),
                                           float* top SIZE(rows * channels)) {
  ROW_LOOP(r, rows) {
    const float* x = bottom + (long long)r * channels;
    float* y = top + (long long)r * channels;
    float largest = -INFINITY;
    LANE_LOOP_MAX(c, channels, largest) largest = x[c] > largest ? x[c] : largest;
    largest = block_max(largest);
    float sum = 0;
    LANE_LOOP_SUM(c, channels, sum) {
      const float e = vexp_not_positive(x[c] - largest);
      y[c] = e;
      sum += e;
    }
    sum = block_sum(sum);
    LANE_LOOP(c, channels) y[c] /= sum;
  }
}

// Computes one row's gradient from the probabilities.  Overwrites bottom_diff.
extern "C" __global__ void softmax_backward(int rows, int channels, const float* __restrict__ top SIZE(rows * channels),
                                            const float* top_diff SIZE(rows * channels),
                                            float* bottom_diff SIZE(rows * channels)) {
  ROW_LOOP(r, rows) {
    const float* y = top + (long long)r * channels;
    const float* dy = top_diff + (long long)r * channels;
    float* dx = bottom_diff + (long long)r * channels;
    float dot = 0;
    LANE_LOOP_SUM(c, channels, dot) dot += dy[c] * y[c];
    dot = block_sum(dot);
    LANE_LOOP(c, channels) dx[c] = y[c] * (dy[c] - dot);
  }
}

struct SoftmaxShape {
  int outer, channels, inner, tile;
};

// Where row r's tile of positions lies.
struct SoftmaxTile {
  long long first;  // of its elements, in class 0
  int position;     // its first, counted over all outer items
  int width;        // positions in it; the last of an item may be short
};

DEVICE SoftmaxTile softmax_tile(int r, SoftmaxShape shape) {
  const int tiles = (shape.inner + shape.tile - 1) / shape.tile;
  const int item = r / tiles, begin = r % tiles * shape.tile;
  const int left = shape.inner - begin;
  return {(long long)item * shape.channels * shape.inner + begin, item * shape.inner + begin,
          left < shape.tile ? left : shape.tile};
}

// Computes the probabilities of one tile of positions.  Overwrites top, and largest and sum, which are scratch.
extern "C" __global__ void softmax_forward_spatial(
    int rows, SoftmaxShape shape, const float* bottom SIZE(shape.outer * shape.channels * shape.inner),
    float* __restrict__ largest SIZE(shape.outer * shape.inner),
    float* __restrict__ sum SIZE(shape.outer * shape.inner),
    float* top SIZE(shape.outer * shape.channels * shape.inner)) {
  ROW_LOOP(r, rows) {
    const SoftmaxTile tile = softmax_tile(r, shape);
    const float* x = bottom + tile.first;
    float* y = top + tile.first;
    float* most = largest + tile.position;
    float* total = sum + tile.position;
    LANE_LOOP(i, tile.width) most[i] = x[i];
    for (int c = 1; c < shape.channels; ++c) {
      const float* plane = x + (long long)c * shape.inner;
      LANE_LOOP(i, tile.width) most[i] = plane[i] > most[i] ? plane[i] : most[i];
    }
    LANE_LOOP(i, tile.width) total[i] = 0;
    for (int c = 0; c < shape.channels; ++c) {
      const long long plane = (long long)c * shape.inner;
      LANE_LOOP(i, tile.width) {
        const float e = vexp_not_positive(x[plane + i] - most[i]);
        y[plane + i] = e;
        total[i] += e;
      }
    }
    for (int c = 0; c < shape.channels; ++c) {
      float* plane = y + (long long)c * shape.inner;
      LANE_LOOP(i, tile.width) plane[i] /= total[i];
    }
  }
}

// Computes the gradient of one tile of positions.  Overwrites bottom_diff, and dot, which is scratch.
extern "C" __global__ void softmax_backward_spatial(
    int rows, SoftmaxShape shape, const float* __restrict__ top SIZE(shape.outer * shape.channels * shape.inner),
    const float* top_diff SIZE(shape.outer * shape.channels * shape.inner),
    float* __restrict__ dot SIZE(shape.outer * shape.inner),
    float* bottom_diff SIZE(shape.outer * shape.channels * shape.inner)) {
  ROW_LOOP(r, rows) {
    const SoftmaxTile tile = softmax_tile(r, shape);
    float* product = dot + tile.position;
    LANE_LOOP(i, tile.width) product[i] = 0;
    for (int c = 0; c < shape.channels; ++c) {
      const long long plane = tile.first + (long long)c * shape.inner;
      LANE_LOOP(i, tile.width) product[i] += top_diff[plane + i] * top[plane + i];
    }
    for (int c = 0; c < shape.channels; ++c) {
      const long long plane = tile.first + (long long)c * shape.inner;
      LANE_LOOP(i, tile.width) bottom_diff[plane + i] = top[plane + i] * (top_diff[plane + i] - product[i]);
    }
  }
}
