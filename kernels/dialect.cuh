// The words a kernel is written in.  Pasted in front of every .cu file, for nvcc and for the host compiler alike.
//
// A kernel is  extern "C" __global__ void name(sizes..., inputs..., outputs...)  in one of two shapes:
//   element kernels   ELEMENT_LOOP(i, n) { ... }                 one iteration owns output i
//   row kernels       ROW_LOOP(r, rows) { LANE_LOOP(i, n) ... }  one block owns row r, its threads share the lanes
// (tile kernels, which need warps and shared memory, are CUDA only).
//
// Every pointer says how many elements it must have:  const float* __restrict__ x SIZE(n).  The compilers see nothing
// there; the launch evaluates the expression over the scalar arguments and refuses a smaller buffer.
//
// On CUDA a loop is grid-stride.  On the host a kernel runs in parts (caffe_lite decides how many): ELEMENT_LOOP and
// ROW_LOOP cover the contiguous range of the present part, a block is one thread, barriers are nothing.
#pragma once

#define SIZE(elements)

#ifdef __CUDACC__

#define TILE_KERNELS
#define DEVICE static __device__ __forceinline__

#define ELEMENT_LOOP(i, n)                                                                                     \
  for (long long i##_at = blockIdx.x * (long long)blockDim.x + threadIdx.x; i##_at < (n);                      \
       i##_at += (long long)gridDim.x * blockDim.x)                                                            \
    if (const int i = (int)i##_at; true)
// The elements of rows x columns: on CUDA one thread each, so that narrow rows waste none; on the host a part takes
// rows, and walks each in a loop without divisions, which can become vectors.
#define GRID_ELEMENT_LOOP(row, column, rows, columns) \
  ELEMENT_LOOP(row##_at, (rows) * (columns))          \
    if (const int row = row##_at / (columns), column = row##_at % (columns); true)
#define ROW_LOOP(r, rows) for (int r = blockIdx.x; r < (rows); r += gridDim.x)
#define LANE_LOOP(i, n) for (int i = threadIdx.x; i < (n); i += blockDim.x)
// A LANE_LOOP that adds to `sum` or takes the larger into `largest`, which block_sum or block_max then completes.
#define LANE_LOOP_SUM(i, n, sum) LANE_LOOP(i, n)
#define LANE_LOOP_MAX(i, n, largest) LANE_LOOP(i, n)
// True in the one thread of a block that writes a row's result.
#define FIRST_LANE (threadIdx.x == 0)

// Combines one value a thread into one value that every thread of the block receives.  blockDim.x is a multiple of 32.
template <typename Value, typename Combine>
static __device__ Value block_combine(Value value, Combine combine) {
  __shared__ Value warps[32];
  for (int offset = 16; offset > 0; offset /= 2) value = combine(value, __shfl_xor_sync(0xffffffffu, value, offset));
  __syncthreads();  // the array may still be read from the last call
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  value = warps[0];
  for (int warp = 1; warp < (int)blockDim.x / 32; ++warp) value = combine(value, warps[warp]);
  return value;
}
static __device__ float block_sum(float value) {
  return block_combine(value, [](float a, float b) { return a + b; });
}
static __device__ int block_sum(int value) {
  return block_combine(value, [](int a, int b) { return a + b; });
}
static __device__ float block_max(float value) {
  return block_combine(value, [](float a, float b) { return a > b || a != a ? a : b; });  // NaN wins
}
static __device__ int block_min(int value) {
  return block_combine(value, [](int a, int b) { return a < b ? a : b; });
}

// Mathematics for kernels; what they are on the host is below.
DEVICE float vexp(float x) { return expf(x); }
DEVICE float vexp_not_positive(float x) { return expf(x); }
DEVICE float vexpm1(float x) { return expm1f(x); }
DEVICE float vlog(float x) { return logf(x); }
DEVICE float vlog1p(float x) { return log1pf(x); }
DEVICE float vtanh(float x) { return tanhf(x); }
DEVICE float vpow(float x, float y) { return powf(x, y); }

// -- tiles: words of the tile kernels, which are compiled for CUDA only

// Where a block's tile lies, counted in tiles.
struct TilePosition {
  int row, column;
};
// The tile of block `index`: in bands of eight tile rows, each walked column by column, so that the blocks that run at
// one time read few rows and columns, and find them in the L2 cache.
DEVICE TilePosition tile_at(int index, int rows, int columns) {
  const int band = index / (8 * columns), within = index - band * 8 * columns;
  const int height = rows - band * 8 < 8 ? rows - band * 8 : 8;
  return {band * 8 + within % height, within / height};
}
// Whether every row of a matrix begins at a multiple of 16 bytes.
DEVICE bool is_aligned(const float* matrix, int row_length) {
  return ((size_t)matrix % 16 == 0) & (row_length % 4 == 0);
}

// -- instructions of compute capability 8.0 and up, one wrapper each
//
// tests/emulation runs the kernels on the CPU with a twin of each under the same name.  For older architectures they
// compile to a trap: kernels that call them are not launched there.
#ifndef EMULATION
#if __CUDA_ARCH__ >= 800
#define SINCE_AMPERE(instruction) instruction
#else
#define SINCE_AMPERE(instruction) __trap()
#endif

// Begins to copy `bytes` bytes (at most 16) from global to shared memory, and zeros up to 16; both addresses are
// multiples of 16.  Where `bytes` is 0 nothing is read.  The present thread's data is there after cp_async_wait, that
// of the others after a barrier behind it.
DEVICE void cp_async_16(void* to, const void* from, int bytes = 16) {
  SINCE_AMPERE(asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                                (unsigned)__cvta_generic_to_shared(to)),
                            "l"(from), "r"(bytes)
                            : "memory"));
}
// The same for 4 bytes.
DEVICE void cp_async_4(void* to, const void* from, int bytes = 4) {
  SINCE_AMPERE(asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(
                                (unsigned)__cvta_generic_to_shared(to)),
                            "l"(from), "r"(bytes)
                            : "memory"));
}
// Makes a group of the copies that this thread has begun since the last group.
DEVICE void cp_async_commit() { SINCE_AMPERE(asm volatile("cp.async.commit_group;" ::: "memory")); }
// Waits until at most `pending` of this thread's groups, the last ones, are still under way.
template <int pending>
DEVICE void cp_async_wait() {
  SINCE_AMPERE(asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory"));
}
// The nearest TF32 (a float with ten bits of mantissa) as the bits of a float; ties away from zero.
DEVICE unsigned to_tf32(float x) {
  unsigned bits = 0;
  SINCE_AMPERE(asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x)));
  return bits;
}
// D += A B for one warp, A 16 x 8, B 8 x 8, D 16 x 8; A and B are TF32.  With g = lane / 4 and t = lane % 4 a lane holds
//   a: (g, t) (g + 8, t) (g, t + 4) (g + 8, t + 4)   b: (t, g) (t + 4, g)
//   d: (g, 2t) (g, 2t + 1) (g + 8, 2t) (g + 8, 2t + 1)
// Its sums are cut off, not rounded, so a long one drifts toward zero: add up short ones outside.
DEVICE void mma_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  SINCE_AMPERE(asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
                            "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1])));
}
#endif

#else  // the host compiler

#include <cfloat>
#include <climits>
#include <cmath>
#include <cstdint>

#define __global__
#define DEVICE static inline

// The part of a launch that this thread runs, set by the worker pool before each call.
struct HostPart {
  int part, parts;
};
extern thread_local HostPart host_part;

// Where part k of n elements begins; a multiple of 16, so that two parts never write to one cache line.
static inline int host_begin(long long n, int part, int parts) {
  if (part >= parts) return (int)n;
  return (int)(n * part / parts / 16 * 16);
}

#define HOST_PRAGMA(text) _Pragma(#text)
// Iterations are independent, which the compiler cannot see where an in-place kernel reads and writes one buffer.
#ifdef __clang__
#define INDEPENDENT HOST_PRAGMA(clang loop vectorize(assume_safety))
#else
#define INDEPENDENT HOST_PRAGMA(GCC ivdep)
#endif

#define ELEMENT_LOOP(i, n)                                                                                     \
  INDEPENDENT for (int i = host_begin(n, host_part.part, host_part.parts),                                     \
                       i##_end = host_begin(n, host_part.part + 1, host_part.parts);                           \
                   i < i##_end; ++i)
#define ROW_LOOP(r, rows)                                                                                      \
  for (int r = (int)((long long)(rows) * host_part.part / host_part.parts),                                    \
           r##_end = (int)((long long)(rows) * (host_part.part + 1) / host_part.parts);                        \
       r < r##_end; ++r)
#define GRID_ELEMENT_LOOP(row, column, rows, columns) \
  ROW_LOOP(row, rows)                                 \
    INDEPENDENT for (int column = 0; column < (columns); ++column)
#define LANE_LOOP(i, n) for (int i = 0; i < (n); ++i)
#define LANE_LOOP_SUM(i, n, sum) HOST_PRAGMA(omp simd reduction(+ : sum)) LANE_LOOP(i, n)
#define LANE_LOOP_MAX(i, n, largest) HOST_PRAGMA(omp simd reduction(max : largest)) LANE_LOOP(i, n)
#define FIRST_LANE true

static inline float block_sum(float value) { return value; }
static inline int block_sum(int value) { return value; }
static inline float block_max(float value) { return value; }
static inline int block_min(int value) { return value; }

// Mathematics for kernels.  The host's expf and its like are function calls, which stop a loop from becoming vectors;
// these are polynomials and selects.  Denormals, infinities, NaN and signed zeros come and go as in the C library.
// Measured over all floats (tests/kernels/test_math.py), in units in the last place: exp, log and pow within 1, expm1
// and log1p 1.6, tanh and sigmoid 2.4, softplus 2.8.  The coefficients of exp and log are those of Cephes (Moshier,
// 1989), summed in groups rather than one by one, so that less waits for what is before it.
static inline float float_of(int bits) {
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}
static inline int bits_of(float value) {
  int bits;
  __builtin_memcpy(&bits, &value, 4);
  return bits;
}
static inline double double_of(long long bits) {
  double value;
  __builtin_memcpy(&value, &bits, 8);
  return value;
}
static inline long long bits_of(double value) {
  long long bits;
  __builtin_memcpy(&bits, &value, 8);
  return bits;
}

// x = k ln 2 + r, with k whole and r at most half a ln 2 from zero; for |x| below 2^20.
struct ExpParts {
  int bits;     // k in its low bits
  float expm1;  // e^r - 1
};
// 1.5 * 2^23: what is added to it is rounded to a whole number, in its low bits.
static const int exp_magic = 0x4b400000;
static inline ExpParts exp_parts(float x) {
  const float shifted = x * 1.44269504f + float_of(exp_magic), k = shifted - float_of(exp_magic);
  const float r = x - k * 0.693359375f + k * 2.12194440e-4f;  // the first constant times k is exact
  const float square = r * r;
  const float high = (1.9875691500e-4f * r + 1.3981999507e-3f) * square + (8.3334519073e-3f * r + 4.1665795894e-2f);
  const float e = high * square + (1.6666665459e-1f * r + 5.0000001201e-1f);
  return {bits_of(shifted), e * square + r};
}
// 2^k from k's low bits, for -126 <= k <= 127; the bits above them are shifted out.
static inline float power_of_two(int bits) { return float_of((int)(((unsigned)bits + 127u) << 23)); }

static inline float vexp(float x) {
  x = x < -110.0f ? -110.0f : x;  // e^x is 0 from -104 on and infinite from 89 on
  x = x > 100.0f ? 100.0f : x;
  const ExpParts parts = exp_parts(x);
  const int k = parts.bits - exp_magic, half = k >> 1;  // in two steps, since 2^k alone may be no float while e^x is
  return (parts.expm1 + 1.0f) * power_of_two(half) * power_of_two(k - half);
}

// The same for x <= 0 in fewer steps: 0 below e^-87, just above the denormal floats.
static inline float vexp_not_positive(float x) {
  const ExpParts parts = exp_parts(x);
  return x < -87.0f ? 0.0f : (parts.expm1 + 1.0f) * power_of_two(parts.bits);
}

static inline float vexpm1(float x) {
  const float clamped = x < -30.0f ? -30.0f : (x > 89.0f ? 89.0f : x);
  const ExpParts parts = exp_parts(clamped);
  const float half = power_of_two(parts.bits - 1);
  const float result = 2.0f * (half * parts.expm1 + (half - 0.5f));
  return half == 0.5f ? parts.expm1 : result;  // keeps -0 and the last bit of denormals
}

// log(m) + k ln 2, where m - 1 = r, m between the square roots of 1/2 and 2.
static inline float log_sum(float k, float r) {
  const float square = r * r;
  const float low = (2.0000714765e-1f * r - 2.4999993993e-1f) * r + 3.3333331174e-1f, cube = square * r;
  const float middle = (-1.2420140846e-1f * r + 1.4249322787e-1f) * r - 1.6668057665e-1f;
  const float high = (7.0376836292e-2f * r - 1.1514610310e-1f) * r + 1.1676998740e-1f;
  const float p = (high * cube + middle) * cube + low;
  return k * 0.693359375f + (r + (p * r * square - k * 2.12194440e-4f - 0.5f * square));
}
static inline int log_exponent(float x) {  // m >= sqrt(1/2) = 0x3f3504f3
  return (int)((unsigned)bits_of(x) - 0x3f3504f3u) >> 23;
}
// x divided by 2^k.
static inline float log_mantissa(float x, int k) { return float_of((int)((unsigned)bits_of(x) - ((unsigned)k << 23))); }

// What log is where the polynomial is not: at 0, below it, at infinity and NaN.
static inline float log_or_limit(float x, float log) {
  log = x < INFINITY ? log : x;
  log = x == 0.0f ? -INFINITY : log;
  return x < 0.0f ? NAN : log;
}

static inline float vlog(float x) {
  const bool denormal = x < 1.17549435e-38f;
  const float normal = denormal ? x * 8388608.0f : x;
  const int k = log_exponent(normal);
  const float m = log_mantissa(normal, k);
  return log_or_limit(x, log_sum((float)(denormal ? k - 23 : k), m - 1.0f));
}

static inline float vlog1p(float x) {
  const float u = 1.0f + x, lost = x - (u - 1.0f);  // 1 + x = u + lost, exactly where it matters
  const int k = log_exponent(u);
  const float m = log_mantissa(u, k);
  const float log = log_sum((float)k, (m - 1.0f) + lost * power_of_two(k < 126 ? -k : -126));
  return x == 0.0f ? x : log_or_limit(u, log);
}

static inline float vtanh(float x) {
  const float size = __builtin_fabsf(x);
  const ExpParts parts = exp_parts(2.0f * (size > 10.0f ? 10.0f : size));
  const float power = power_of_two(parts.bits), expm1 = power * parts.expm1 + (power - 1.0f);
  return __builtin_copysignf(expm1 / (expm1 + 2.0f), x);
}

// 2^(y log2 |x|) in double, whose spare digits pay for the factor y; then the signs and limits of C's pow, as bits:
// with selects the compiler branches around the polynomials, and makes no vectors.
static inline float vpow(float x, float y) {
  const float size = __builtin_fabsf(x);
  const long long root = 0x3fe6a09e667f3bcdll, magic = 0x4338000000000000ll;  // sqrt(1/2); 1.5 * 2^52
  const double to_whole = double_of(magic);
  const long long bits = bits_of((double)size) - root;
  // The exponent, with 2048 added for the shift that AVX2 has, which knows no sign.
  const double k = double_of((long long)(((unsigned long long)bits + (2048ull << 52)) >> 52) + magic) - to_whole;
  const double m = double_of((bits & 0xfffffffffffffll) + root);
  const double r = (m - 1.0) / (m + 1.0), square = r * r;  // log m = 2 artanh r
  const double fourth = square * square;
  const double high = (1.0 / 13 * square + 1.0 / 11) * fourth + (1.0 / 9 * square + 1.0 / 7);
  const double p = high * fourth + (1.0 / 5 * square + 1.0 / 3);
  double log2 = (k - 2048.0) + (p * (square * r) + r) * 2.8853900817779268;  // 2 / ln 2
  log2 = size == 0.0f ? -1e300 : log2;  // not infinity: times 0 it is 0
  log2 = size > 3.402823466e38f ? 1e300 : log2;
  double t = log2 * y;
  t = t < -160.0 ? -160.0 : t;
  t = t > 130.0 ? 130.0 : t;
  const double shifted = t + to_whole, f = (t - (shifted - to_whole)) * 0.69314718055994531;
  const double f2 = f * f, f4 = f2 * f2;
  const double upper = (1.0 / 40320 * f2 + (1.0 / 5040 * f + 1.0 / 720)) * f2 + (1.0 / 120 * f + 1.0 / 24);
  const double e = upper * f4 + ((1.0 / 6 * f + 0.5) * f2 + (f + 1.0));
  const float power = (float)(e * double_of((long long)((unsigned long long)(bits_of(shifted) - magic + 1023) << 52)));
  const float within = __builtin_fabsf(y) < 16777216.0f ? y : 0.0f;  // larger floats are even numbers
  const int whole = (int)within;
  const int is_nan = ((x < 0.0f) & (x > -INFINITY) & ((float)whole != within)) | (x != x);
  const int is_one = (x == 1.0f) | (y == 0.0f) | ((x == -1.0f) & (__builtin_fabsf(y) == INFINITY));
  const int result = (bits_of(power) | (-is_nan & 0x7fffffff)) ^ ((int)((unsigned)whole << 31) & bits_of(x));
  return float_of((result & (is_one - 1)) | (-is_one & 0x3f800000));
}

#endif

// 1 / (1 + e^-x), without overflow; 0 below -87.
DEVICE float vsigmoid(float x) {
  const float e = vexp_not_positive(-fabsf(x));
  return (x < 0.0f ? e : 1.0f) / (1.0f + e);
}

// log(1 + e^x), without overflow, in the digits of the result; 0 below -87.
DEVICE float vsoftplus(float x) {
  const float e = vexp_not_positive(-fabsf(x)), above = x > 0.0f ? x : 0.0f;
  const float s = e / (2.0f + e), square = s * s;  // log(1 + e) = 2 artanh s
  const float high = (1.161216421e-1f * square + 1.085328801e-1f) * square + 1.429617899e-1f;
  const float p = high * (square * square) + (1.999985317e-1f * square + 3.333333366e-1f);
  return above + 2.0f * (p * (square * s) + s);
}

// 32 random bits that depend on nothing but the arguments: Philox 2x32 with seven rounds (Salmon et al., "Parallel
// random numbers: as easy as 1, 2, 3", 2011).  `index` counts within a launch, `counter` the launches.
DEVICE unsigned random_bits(unsigned seed_low, unsigned seed_high, unsigned counter, unsigned index) {
  unsigned left = index, right = counter ^ seed_high, key = seed_low;
  for (int round = 0; round < 7; ++round) {
    const unsigned long long product = 0xD256D193ull * left;
    left = (unsigned)(product >> 32) ^ key ^ right;
    right = (unsigned)product;
    key += 0x9E3779B9u;
  }
  return left;
}
