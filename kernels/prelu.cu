// PReLU: a ReLU whose slope below zero is learned, one for each channel or one for all.
//
//   y = max(x, 0) + a * min(x, 0)
//   dx = dy * (x > 0 ? 1 : a)          da += sum over the elements with that a of dy * min(x, 0)
//
// Layout: rows x columns, row-major.  Row r's slope is slopes[r % count]: a row is one channel of one item, count the
// number of channels, or 1 where they share the slope.  The *_columns kernels serve blobs without positions (inner
// products' tops): a row is an item, and column c's slope is slopes[c].
// Mapping: one thread per element; for da first a block per row, then a block per slope over the sums of its rows.
// Ties: at x = 0 the gradient is a, as in the original.  NaN in x gives NaN in y and da.
// In place (top is bottom, top_diff is bottom_diff) is allowed, hence no __restrict__ on these; x is then a copy.

// Computes one element of y.  Overwrites top.
extern "C" __global__ void prelu_forward(int rows, int columns, int count, const float* __restrict__ slopes SIZE(count),
                                         const float* bottom SIZE(rows * columns), float* top SIZE(rows * columns)) {
  GRID_ELEMENT_LOOP(r, i, rows, columns) {
    const float x = bottom[r * columns + i], slope = slopes[r % count];
    top[r * columns + i] = x > 0 ? x : slope * x;
  }
}

// The same where each column has its slope.  Overwrites top.
extern "C" __global__ void prelu_forward_columns(int rows, int columns, const float* __restrict__ slopes SIZE(columns),
                                                 const float* bottom SIZE(rows * columns),
                                                 float* top SIZE(rows * columns)) {
  GRID_ELEMENT_LOOP(r, c, rows, columns) {
    const float x = bottom[r * columns + c];
    top[r * columns + c] = x > 0 ? x : slopes[c] * x;
  }
}

// Computes one element of dx.  Overwrites bottom_diff.
extern "C" __global__ void prelu_backward(int rows, int columns, int count,
                                          const float* __restrict__ slopes SIZE(count),
                                          const float* __restrict__ bottom SIZE(rows * columns),
                                          const float* top_diff SIZE(rows * columns),
                                          float* bottom_diff SIZE(rows * columns)) {
  GRID_ELEMENT_LOOP(r, i, rows, columns) {
    const int at = r * columns + i;
    const float slope = slopes[r % count];
    bottom_diff[at] = top_diff[at] * (bottom[at] > 0 ? 1.0f : slope);
  }
}

// The same where each column has its slope.  Overwrites bottom_diff.
extern "C" __global__ void prelu_backward_columns(int rows, int columns,
                                                  const float* __restrict__ slopes SIZE(columns),
                                                  const float* __restrict__ bottom SIZE(rows * columns),
                                                  const float* top_diff SIZE(rows * columns),
                                                  float* bottom_diff SIZE(rows * columns)) {
  GRID_ELEMENT_LOOP(r, c, rows, columns) {
    const int at = r * columns + c;
    bottom_diff[at] = top_diff[at] * (bottom[at] > 0 ? 1.0f : slopes[c]);
  }
}

// What an element adds to its slope's gradient.
DEVICE float slope_diff_of(float x, float diff) { return x > 0 ? 0.0f : diff * x; }

// Sums one row's part of its slope's gradient.  Overwrites sums.
extern "C" __global__ void prelu_backward_slopes_rows(int rows, int columns,
                                                      const float* __restrict__ bottom SIZE(rows * columns),
                                                      const float* __restrict__ top_diff SIZE(rows * columns),
                                                      float* __restrict__ sums SIZE(rows)) {
  ROW_LOOP(r, rows) {
    const float* x = bottom + (long long)r * columns;
    const float* dy = top_diff + (long long)r * columns;
    float sum = 0;
    LANE_LOOP_SUM(i, columns, sum) sum += slope_diff_of(x[i], dy[i]);
    sum = block_sum(sum);
    if (FIRST_LANE) sums[r] = sum;
  }
}

// Adds to one slope's gradient the sums of its rows: every count-th.  Adds to slopes_diff; nobody else writes to it.
extern "C" __global__ void prelu_backward_slopes(int count, int rows, const float* __restrict__ sums SIZE(rows),
                                                 float* __restrict__ slopes_diff SIZE(count)) {
  ROW_LOOP(c, count) {
    float sum = 0;
    LANE_LOOP_SUM(k, rows / count, sum) sum += sums[k * count + c];
    sum = block_sum(sum);
    if (FIRST_LANE) slopes_diff[c] += sum;
  }
}

// Where each column has its slope: one iteration adds one element to its column's gradient, and a thread keeps its
// columns from row to row.  Adds to slopes_diff; nobody else writes to it.
extern "C" __global__ void prelu_backward_slopes_columns(int columns, int rows,
                                                         const float* __restrict__ bottom SIZE(rows * columns),
                                                         const float* __restrict__ top_diff SIZE(rows * columns),
                                                         float* __restrict__ slopes_diff SIZE(columns)) {
  for (int r = 0; r < rows; ++r) {
    const float* __restrict__ x = bottom + (long long)r * columns;
    const float* __restrict__ dy = top_diff + (long long)r * columns;
    ELEMENT_LOOP(c, columns) slopes_diff[c] += slope_diff_of(x[c], dy[c]);
  }
}
