// Layers that pick items of a batch: BatchReindex and Filter.
//
//   BatchReindex  y[m] = x[index[m]]                    dx[n] = sum over m with index[m] == n of dy[m]
//   Filter        y[m] = x[the m-th selected item]      dx[n] = dy[m] if n is the m-th selected item, else 0
//
// Layout: items x elements, row-major; long items are cut into pieces.  Mapping: one thread per copied element, next to
// each other along an item; on the host a loop per piece.
// Indices are floats, whose fraction is cut off.  One outside the batch (NaN too) is never used: it selects zeros, and
// is reported for the host to raise; the original's GPU code reads there.  A gradient is added up in the order of m, as
// in the original.  NaN among the elements is copied as is.

// Turns indices into item numbers, -1 for those outside 0 to num - 1, and finds the first such (`count` if there is
// none).  One row.  Overwrites items and outside.
extern "C" __global__ void batch_reindex_items(int rows, int count, int num,
                                               const float* __restrict__ index SIZE(count),
                                               int* __restrict__ items SIZE(count), int* outside SIZE(rows)) {
  ROW_LOOP(r, rows) {
    int first = count;
    LANE_LOOP(i, count) {
      const float value = index[i];
      const bool fits = value >= 0 && value < (float)num;
      items[i] = fits ? (int)value : -1;
      first = fits || i > first ? first : i;
    }
    first = block_min(first);
    if (FIRST_LANE) outside[r] = first;
  }
}

struct Items {
  int num, pieces, length;  // items in source, pieces in an item, elements in a piece
};

// Copies one piece of item items[m], zeros if that is negative.  rows = number of items of target * pieces.
// Overwrites target.
extern "C" __global__ void select_items(int rows, Items s, const int* __restrict__ items SIZE(rows / s.pieces),
                                        const float* __restrict__ source SIZE(s.num * s.pieces * s.length),
                                        float* __restrict__ target SIZE(rows * s.length)) {
  ROW_LOOP(r, rows) {
    const int item = items[r / s.pieces];
    float* to = target + (long long)r * s.length;
    const float* from = source + ((long long)item * s.pieces + r % s.pieces) * s.length;
    if (item < 0) {
      LANE_LOOP(i, s.length) to[i] = 0;
    } else {
      LANE_LOOP(i, s.length) to[i] = from[i];
    }
  }
}

// Adds up the gradients of one piece of item n.  rows = num * pieces.  Overwrites bottom_diff; a thread reads only what
// it wrote.
extern "C" __global__ void batch_reindex_backward(int rows, int count, Items s,
                                                  const int* __restrict__ items SIZE(count),
                                                  const float* __restrict__ top_diff SIZE(count * s.pieces * s.length),
                                                  float* __restrict__ bottom_diff SIZE(rows * s.length)) {
  ROW_LOOP(r, rows) {
    float* dx = bottom_diff + (long long)r * s.length;
    bool found = false;
    for (int m = 0; m < count; ++m) {
      if (items[m] != r / s.pieces) continue;
      const float* dy = top_diff + ((long long)m * s.pieces + r % s.pieces) * s.length;
      if (found) {
        LANE_LOOP(i, s.length) dx[i] += dy[i];
      } else {
        LANE_LOOP(i, s.length) dx[i] = dy[i];
      }
      found = true;
    }
    if (!found) LANE_LOOP(i, s.length) dx[i] = 0;
  }
}
