// Small kernels that use what the emulation offers, each as CUDA means it.

// Writes each thread's place in the grid at its own index.
extern "C" __global__ void indices(int n, int* __restrict__ out SIZE(n)) {
  const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const int at = block * (blockDim.x * blockDim.y * blockDim.z) + thread;
  const int where = (blockIdx.x * 10 + blockIdx.y) * 10 + blockIdx.z;
  out[at] = where + 1000 * ((threadIdx.x * 10 + threadIdx.y) * 10 + threadIdx.z);
}

// Reverses the elements of each block of 64, through two shared arrays.
extern "C" __global__ void __launch_bounds__(64) reverse(int n, const float* __restrict__ in SIZE(n),
                                                         float* __restrict__ out SIZE(n)) {
  __shared__ float left[2][16], right[32];
  const int i = threadIdx.x, at = blockIdx.x * 64 + i;
  if (i < 32) {
    left[i / 16][i % 16] = in[at];
  } else {
    right[i - 32] = in[at];
  }
  __syncthreads();
  const int from = 63 - i;
  out[at] = from < 32 ? left[from / 16][from % 16] : right[from - 32];
}

// Reverses the elements of each block, four at a time, through dynamic shared memory.
extern "C" __global__ void reverse_dynamic(int n, const float* __restrict__ in SIZE(n),
                                           float* __restrict__ out SIZE(n)) {
  extern __shared__ __align__(16) float4 four[];
  const int at = blockIdx.x * blockDim.x + threadIdx.x;
  four[threadIdx.x] = reinterpret_cast<const float4*>(in)[at];
  __syncthreads();
  const float4 other = four[blockDim.x - 1 - threadIdx.x];
  reinterpret_cast<float4*>(out)[at] = make_float4(other.w, other.z, other.y, other.x);
}

// One warp or more; each thread writes what five shuffles gave it.
extern "C" __global__ void shuffles(int n, const int* __restrict__ in SIZE(n), int* __restrict__ out SIZE(5 * n)) {
  const int i = threadIdx.x;
  out[5 * i] = __shfl_sync(0xffffffffu, in[i], 5);
  out[5 * i + 1] = __shfl_xor_sync(0xffffffffu, in[i], 3);
  out[5 * i + 2] = __shfl_down_sync(0xffffffffu, in[i], 4);
  out[5 * i + 3] = __shfl_up_sync(0xffffffffu, in[i], 2, 8);
  out[5 * i + 4] = (int)__shfl_xor_sync(0xffffffffu, (double)in[i], 16);
}

// One warp: its halves exchange on their own, in different branches.
extern "C" __global__ void halves(int n, const int* __restrict__ in SIZE(n), int* __restrict__ out SIZE(n)) {
  const int i = threadIdx.x;
  int value = in[i];
  if (i < 16) {
    for (int offset = 8; offset > 0; offset /= 2) value += __shfl_xor_sync(0x0000ffffu, value, offset);
  } else {
    value = __shfl_sync(0xffff0000u, value, 31);
  }
  out[i] = value;
}

// One warp: votes on which values are positive.
extern "C" __global__ void votes(int n, const int* __restrict__ in SIZE(n), unsigned* __restrict__ out SIZE(3)) {
  const bool positive = in[threadIdx.x] > 0;
  const unsigned ballot = __ballot_sync(0xffffffffu, positive);
  const int any = __any_sync(0xffffffffu, positive), all = __all_sync(0xffffffffu, positive);
  if (threadIdx.x == 0) {
    out[0] = ballot;
    out[1] = any;
    out[2] = all;
  }
}

// Adds up all threads of all blocks.  The last block to arrive writes the number of blocks behind the sums.
extern "C" __global__ void count_threads(int n, int* __restrict__ counters SIZE(3), float* __restrict__ sum SIZE(1)) {
  __shared__ int blocks;
  atomicAdd(counters, 1);
  atomicMax(counters + 1, (int)(blockIdx.x * blockDim.x + threadIdx.x));
  atomicAdd(sum, 0.5f);
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) blocks = atomicAdd(counters + 2, 1) + 1;
  __syncthreads();
  if (blocks == (int)gridDim.x && threadIdx.x == blockDim.x - 1) counters[2] = blocks + n;
}

// The order in which blocks and threads run: ticket[i] is when thread i of the grid came.
extern "C" __global__ void tickets(int n, int* __restrict__ next SIZE(1), int* __restrict__ ticket SIZE(n)) {
  ticket[blockIdx.x * blockDim.x + threadIdx.x] = atomicAdd(next, 1);
}

// The dialect's reductions over one block.
extern "C" __global__ void reductions(int n, const float* __restrict__ in SIZE(n), float* __restrict__ out SIZE(4)) {
  const float value = in[threadIdx.x];
  const float sum = block_sum(value), largest = block_max(value);
  const int count = block_sum((int)(value > 0)), smallest = block_min((int)value);
  if (FIRST_LANE) {
    out[0] = sum;
    out[1] = largest;
    out[2] = (float)count;
    out[3] = (float)smallest;
  }
}

#ifdef TILE_KERNELS

#define STAGES 3

// out[i] = the sum of the steps in[s][i], fetched two stages ahead; the block has 32 threads and 128 columns.  What
// lies behind `columns` is filled with zeros, and each thread reads another's part of the stage.
extern "C" __global__ void pipeline(int steps, int columns, const float* __restrict__ in SIZE(steps * 128),
                                    float* __restrict__ out SIZE(128)) {
  __shared__ __align__(16) float stages[STAGES][128];
  const int mine = threadIdx.x * 4, other = 124 - mine;
  const auto fetch = [&](int step) {
    const int inside = max(0, min(4, columns - mine));
    if (step < steps) cp_async_16(&stages[step % STAGES][mine], in + step * 128 + mine, inside * 4);
    cp_async_commit();
  };
  for (int step = 0; step < STAGES - 1; ++step) fetch(step);
  float4 sum = {0, 0, 0, 0};
  for (int step = 0; step < steps; ++step) {
    cp_async_wait<STAGES - 2>();
    __syncthreads();
    fetch(step + STAGES - 1);
    const float4 four = *reinterpret_cast<const float4*>(&stages[step % STAGES][other]);
    sum.x += four.x, sum.y += four.y, sum.z += four.z, sum.w += four.w;
  }
  *reinterpret_cast<float4*>(out + other) = sum;
}

// D (16 x 8) = A (16 x k) B (k x 8) by one warp; `rounds` says whether A and B are rounded to TF32 or cut off.
extern "C" __global__ void multiply(int k, int rounds, const float* __restrict__ a SIZE(16 * k),
                                    const float* __restrict__ b SIZE(k * 8), float* __restrict__ d SIZE(128)) {
  const int g = threadIdx.x / 4, t = threadIdx.x % 4;
  const auto bits = [=](float x) { return rounds ? to_tf32(x) : __float_as_uint(x); };
  float sums[4] = {};
  for (int at = 0; at < k; at += 8) {
    const unsigned left[4] = {bits(a[g * k + at + t]), bits(a[(g + 8) * k + at + t]), bits(a[g * k + at + t + 4]),
                              bits(a[(g + 8) * k + at + t + 4])};
    const unsigned right[2] = {bits(b[(at + t) * 8 + g]), bits(b[(at + t + 4) * 8 + g])};
    mma_tf32(sums, left, right);
  }
  d[g * 8 + t * 2] = sums[0];
  d[g * 8 + t * 2 + 1] = sums[1];
  d[(g + 8) * 8 + t * 2] = sums[2];
  d[(g + 8) * 8 + t * 2 + 1] = sums[3];
}

// Rounds to TF32, and gives the bits.
extern "C" __global__ void round_tf32(int n, const float* __restrict__ in SIZE(n), unsigned* __restrict__ out SIZE(n)) {
  if ((int)threadIdx.x < n) out[threadIdx.x] = to_tf32(in[threadIdx.x]);
}

#endif  // TILE_KERNELS
