// What the devices themselves need: filling, copying, counting.
//
//   fill        out[i] = value
//   copy        out[i] = in[i]
//   count_pass  passes[0] += 1, the counter that random_bits takes: one forward pass, one value
//
// One thread per element.  fill and copy overwrite; nobody else may touch their output meanwhile.  NaN is copied as is.

// Writes out[i] = value.  Overwrites.
extern "C" __global__ void fill(int n, float value, float* __restrict__ out SIZE(n)) {
  ELEMENT_LOOP(i, n) out[i] = value;
}

// Writes out[i] = in[i].  Overwrites; in and out do not overlap.
extern "C" __global__ void copy(int n, const float* __restrict__ in SIZE(n), float* __restrict__ out SIZE(n)) {
  ELEMENT_LOOP(i, n) out[i] = in[i];
}

// Adds one to the number of forward passes.  n is 1: a single thread owns the counter.
extern "C" __global__ void count_pass(int n, int* __restrict__ passes SIZE(n)) {
  ELEMENT_LOOP(i, n) passes[i] += 1;
}
