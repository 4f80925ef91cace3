// The solvers' updates, over the flat buffers in which a net keeps its params.
//
//   g = clip * diff * normalization + decay_mult * weight_decay * (data, or its sign)
//   sgd:  history = momentum * history + lr_mult * rate * g;   diff = history;   data -= diff
//
// A buffer has `rows` rows of 256 elements.  A param begins at a row, so lr_mult and decay_mult are given once a row;
// what follows a param's last element in its last row is zero and stays zero.
// One block a row, one thread an element.  What changes from one iteration to the next (rate, clip) is read from the
// device.  NaN and Inf spread as they would in a loop over elements.  The order of operations is the original's; it
// sums the squares for the clipping in another order.

// Adds up the squares of one row of diffs.  Overwrites squares.
extern "C" __global__ void solver_row_squares(int rows, const float* __restrict__ diff SIZE(rows * 256),
                                              float* __restrict__ squares SIZE(rows)) {
  ROW_LOOP(r, rows) {
    const float* g = diff + (long long)r * 256;
    float sum = 0;
    LANE_LOOP_SUM(i, 256, sum) sum += g[i] * g[i];
    sum = block_sum(sum);
    if (FIRST_LANE) squares[r] = sum;
  }
}

// Writes the L2 norm of all diffs, and the factor that brings it down to `limit` (1 if it is not larger); `one` is 1,
// a single block adds up the rows.  Overwrites norm_and_clip.
extern "C" __global__ void solver_clip(int one, int rows, float limit, const float* __restrict__ squares SIZE(rows),
                                       float* __restrict__ norm_and_clip SIZE(2 * one)) {
  ROW_LOOP(r, one) {
    float sum = 0;
    LANE_LOOP_SUM(i, rows, sum) sum += squares[i];
    sum = block_sum(sum);
    const float norm = sqrtf(sum);
    if (FIRST_LANE) {
      norm_and_clip[2 * r] = norm;
      norm_and_clip[2 * r + 1] = norm > limit ? limit / norm : 1.0f;
    }
  }
}

// The gradient that an update takes: clipped, averaged over iter_size, with the decay (L2: of the weight, L1: of its
// sign).
DEVICE float solver_gradient(float diff, float data, float clip, float normalization, float decay, int l1) {
  const float sign = (float)((data > 0) - (data < 0));
  return diff * clip * normalization + decay * (l1 ? sign : data);
}

// Updates one row.  Overwrites diff (with the update), history and data; nobody else may touch them meanwhile.
extern "C" __global__ void sgd_update(int rows, float momentum, float weight_decay, float normalization, int l1,
                                      const float* __restrict__ rate SIZE(1),
                                      const float* __restrict__ norm_and_clip SIZE(2),
                                      const float* __restrict__ lr_mult SIZE(rows),
                                      const float* __restrict__ decay_mult SIZE(rows),
                                      float* __restrict__ diff SIZE(rows * 256),
                                      float* __restrict__ history SIZE(rows * 256),
                                      float* __restrict__ data SIZE(rows * 256)) {
  const float clip = norm_and_clip[1];
  ROW_LOOP(r, rows) {
    const float local_rate = rate[0] * lr_mult[r], decay = weight_decay * decay_mult[r];
    float* d = diff + (long long)r * 256;
    float* h = history + (long long)r * 256;
    float* w = data + (long long)r * 256;
    LANE_LOOP(i, 256) {
      const float g = solver_gradient(d[i], w[i], clip, normalization, decay, l1);
      const float update = momentum * h[i] + local_rate * g;
      d[i] = update;
      h[i] = update;
      w[i] -= update;
    }
  }
}
