// The fully connected layer's own kernel; its matrix products are the device's `gemm`.
//
//   bias_diff[c] += sum over rows r of top_diff[r, c]
//
// Memory: top_diff is row-major, rows x columns: one row an item of the batch, one column an output.
// Threads: one thread per column walks down the rows, so that neighbouring threads read neighbouring elements: on CUDA
// the reads of a warp coalesce, on the host the columns are the lanes of a vector.  (The loop over rows is the outer
// one for the host compiler's sake: it does not vectorize an outer loop.)
// The sum runs in row order on either device: the result repeats bit for bit.  NaN and infinity come through.
// The original multiplies top_diff by a vector of ones (a gemv), which needs that vector in memory; the sum is the same
// up to its order.

// One iteration adds one element to its column's sum; a thread keeps its columns from row to row.  Adds to bias_diff;
// nobody else writes to it.
extern "C" __global__ void inner_product_backward_bias(int columns, int rows,
                                                       const float* __restrict__ top_diff SIZE(rows * columns),
                                                       float* __restrict__ bias_diff SIZE(columns)) {
  for (int r = 0; r < rows; ++r) {
    const float* __restrict__ row = top_diff + r * columns;
    ELEMENT_LOOP(c, columns) bias_diff[c] += row[c];
  }
}
