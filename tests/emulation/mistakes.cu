// Kernels that are each wrong in one way that the emulation must show.  Blocks have 64 threads unless said otherwise.

// Nobody waits until the neighbour has written.
extern "C" __global__ void no_barrier(int n, const float* __restrict__ in SIZE(n), float* __restrict__ out SIZE(n)) {
  __shared__ float tile[64];
  tile[threadIdx.x] = in[threadIdx.x];
  out[threadIdx.x] = tile[63 - threadIdx.x];
}

// The second round overwrites what others still read in the first.
extern "C" __global__ void no_second_barrier(int n, const float* __restrict__ in SIZE(2 * n),
                                             float* __restrict__ out SIZE(2 * n)) {
  __shared__ float tile[64];
  for (int round = 0; round < 2; ++round) {
    tile[threadIdx.x] = in[round * n + threadIdx.x];
    __syncthreads();
    out[round * n + threadIdx.x] = tile[63 - threadIdx.x];
  }
}

// Lanes of a warp exchange through shared memory as if they ran in step.
extern "C" __global__ void no_syncwarp(int n, const float* __restrict__ in SIZE(n), float* __restrict__ out SIZE(n)) {
  __shared__ float tile[64];
  tile[threadIdx.x] = in[threadIdx.x];
  out[threadIdx.x] = tile[threadIdx.x ^ 1];
}

// Adds up a block twice; a warp that is ahead writes its second sum while another still reads the first ones.
extern "C" __global__ void one_warp_ahead(int n, const float* __restrict__ in SIZE(n),
                                          float* __restrict__ out SIZE(2)) {
  __shared__ float warps[2];
  for (int round = 0; round < 2; ++round) {
    float sum = in[threadIdx.x] * (float)(1 + round);
    for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = sum;
    __syncthreads();
    out[round] = warps[0] + warps[1];
  }
}

// Nobody has written what is read.
extern "C" __global__ void unwritten(int n, float* __restrict__ out SIZE(n)) {
  __shared__ float tile[64];
  out[threadIdx.x] = tile[threadIdx.x];
}

extern "C" __global__ void barrier_for_some(int n, float* __restrict__ out SIZE(n)) {
  if (threadIdx.x < 32) __syncthreads();  // line 48
  out[threadIdx.x] = 1;
}

extern "C" __global__ void two_barriers(int n, float* __restrict__ out SIZE(n)) {
  if (threadIdx.x % 2) {
    __syncthreads();  // line 54
  } else {
    __syncthreads();  // line 56
  }
  out[threadIdx.x] = 1;
}

extern "C" __global__ void shuffle_for_some(int n, int* __restrict__ out SIZE(n)) {
  if (threadIdx.x < 16) {
    out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, (int)threadIdx.x, 1);
  } else {
    __syncwarp();
  }
}

extern "C" __global__ void mask_without_self(int n, int* __restrict__ out SIZE(n)) {
  out[threadIdx.x] = __shfl_sync(0x0000ffffu, (int)threadIdx.x, 0);
}

// The array is larger than a block may have.
extern "C" __global__ void large_array(int n, float* __restrict__ out SIZE(n)) {
  __shared__ float tile[12289];
  tile[threadIdx.x] = 1;
  out[threadIdx.x] = tile[threadIdx.x];
}

extern "C" __global__ void trap(int n, float* __restrict__ out SIZE(n)) {
  if (out[threadIdx.x] == 0) __trap();
}

// -- caught by AddressSanitizer and UndefinedBehaviorSanitizer

extern "C" __global__ void past_shared(int n, float* __restrict__ out SIZE(n)) {
  __shared__ float tile[64];
  float* at = tile + threadIdx.x;
  at[n] = 1;
  out[threadIdx.x] = tile[threadIdx.x];
}

extern "C" __global__ void past_inner_bound(int n, float* __restrict__ out SIZE(n)) {
  __shared__ float tile[2][64];
  tile[0][threadIdx.x + n] = 1;
  out[threadIdx.x] = 0;
}

extern "C" __global__ void past_dynamic(int n, float* __restrict__ out SIZE(n)) {
  extern __shared__ float dynamic[];
  dynamic[threadIdx.x + n] = 1;
  out[threadIdx.x] = 0;
}

extern "C" __global__ void past_global(int n, float* __restrict__ out SIZE(n)) { out[threadIdx.x + n] = 1; }

// The compiler may put the array at any multiple of four bytes.
extern "C" __global__ void misaligned_vector(int n, float* __restrict__ out SIZE(n)) {
  __shared__ float tile[256];
  reinterpret_cast<float4*>(tile)[threadIdx.x] = make_float4(1, 2, 3, 4);
  out[threadIdx.x] = tile[threadIdx.x];
}

// -- cp.async, 32 threads and 128 elements

#ifdef TILE_KERNELS

// The barrier alone does not wait for the copies.
extern "C" __global__ void no_wait(int n, const float* __restrict__ in SIZE(n), float* __restrict__ out SIZE(n)) {
  __shared__ __align__(16) float tile[128];
  cp_async_16(tile + threadIdx.x * 4, in + threadIdx.x * 4);
  cp_async_commit();
  __syncthreads();
  for (int i = 0; i < 4; ++i) out[i * 32 + threadIdx.x] = tile[127 - i * 32 - threadIdx.x];
}

// A copy that no group holds is not waited for.
extern "C" __global__ void no_commit(int n, const float* __restrict__ in SIZE(n), float* __restrict__ out SIZE(n)) {
  __shared__ __align__(16) float tile[128];
  cp_async_16(tile + threadIdx.x * 4, in + threadIdx.x * 4);
  cp_async_wait<0>();
  __syncthreads();
  for (int i = 0; i < 4; ++i) out[i * 32 + threadIdx.x] = tile[127 - i * 32 - threadIdx.x];
}

// A thread waits for its own copies only.
extern "C" __global__ void no_barrier_after_wait(int n, const float* __restrict__ in SIZE(n),
                                                 float* __restrict__ out SIZE(n)) {
  __shared__ __align__(16) float tile[128];
  cp_async_16(tile + threadIdx.x * 4, in + threadIdx.x * 4);
  cp_async_commit();
  cp_async_wait<0>();
  for (int i = 0; i < 4; ++i) out[i * 32 + threadIdx.x] = tile[127 - i * 32 - threadIdx.x];
}

// The next copy may arrive before the last one has been read.
extern "C" __global__ void copy_over_what_is_read(int n, const float* __restrict__ in SIZE(n),
                                                  float* __restrict__ out SIZE(n)) {
  __shared__ __align__(16) float tile[128];
  for (int round = 0; round < 2; ++round) {
    cp_async_16(tile + threadIdx.x * 4, in + threadIdx.x * 4);
    cp_async_commit();
    if (round == 0) {
      cp_async_wait<0>();
      __syncthreads();
    }
  }
  for (int i = 0; i < 4; ++i) out[i * 32 + threadIdx.x] = tile[127 - i * 32 - threadIdx.x];
}

extern "C" __global__ void misaligned_copy(int n, const float* __restrict__ in SIZE(n),
                                           float* __restrict__ out SIZE(n)) {
  __shared__ __align__(16) float tile[128];
  cp_async_16(tile + threadIdx.x, in);
  out[0] = 0;
}

extern "C" __global__ void copy_to_global(int n, const float* __restrict__ in SIZE(n),
                                          float* __restrict__ out SIZE(n)) {
  cp_async_16(out, in);
}

#endif  // TILE_KERNELS
