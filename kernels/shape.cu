// Layers that share blobs or rename their axes.
//
//   Split      y_k = x for each top k (shared memory, no kernel)         dx = sum over k of dy_k
//   Parameter  y = the param (copy in device.cu)                         d param += dy
//
// Layout: any; n elements.  Mapping: one thread per element.
// The sum runs over the tops in their order, as in the original, so it rounds alike.  NaN in any of them shows.
// Silence, Flatten, Reshape and Split's forward pass need nothing from here.

// Adds the gradients of two tops.  Overwrites bottom_diff.
extern "C" __global__ void split_backward(int n, const float* __restrict__ top_diff_0 SIZE(n),
                                          const float* __restrict__ top_diff_1 SIZE(n),
                                          float* __restrict__ bottom_diff SIZE(n)) {
  ELEMENT_LOOP(i, n) bottom_diff[i] = top_diff_0[i] + top_diff_1[i];
}

// Joins the gradient of a top: of a further one of Split, of the one of Parameter.  Adds to diff.
extern "C" __global__ void shape_backward_add(int n, const float* __restrict__ top_diff SIZE(n),
                                              float* __restrict__ diff SIZE(n)) {
  ELEMENT_LOOP(i, n) diff[i] += top_diff[i];
}
