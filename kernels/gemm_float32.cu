// Matrix products in float32 on the CUDA cores, for every architecture.
//
//   C = alpha op(A) op(B) + beta C + bias       op(A) is m x k, op(B) k x n, C m x n; bias has n elements, one a column
//
// Memory: row-major with leading dimensions lda, ldb, ldc (elements from one row to the next).  The letters at the end
// of a name say which operands are stored transposed: nt reads B as n x k.
// Threads: a block owns a square tile of C.  Each thread keeps 8 x 8 sums of it in registers (4 x 4 in *_small_*), and
// walks along k in steps of eight: the block reads the next step of A and B from global memory into registers, works on
// the present one in shared memory, then stores the next into the other half of the buffer: one barrier a step.
// Global reads are 16 bytes wide where the operand's address and leading dimension are multiples of 16 bytes.
// Blocks: x is the tile; y is the part of k, `k_per_split` long, and each part writes its own m x ldc matrix behind c,
// which gemm_split_k_reduce adds up.  One order of additions for one launch: results repeat bit for bit.
// NaN and infinity come through.  C is not read where beta is 0.  The original calls cuBLAS.

// What a launch must know of the shapes.  has_bias is 0 or 1.
struct Gemm {
  int m, n, k, lda, ldb, ldc;
  int splits, k_per_split, has_bias;
};

#ifdef TILE_KERNELS

#define DEPTH 8  // elements of k in one step

// Four neighbours along the direction in which an operand lies in memory: `fast` is that direction, `slow` the other.
// What lies outside the operand is 0.
DEVICE float4 read_four(const float* __restrict__ x, int ld, int slow, int slow_end, int fast, int fast_end,
                        bool aligned) {
  float4 four = {0.0f, 0.0f, 0.0f, 0.0f};
  if (slow >= slow_end) return four;
  const float* at = x + (slow * ld + fast);  // a buffer has fewer than 2^31 elements
  if (aligned && fast + 3 < fast_end) return *reinterpret_cast<const float4*>(at);
  if (fast < fast_end) four.x = at[0];
  if (fast + 1 < fast_end) four.y = at[1];
  if (fast + 2 < fast_end) four.z = at[2];
  if (fast + 3 < fast_end) four.w = at[3];
  return four;
}

// This thread's four elements of one step of an operand, whose tile begins at element `first` of its side of C.
template <bool ALONG_K, int TILE>
DEVICE float4 read_step(const float* __restrict__ x, int ld, int first, int side, int k, int k_end, bool aligned) {
  const int at = threadIdx.x * 4;
  if (ALONG_K) return read_four(x, ld, first + at / DEPTH, side, k + at % DEPTH, k_end, aligned);
  return read_four(x, ld, k + at / TILE, k_end, first + at % TILE, side, aligned);
}

// Puts them into the tile, which is DEPTH rows, one an element of k.  A row is four elements longer than the tile is
// wide: the 32 stores of a warp then fall into 32 banks in either direction.
template <bool ALONG_K, int TILE>
DEVICE void store_step(float (*tile)[TILE + 4], float4 four) {
  const int at = threadIdx.x * 4;
  if (ALONG_K) {
    const int k = at % DEPTH, i = at / DEPTH;
    tile[k][i] = four.x, tile[k + 1][i] = four.y, tile[k + 2][i] = four.z, tile[k + 3][i] = four.w;
  } else {
    *reinterpret_cast<float4*>(&tile[at / TILE][at % TILE]) = four;
  }
}

// Reads four neighbours of a tile at once.
DEVICE void copy_four(float* to, const float* from) {
  const float4 four = *reinterpret_cast<const float4*>(from);
  to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
}

// Writes four sums of one row to C.
DEVICE void write_four(const Gemm& p, float alpha, float beta, const float* __restrict__ bias, float* __restrict__ c,
                       int row, int column, const float* sums, bool aligned) {
  if (row >= p.m || column >= p.n) return;
  float* at = c + (row * p.ldc + column);
  const int count = min(4, p.n - column);
  float four[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    four[j] = alpha * sums[j];
    if (j < count && p.has_bias) four[j] += bias[column + j];
    if (j < count && beta != 0.0f) four[j] += beta * at[j];
  }
  if (aligned && count == 4) {
    *reinterpret_cast<float4*>(at) = {four[0], four[1], four[2], four[3]};
  } else {
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (j < count) at[j] = four[j];
  }
}

// One block's tile of C.  A thread owns SIDE x SIDE sums, in runs of four columns and four rows; the runs of one thread
// lie SPAN apart, so that eight neighbouring threads read 128 neighbouring bytes of shared memory.
template <bool TRANSPOSE_A, bool TRANSPOSE_B, int TILE, int SIDE>
DEVICE void gemm_tile(const Gemm& p, float alpha, float beta, const float* __restrict__ a, const float* __restrict__ b,
                      const float* __restrict__ bias, float* __restrict__ c) {
  const int SPAN = TILE / SIDE * 4;
  __shared__ __align__(16) float tile_a[2][DEPTH][TILE + 4], tile_b[2][DEPTH][TILE + 4];
  const TilePosition tile = tile_at(blockIdx.x, (p.m + TILE - 1) / TILE, (p.n + TILE - 1) / TILE);
  const int first_row = tile.row * TILE, first_column = tile.column * TILE;
  const int k_begin = blockIdx.y * p.k_per_split, k_end = min(p.k, k_begin + p.k_per_split);
  const bool aligned_a = is_aligned(a, p.lda), aligned_b = is_aligned(b, p.ldb);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps_across = SPAN / 32;  // a warp: 4 x 8 threads
  const int row = (warp / warps_across * 4 + lane / 8) * 4, column = (warp % warps_across * 8 + lane % 8) * 4;

  float sums[SIDE][SIDE] = {};
  float4 next_a = read_step<!TRANSPOSE_A, TILE>(a, p.lda, first_row, p.m, k_begin, k_end, aligned_a);
  float4 next_b = read_step<TRANSPOSE_B, TILE>(b, p.ldb, first_column, p.n, k_begin, k_end, aligned_b);
  for (int k = k_begin, half = 0; k < k_end; k += DEPTH, half ^= 1) {
    store_step<!TRANSPOSE_A, TILE>(tile_a[half], next_a);
    store_step<TRANSPOSE_B, TILE>(tile_b[half], next_b);
    __syncthreads();  // and nobody still reads the other half: that was before the barrier
    next_a = read_step<!TRANSPOSE_A, TILE>(a, p.lda, first_row, p.m, k + DEPTH, k_end, aligned_a);
    next_b = read_step<TRANSPOSE_B, TILE>(b, p.ldb, first_column, p.n, k + DEPTH, k_end, aligned_b);
#pragma unroll
    for (int d = 0; d < DEPTH; ++d) {
      float rows[SIDE], columns[SIDE];
#pragma unroll
      for (int i = 0; i < SIDE; i += 4) {
        copy_four(&rows[i], &tile_a[half][d][row + i / 4 * SPAN]);
        copy_four(&columns[i], &tile_b[half][d][column + i / 4 * SPAN]);
      }
#pragma unroll
      for (int i = 0; i < SIDE; ++i)
#pragma unroll
        for (int j = 0; j < SIDE; ++j) sums[i][j] += rows[i] * columns[j];
    }
  }

  c += (long long)blockIdx.y * p.m * p.ldc;
  const bool aligned_c = is_aligned(c, p.ldc);
#pragma unroll
  for (int i = 0; i < SIDE; ++i)
#pragma unroll
    for (int j = 0; j < SIDE; j += 4)
      write_four(p, alpha, beta, bias, c, first_row + row + i / 4 * SPAN + i % 4, first_column + column + j / 4 * SPAN,
                 &sums[i][j], aligned_c);
}

// Each block computes a 128 x 128 tile of C (or of a part's partial sums) with 256 threads.
// Overwrites C, to beta C plus the product; nobody else touches it.
extern "C" __global__ void __launch_bounds__(256, 2)
gemm_float32_nn(Gemm p, float alpha, float beta, const float* __restrict__ a SIZE((p.m - 1) * p.lda + p.k),
                const float* __restrict__ b SIZE((p.k - 1) * p.ldb + p.n),
                const float* __restrict__ bias SIZE(p.has_bias * p.n),
                float* __restrict__ c SIZE((p.splits * p.m - 1) * p.ldc + p.n)) {
  gemm_tile<false, false, 128, 8>(p, alpha, beta, a, b, bias, c);
}
extern "C" __global__ void __launch_bounds__(256, 2)
gemm_float32_nt(Gemm p, float alpha, float beta, const float* __restrict__ a SIZE((p.m - 1) * p.lda + p.k),
                const float* __restrict__ b SIZE((p.n - 1) * p.ldb + p.k),
                const float* __restrict__ bias SIZE(p.has_bias * p.n),
                float* __restrict__ c SIZE((p.splits * p.m - 1) * p.ldc + p.n)) {
  gemm_tile<false, true, 128, 8>(p, alpha, beta, a, b, bias, c);
}
extern "C" __global__ void __launch_bounds__(256, 2)
gemm_float32_tn(Gemm p, float alpha, float beta, const float* __restrict__ a SIZE((p.k - 1) * p.lda + p.m),
                const float* __restrict__ b SIZE((p.k - 1) * p.ldb + p.n),
                const float* __restrict__ bias SIZE(p.has_bias * p.n),
                float* __restrict__ c SIZE((p.splits * p.m - 1) * p.ldc + p.n)) {
  gemm_tile<true, false, 128, 8>(p, alpha, beta, a, b, bias, c);
}
extern "C" __global__ void __launch_bounds__(256, 2)
gemm_float32_tt(Gemm p, float alpha, float beta, const float* __restrict__ a SIZE((p.k - 1) * p.lda + p.m),
                const float* __restrict__ b SIZE((p.n - 1) * p.ldb + p.k),
                const float* __restrict__ bias SIZE(p.has_bias * p.n),
                float* __restrict__ c SIZE((p.splits * p.m - 1) * p.ldc + p.n)) {
  gemm_tile<true, true, 128, 8>(p, alpha, beta, a, b, bias, c);
}

// Each block computes a 32 x 32 tile with 64 threads: for products that have too few large tiles to fill the GPU.
// Overwrites C, to beta C plus the product; nobody else touches it.
extern "C" __global__ void __launch_bounds__(64, 8)
gemm_float32_small_nn(Gemm p, float alpha, float beta, const float* __restrict__ a SIZE((p.m - 1) * p.lda + p.k),
                      const float* __restrict__ b SIZE((p.k - 1) * p.ldb + p.n),
                      const float* __restrict__ bias SIZE(p.has_bias * p.n),
                      float* __restrict__ c SIZE((p.splits * p.m - 1) * p.ldc + p.n)) {
  gemm_tile<false, false, 32, 4>(p, alpha, beta, a, b, bias, c);
}
extern "C" __global__ void __launch_bounds__(64, 8)
gemm_float32_small_nt(Gemm p, float alpha, float beta, const float* __restrict__ a SIZE((p.m - 1) * p.lda + p.k),
                      const float* __restrict__ b SIZE((p.n - 1) * p.ldb + p.k),
                      const float* __restrict__ bias SIZE(p.has_bias * p.n),
                      float* __restrict__ c SIZE((p.splits * p.m - 1) * p.ldc + p.n)) {
  gemm_tile<false, true, 32, 4>(p, alpha, beta, a, b, bias, c);
}
extern "C" __global__ void __launch_bounds__(64, 8)
gemm_float32_small_tn(Gemm p, float alpha, float beta, const float* __restrict__ a SIZE((p.k - 1) * p.lda + p.m),
                      const float* __restrict__ b SIZE((p.k - 1) * p.ldb + p.n),
                      const float* __restrict__ bias SIZE(p.has_bias * p.n),
                      float* __restrict__ c SIZE((p.splits * p.m - 1) * p.ldc + p.n)) {
  gemm_tile<true, false, 32, 4>(p, alpha, beta, a, b, bias, c);
}
extern "C" __global__ void __launch_bounds__(64, 8)
gemm_float32_small_tt(Gemm p, float alpha, float beta, const float* __restrict__ a SIZE((p.k - 1) * p.lda + p.m),
                      const float* __restrict__ b SIZE((p.n - 1) * p.ldb + p.k),
                      const float* __restrict__ bias SIZE(p.has_bias * p.n),
                      float* __restrict__ c SIZE((p.splits * p.m - 1) * p.ldc + p.n)) {
  gemm_tile<true, true, 32, 4>(p, alpha, beta, a, b, bias, c);
}

// Each thread computes elements of C from the parts' sums, each part m x n and dense, added in their order.
// Overwrites C, to beta C plus the product; nobody else touches it.
extern "C" __global__ void gemm_split_k_reduce(Gemm p, float alpha, float beta,
                                               const float* __restrict__ parts SIZE(p.splits * p.m * p.n),
                                               const float* __restrict__ bias SIZE(p.has_bias * p.n),
                                               float* __restrict__ c SIZE((p.m - 1) * p.ldc + p.n)) {
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < p.m * p.n; i += gridDim.x * blockDim.x) {
    const int row = i / p.n, column = i % p.n, at = row * p.ldc + column;
    float sum = 0.0f;
    for (int split = 0; split < p.splits; ++split) sum += parts[split * p.m * p.n + i];
    sum *= alpha;
    if (p.has_bias) sum += bias[column];
    if (beta != 0.0f) sum += beta * c[at];
    c[at] = sum;
  }
}

#endif  // TILE_KERNELS
