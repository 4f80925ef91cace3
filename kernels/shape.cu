// Layers that rearrange blobs or share them.
//
//   Split     y_k = x for each top k (shared memory, no kernel)         dx = sum over k of dy_k
//
// Layout: any; n elements.  Mapping: one thread per element.
// The sum runs over the tops in their order, as in the original, so it rounds alike.  NaN in any of them shows.
// Silence and Split's forward pass need nothing from here.

// Adds the gradients of two tops.  Overwrites bottom_diff.
extern "C" __global__ void split_backward(int n, const float* __restrict__ top_diff_0 SIZE(n),
                                          const float* __restrict__ top_diff_1 SIZE(n),
                                          float* __restrict__ bottom_diff SIZE(n)) {
  ELEMENT_LOOP(i, n) bottom_diff[i] = top_diff_0[i] + top_diff_1[i];
}

// Joins the gradient of a further top.  Adds to bottom_diff.
extern "C" __global__ void split_backward_more(int n, const float* __restrict__ top_diff SIZE(n),
                                               float* __restrict__ bottom_diff SIZE(n)) {
  ELEMENT_LOOP(i, n) bottom_diff[i] += top_diff[i];
}
