// Matrix products on the tensor cores, for compute capability 8.0 and up.
//
//   C = alpha op(A) op(B) + beta C + bias       memory, blocks and parts of k as in gemm_float32.cu
//
// Numbers: TF32 has float32's exponent and 11 of its 24 significant bits.  gemm_tf32_* rounds each factor to it: a
// product is off by at most 2^-10 of itself.  gemm_tf32x3_* splits a factor into high + low, both TF32, and adds
// high low + low high + high high: a product is off by some 2^-22 of itself.  Tensor cores round sums toward zero, so
// there each holds eight products only and joins the others outside (Ootomo and Yokota, "Recovering single precision
// accuracy from Tensor Cores", 2022).
// Threads: a block owns a 128 x 128 tile of C; a warp owns 64 x 64 of it, with tf32x3 32 x 64, as products of m16n8k8
// whose sums stay in registers.  Four stages of 16 elements of k lie in shared memory as they lie in global memory;
// cp.async fills three of them while the warps read the fourth.  Copies are 16 bytes where an operand's address and
// leading dimension are multiples of that, else 4; what lies outside an operand becomes 0.
// NaN comes through; with tf32x3 an infinite factor gives NaN.  One order of additions: results repeat bit for bit.
// The original calls cuBLAS.

// What a launch must know of the shapes.  has_bias is 0 or 1.
struct Gemm {
  int m, n, k, lda, ldb, ldc;
  int splits, k_per_split, has_bias;
};

#ifdef TILE_KERNELS

#define TILE 128
#define DEPTH 16  // elements of k in one stage
#define STAGES 4
// A stage's rows are padded so that the 32 reads of a fragment fall into 32 banks: along k, these are eight rows of
// four elements, 20 apart; else four rows of eight elements, 136 apart.
#define ROW(ALONG_K) ((ALONG_K) ? DEPTH + 4 : TILE + 8)
#define OPERAND (TILE * ROW(true))  // floats; the other direction takes less
// Products that a warp has one below the other: with more, tf32x3 runs out of registers.
#define DOWN(TERMS) ((TERMS) == 3 ? 2 : 4)

// Begins to copy one stage of an operand, WIDTH elements at a time.  `first` is the tile's first element along its side
// of C.
template <bool ALONG_K, int WIDTH, int THREADS>
DEVICE void copy_stage(float* stage, const float* x, int ld, int first, int side, int k, int k_end) {
  const int across = ALONG_K ? DEPTH : TILE;
  const int slow_first = ALONG_K ? first : k, slow_end = ALONG_K ? side : k_end;
  const int fast_first = ALONG_K ? k : first, fast_end = ALONG_K ? k_end : side;
  [[maybe_unused]] const int AT_ONCE = THREADS == 128 ? WIDTH : 1;  // what the registers allow
#pragma unroll(AT_ONCE)
  for (int i = threadIdx.x * WIDTH; i < TILE * DEPTH; i += THREADS * WIDTH) {
    const int slow = slow_first + i / across, fast = fast_first + i % across;
    const int count = slow < slow_end ? max(0, min(WIDTH, fast_end - fast)) : 0;
    const float* from = count ? x + (slow * ld + fast) : x;
    float* to = stage + i / across * ROW(ALONG_K) + i % across;
    if (WIDTH == 4) {
      cp_async_16(to, from, count * 4);
    } else {
      cp_async_4(to, from, count * 4);
    }
  }
}

// Element (i, k) of a stage, i along its side of C.
template <bool ALONG_K>
DEVICE float element(const float* stage, int i, int k) {
  return ALONG_K ? stage[i * ROW(true) + k] : stage[k * ROW(false) + i];
}

// A fragment of an operand as TF32: rounded, and what rounding left.
template <int COUNT>
struct Fragment {
  unsigned high[COUNT], low[COUNT];
};
template <int TERMS, int COUNT>
DEVICE void set(Fragment<COUNT>& fragment, int i, float value) {
  fragment.high[i] = to_tf32(value);
  if (TERMS == 3) fragment.low[i] = to_tf32(value - __uint_as_float(fragment.high[i]));
}

// Adds one stage's products to a warp's sums.  Lane 4 g + t holds A's elements (g | g + 8, t | t + 4) and B's
// (t | t + 4, g) of each 8 elements of k.
template <bool A_ALONG_K, bool B_ALONG_K, int TERMS>
DEVICE void multiply_stage(const float* stage_a, const float* stage_b, int row, int column,
                           float (&sums)[DOWN(TERMS)][8][4]) {
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  [[maybe_unused]] const int STEPS = TERMS == 3 ? 1 : 2;  // what the registers allow
#pragma unroll(STEPS)
  for (int k = 0; k < DEPTH; k += 8) {
    Fragment<4> a[DOWN(TERMS)];
#pragma unroll
    for (int i = 0; i < DOWN(TERMS); ++i)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        set<TERMS>(a[i], e, element<A_ALONG_K>(stage_a, row + i * 16 + g + e % 2 * 8, k + t + e / 2 * 4));
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      Fragment<2> b;
#pragma unroll
      for (int e = 0; e < 2; ++e) set<TERMS>(b, e, element<B_ALONG_K>(stage_b, column + j * 8 + g, k + t + e * 4));
#pragma unroll
      for (int i = 0; i < DOWN(TERMS); ++i) {
        if (TERMS == 1) {
          mma_tf32(sums[i][j], a[i].high, b.high);
        } else {
          float eight[4] = {};  // the sums of eight products each, small terms first
          mma_tf32(eight, a[i].low, b.high);
          mma_tf32(eight, a[i].high, b.low);
          mma_tf32(eight, a[i].high, b.high);
#pragma unroll
          for (int e = 0; e < 4; ++e) sums[i][j][e] += eight[e];
        }
      }
    }
  }
}

// Writes two neighbouring sums to C.
DEVICE void write_two(const Gemm& p, float alpha, float beta, const float* __restrict__ bias, float* __restrict__ c,
                      int row, int column, float first, float second, bool aligned) {
  if (row >= p.m || column >= p.n) return;
  float* at = c + (row * p.ldc + column);
  const bool both = column + 1 < p.n;
  float2 two = {alpha * first, alpha * second};
  if (p.has_bias) two.x += bias[column], two.y += both ? bias[column + 1] : 0.0f;
  if (beta != 0.0f) two.x += beta * at[0], two.y += both ? beta * at[1] : 0.0f;
  if (aligned && both) {
    *reinterpret_cast<float2*>(at) = two;
  } else {
    at[0] = two.x;
    if (both) at[1] = two.y;
  }
}

// One block's tile of C: the kernels below.
template <bool TRANSPOSE_A, bool TRANSPOSE_B, int TERMS>
DEVICE void gemm_tile(const Gemm& p, float alpha, float beta, const float* __restrict__ a, const float* __restrict__ b,
                      const float* __restrict__ bias, float* __restrict__ c) {
  const int THREADS = 512 / DOWN(TERMS);
  extern __shared__ float4 stages[];
  float* const stage_a = reinterpret_cast<float*>(stages);
  float* const stage_b = stage_a + STAGES * OPERAND;
  const TilePosition tile = tile_at(blockIdx.x, (p.m + TILE - 1) / TILE, (p.n + TILE - 1) / TILE);
  const int first_row = tile.row * TILE, first_column = tile.column * TILE;
  const int k_begin = blockIdx.y * p.k_per_split, k_end = min(p.k, k_begin + p.k_per_split);
  const bool aligned_a = is_aligned(a, p.lda), aligned_b = is_aligned(b, p.ldb);
  const auto copy = [&](int step) {  // an empty group past the end keeps the count of groups right
    const int k = k_begin + step * DEPTH, at = step % STAGES * OPERAND;
    if (k < k_end) {
      if (aligned_a) copy_stage<!TRANSPOSE_A, 4, THREADS>(stage_a + at, a, p.lda, first_row, p.m, k, k_end);
      else copy_stage<!TRANSPOSE_A, 1, THREADS>(stage_a + at, a, p.lda, first_row, p.m, k, k_end);
      if (aligned_b) copy_stage<TRANSPOSE_B, 4, THREADS>(stage_b + at, b, p.ldb, first_column, p.n, k, k_end);
      else copy_stage<TRANSPOSE_B, 1, THREADS>(stage_b + at, b, p.ldb, first_column, p.n, k, k_end);
    }
    cp_async_commit();
  };

  const int warp = threadIdx.x / 32, row = warp / 2 * 16 * DOWN(TERMS), column = warp % 2 * 64;
  float sums[DOWN(TERMS)][8][4] = {};
  for (int step = 0; step < STAGES - 1; ++step) copy(step);
  for (int step = 0; k_begin + step * DEPTH < k_end; ++step) {
    cp_async_wait<STAGES - 2>();  // this thread's part of the stage is there;
    __syncthreads();              // now everybody's is, and nobody reads the stage that is filled next
    copy(step + STAGES - 1);
    const int at = step % STAGES * OPERAND;
    multiply_stage<!TRANSPOSE_A, TRANSPOSE_B, TERMS>(stage_a + at, stage_b + at, row, column, sums);
  }

  c += (long long)blockIdx.y * p.m * p.ldc;
  const bool aligned_c = is_aligned(c, p.ldc);
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
  for (int i = 0; i < DOWN(TERMS); ++i)
#pragma unroll
    for (int j = 0; j < 8; ++j)
#pragma unroll
      for (int e = 0; e < 4; e += 2)
        write_two(p, alpha, beta, bias, c, first_row + row + i * 16 + g + e / 2 * 8,
                  first_column + column + j * 8 + t * 2, sums[i][j][e], sums[i][j][e + 1], aligned_c);
}

// Each block computes a tile of C (or of a part's partial sums) to float32's accuracy, with 256 threads and 80 KiB.
// Overwrites C, to beta C plus the product; nobody else touches it.
extern "C" __global__ void __launch_bounds__(256, 2)
gemm_tf32x3_nn(Gemm p, float alpha, float beta, const float* __restrict__ a SIZE((p.m - 1) * p.lda + p.k),
               const float* __restrict__ b SIZE((p.k - 1) * p.ldb + p.n),
               const float* __restrict__ bias SIZE(p.has_bias * p.n),
               float* __restrict__ c SIZE((p.splits * p.m - 1) * p.ldc + p.n)) {
  gemm_tile<false, false, 3>(p, alpha, beta, a, b, bias, c);
}
extern "C" __global__ void __launch_bounds__(256, 2)
gemm_tf32x3_nt(Gemm p, float alpha, float beta, const float* __restrict__ a SIZE((p.m - 1) * p.lda + p.k),
               const float* __restrict__ b SIZE((p.n - 1) * p.ldb + p.k),
               const float* __restrict__ bias SIZE(p.has_bias * p.n),
               float* __restrict__ c SIZE((p.splits * p.m - 1) * p.ldc + p.n)) {
  gemm_tile<false, true, 3>(p, alpha, beta, a, b, bias, c);
}
extern "C" __global__ void __launch_bounds__(256, 2)
gemm_tf32x3_tn(Gemm p, float alpha, float beta, const float* __restrict__ a SIZE((p.k - 1) * p.lda + p.m),
               const float* __restrict__ b SIZE((p.k - 1) * p.ldb + p.n),
               const float* __restrict__ bias SIZE(p.has_bias * p.n),
               float* __restrict__ c SIZE((p.splits * p.m - 1) * p.ldc + p.n)) {
  gemm_tile<true, false, 3>(p, alpha, beta, a, b, bias, c);
}
extern "C" __global__ void __launch_bounds__(256, 2)
gemm_tf32x3_tt(Gemm p, float alpha, float beta, const float* __restrict__ a SIZE((p.k - 1) * p.lda + p.m),
               const float* __restrict__ b SIZE((p.n - 1) * p.ldb + p.k),
               const float* __restrict__ bias SIZE(p.has_bias * p.n),
               float* __restrict__ c SIZE((p.splits * p.m - 1) * p.ldc + p.n)) {
  gemm_tile<true, true, 3>(p, alpha, beta, a, b, bias, c);
}

// Each block computes a tile of C (or of a part's partial sums) to TF32's accuracy, with 128 threads and 80 KiB.
// Overwrites C, to beta C plus the product; nobody else touches it.
extern "C" __global__ void __launch_bounds__(128, 2)
gemm_tf32_nn(Gemm p, float alpha, float beta, const float* __restrict__ a SIZE((p.m - 1) * p.lda + p.k),
             const float* __restrict__ b SIZE((p.k - 1) * p.ldb + p.n),
             const float* __restrict__ bias SIZE(p.has_bias * p.n),
             float* __restrict__ c SIZE((p.splits * p.m - 1) * p.ldc + p.n)) {
  gemm_tile<false, false, 1>(p, alpha, beta, a, b, bias, c);
}
extern "C" __global__ void __launch_bounds__(128, 2)
gemm_tf32_nt(Gemm p, float alpha, float beta, const float* __restrict__ a SIZE((p.m - 1) * p.lda + p.k),
             const float* __restrict__ b SIZE((p.n - 1) * p.ldb + p.k),
             const float* __restrict__ bias SIZE(p.has_bias * p.n),
             float* __restrict__ c SIZE((p.splits * p.m - 1) * p.ldc + p.n)) {
  gemm_tile<false, true, 1>(p, alpha, beta, a, b, bias, c);
}
extern "C" __global__ void __launch_bounds__(128, 2)
gemm_tf32_tn(Gemm p, float alpha, float beta, const float* __restrict__ a SIZE((p.k - 1) * p.lda + p.m),
             const float* __restrict__ b SIZE((p.k - 1) * p.ldb + p.n),
             const float* __restrict__ bias SIZE(p.has_bias * p.n),
             float* __restrict__ c SIZE((p.splits * p.m - 1) * p.ldc + p.n)) {
  gemm_tile<true, false, 1>(p, alpha, beta, a, b, bias, c);
}
extern "C" __global__ void __launch_bounds__(128, 2)
gemm_tf32_tt(Gemm p, float alpha, float beta, const float* __restrict__ a SIZE((p.k - 1) * p.lda + p.m),
             const float* __restrict__ b SIZE((p.n - 1) * p.ldb + p.k),
             const float* __restrict__ bias SIZE(p.has_bias * p.n),
             float* __restrict__ c SIZE((p.splits * p.m - 1) * p.ldc + p.n)) {
  gemm_tile<true, true, 1>(p, alpha, beta, a, b, bias, c);
}

#endif  // TILE_KERNELS
