// Matrix times vector: the matrix products in which op(A) has one row or op(B) one column.
//
//   y[i] = alpha sum over k of matrix[i, k] x[k] + beta y[i] + bias[i stride_bias]
//
// Memory: the matrix is row-major with `ld` elements from one row to the next; gemv_rows has an output a row (outputs x
// k), gemv_columns one a column (k x outputs).  The vectors are strided: rows or columns of Device.gemm's matrices.
// Threads: gemv_rows, a block per output, its threads along k, 16 bytes at a time where row and vector allow it.
// gemv_columns, a block per 32 neighbouring outputs: a warp reads 128 neighbouring bytes, the warps take turns along k.
// Both read the matrix once and are as fast as memory is.
// NaN and infinity come through.  y is not read where beta is 0.  Sums keep one order: results repeat bit for bit.
// The original calls cuBLAS.

// What a launch must know of the shapes.  has_bias is 0 or 1; splits and k_per_split as in gemm_float32.cu.
struct Gemv {
  int outputs, k, ld, stride_x, stride_y, stride_bias;
  int splits, k_per_split, has_bias;
};

#ifdef TILE_KERNELS

// Writes output i, which is element i of y.
DEVICE void write_one(const Gemv& p, float alpha, float beta, const float* __restrict__ bias, float* __restrict__ y,
                      int i, float sum) {
  sum *= alpha;
  if (p.has_bias) sum += bias[i * p.stride_bias];
  if (beta != 0.0f) sum += beta * y[i * p.stride_y];
  y[i * p.stride_y] = sum;
}

// Each block computes one output after another, each a sum along a row.  Needs splits == 1.
// Overwrites y, to beta y plus the product; nobody else touches it.
extern "C" __global__ void __launch_bounds__(256)
gemv_rows(Gemv p, float alpha, float beta, const float* __restrict__ matrix SIZE((p.outputs - 1) * p.ld + p.k),
          const float* __restrict__ x SIZE((p.k - 1) * p.stride_x + 1),
          const float* __restrict__ bias SIZE(p.has_bias * ((p.outputs - 1) * p.stride_bias + 1)),
          float* __restrict__ y SIZE((p.outputs - 1) * p.stride_y + 1)) {
  const bool wide = is_aligned(matrix, p.ld) && is_aligned(x, 4) && p.stride_x == 1;
  const int end_of_fours = wide ? p.k / 4 * 4 : 0;
  for (int i = blockIdx.x; i < p.outputs; i += gridDim.x) {
    const float* row = matrix + i * p.ld;
    float sum = 0.0f;
#pragma unroll 4
    for (int k = threadIdx.x * 4; k < end_of_fours; k += blockDim.x * 4) {
      const float4 left = *reinterpret_cast<const float4*>(row + k), right = *reinterpret_cast<const float4*>(x + k);
      sum += left.x * right.x + left.y * right.y + left.z * right.z + left.w * right.w;
    }
    for (int k = end_of_fours + threadIdx.x; k < p.k; k += blockDim.x) sum += row[k] * x[k * p.stride_x];
    sum = block_sum(sum);
    if (FIRST_LANE) write_one(p, alpha, beta, bias, y, i, sum);
  }
}

// Each block computes 32 outputs (or one part's partial sums of them) with eight warps; each a sum along a column.
// Overwrites y, to beta y plus the product; nobody else touches it.
extern "C" __global__ void __launch_bounds__(256)
gemv_columns(Gemv p, float alpha, float beta, const float* __restrict__ matrix SIZE((p.k - 1) * p.ld + p.outputs),
             const float* __restrict__ x SIZE((p.k - 1) * p.stride_x + 1),
             const float* __restrict__ bias SIZE(p.has_bias * ((p.outputs - 1) * p.stride_bias + 1)),
             float* __restrict__ y SIZE((p.splits * p.outputs - 1) * p.stride_y + 1)) {
  __shared__ float sums[8][32];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, i = blockIdx.x * 32 + lane;
  const int k_begin = blockIdx.y * p.k_per_split, k_end = min(p.k, k_begin + p.k_per_split);
  float sum = 0.0f;
  if (i < p.outputs) {
#pragma unroll 8
    for (int k = k_begin + warp; k < k_end; k += 8) sum += matrix[k * p.ld + i] * x[k * p.stride_x];
  }
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp > 0 || i >= p.outputs) return;
  for (int other = 1; other < 8; ++other) sum += sums[other][lane];
  write_one(p, alpha, beta, bias, y + (long long)blockIdx.y * p.outputs * p.stride_y, i, sum);
}

#endif  // TILE_KERNELS
