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

#define DEVICE static __device__ __forceinline__

#define ELEMENT_LOOP(i, n)                                                                                     \
  for (long long i##_at = blockIdx.x * (long long)blockDim.x + threadIdx.x; i##_at < (n);                      \
       i##_at += (long long)gridDim.x * blockDim.x)                                                            \
    if (const int i = (int)i##_at; true)
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
#define LANE_LOOP(i, n) for (int i = 0; i < (n); ++i)
#define LANE_LOOP_SUM(i, n, sum) HOST_PRAGMA(omp simd reduction(+ : sum)) LANE_LOOP(i, n)
#define LANE_LOOP_MAX(i, n, largest) HOST_PRAGMA(omp simd reduction(max : largest)) LANE_LOOP(i, n)
#define FIRST_LANE true

static inline float block_sum(float value) { return value; }
static inline int block_sum(int value) { return value; }
static inline float block_max(float value) { return value; }
static inline int block_min(int value) { return value; }

#endif

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
