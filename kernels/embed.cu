// Embed: looks up one row of a matrix for each index.
//
//   top[i] = weights[index[i]] + bias
//   weights_diff[k] += sum over the i with index[i] = k of top_diff[i]
//
// Layout: weights (rows, columns), top (indices, columns), both row-major; loss.cu's label_classes has turned floats
// into indices, with a negative number for what is no row.  Such an index adds nothing, here or to the gradient; the
// original reads and writes outside the blob.  Mapping: a block per row, a thread per column.
// Backward, each row of the weights gathers the top_diff rows that belong to it: a chunk of indices is first threaded
// into lists, one for each row that occurs in it, by one thread in descending order, so that each list ascends.  The
// original's GPU code adds with atomics, in any order; here the order is that of the original's CPU code, every time.

// Looks one index up.  Overwrites top.
extern "C" __global__ void embed_forward(int indices, int rows, int columns,
                                         const int* __restrict__ index SIZE(indices),
                                         const float* __restrict__ weights SIZE(rows * columns),
                                         const float* __restrict__ bias SIZE(columns),
                                         float* __restrict__ top SIZE(indices * columns)) {
  ROW_LOOP(i, indices) {
    const int k = index[i];
    const float* __restrict__ row = weights + (long long)k * columns;
    float* __restrict__ y = top + (long long)i * columns;
    if (k >= 0 && k < rows)
      LANE_LOOP(c, columns) y[c] = row[c] + bias[c];
    else
      LANE_LOOP(c, columns) y[c] = bias[c];
  }
}

// Empties one list: a list ends with `indices`.  Overwrites first.
extern "C" __global__ void embed_backward_clear(int lists, int indices, int* __restrict__ first SIZE(lists)) {
  ELEMENT_LOOP(i, lists) first[i] = indices;
}

// Threads one chunk of indices into the chunk's lists: first[chunk, k] is the smallest i with index k, next[i] the one
// after i; `indices` ends a list.  Overwrites next and the chunk's part of first.
extern "C" __global__ void embed_backward_lists(int chunks, int chunk, int indices, int rows,
                                                const int* __restrict__ index SIZE(indices),
                                                int* __restrict__ first SIZE(chunks * rows),
                                                int* __restrict__ next SIZE(indices)) {
  ROW_LOOP(r, chunks) {
    const int begin = r * chunk, end = begin + chunk < indices ? begin + chunk : indices;
    if (FIRST_LANE)
      for (int i = end - 1; i >= begin; --i) {
        const int k = index[i];
        if (k < 0) continue;
        next[i] = first[r * rows + k];
        first[r * rows + k] = i;
      }
  }
}

// Gathers what one chunk gives to the gradient of one row of the weights; a block keeps its rows from chunk to chunk.
// (The loop over chunks is the outer one, so that the top_diff rows in use lie near each other.)  Adds to weights_diff;
// nobody else writes to that row.
extern "C" __global__ void embed_backward_weights(int rows, int chunks, int indices, int columns,
                                                  const int* __restrict__ first SIZE(chunks * rows),
                                                  const int* __restrict__ next SIZE(indices),
                                                  const float* __restrict__ top_diff SIZE(indices * columns),
                                                  float* __restrict__ weights_diff SIZE(rows * columns)) {
  for (int chunk = 0; chunk < chunks; ++chunk)
    ROW_LOOP(k, rows) {
      float* __restrict__ sums = weights_diff + (long long)k * columns;
      for (int i = first[chunk * rows + k]; i < indices; i = next[i]) {
        const float* __restrict__ dy = top_diff + (long long)i * columns;
        LANE_LOOP(c, columns) sums[c] += dy[c];
      }
    }
}
