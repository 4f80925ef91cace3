// Eltwise: one element from the elements of several bottoms at the same place.
//
//   SUM   y = sum over k of coeff_k x_k       dx_k = coeff_k dy
//   PROD  y = product over k of x_k           dx_k = dy * product over j != k of x_j      (stable_prod_grad)
//                                             dx_k = dy * y / x_k                          (otherwise)
//   MAX   y = max over k of x_k               dx_k = dy where x_k was the maximum, else 0
//
// Layout: any; n elements.  Mapping: one thread per element.  The first launch takes two bottoms, each further bottom
// is one more launch (*_more), in their order, so that results round as the original's.
// MAX: the mask says which bottom was the maximum, one byte an element.  Of equal maxima the second bottom wins over
// the first, and further bottoms lose, as in the original's CPU code.  NaN is a maximum, so that it stays visible; the
// original lets the second bottom pass over a NaN of the first, and a NaN of further bottoms lose.

// Adds two bottoms.  Overwrites top.
extern "C" __global__ void eltwise_sum_forward(int n, float coeff_0, float coeff_1,
                                               const float* __restrict__ bottom_0 SIZE(n),
                                               const float* __restrict__ bottom_1 SIZE(n),
                                               float* __restrict__ top SIZE(n)) {
  ELEMENT_LOOP(i, n) top[i] = coeff_0 * bottom_0[i] + coeff_1 * bottom_1[i];
}

// Adds a further bottom to top.
extern "C" __global__ void eltwise_sum_forward_more(int n, float coeff, const float* __restrict__ bottom SIZE(n),
                                                    float* __restrict__ top SIZE(n)) {
  ELEMENT_LOOP(i, n) top[i] += coeff * bottom[i];
}

// Scales the gradient for one bottom.  Overwrites bottom_diff.
extern "C" __global__ void eltwise_sum_backward(int n, float coeff, const float* __restrict__ top_diff SIZE(n),
                                                float* __restrict__ bottom_diff SIZE(n)) {
  ELEMENT_LOOP(i, n) bottom_diff[i] = coeff * top_diff[i];
}

// Multiplies two factors: bottoms going forward, the other bottoms and top_diff going back.  Overwrites product.
extern "C" __global__ void eltwise_product(int n, const float* __restrict__ factor_0 SIZE(n),
                                           const float* __restrict__ factor_1 SIZE(n),
                                           float* __restrict__ product SIZE(n)) {
  ELEMENT_LOOP(i, n) product[i] = factor_0[i] * factor_1[i];
}

// Multiplies product by a further factor.
extern "C" __global__ void eltwise_product_more(int n, const float* __restrict__ factor SIZE(n),
                                                float* __restrict__ product SIZE(n)) {
  ELEMENT_LOOP(i, n) product[i] *= factor[i];
}

// Divides the product by one bottom's factor: NaN where that is 0.  Overwrites bottom_diff.
extern "C" __global__ void eltwise_product_backward_unstable(int n, const float* __restrict__ bottom SIZE(n),
                                                             const float* __restrict__ top SIZE(n),
                                                             const float* __restrict__ top_diff SIZE(n),
                                                             float* __restrict__ bottom_diff SIZE(n)) {
  ELEMENT_LOOP(i, n) bottom_diff[i] = top[i] / bottom[i] * top_diff[i];
}

// Takes the larger of two bottoms.  Overwrites top and mask.
extern "C" __global__ void eltwise_max_forward(int n, const float* __restrict__ bottom_0 SIZE(n),
                                               const float* __restrict__ bottom_1 SIZE(n),
                                               float* __restrict__ top SIZE(n),
                                               unsigned char* __restrict__ mask SIZE(n)) {
  ELEMENT_LOOP(i, n) {
    const float a = bottom_0[i], b = bottom_1[i];
    const bool first = (a > b) | (a != a);
    top[i] = first ? a : b;
    mask[i] = first ? 0 : 1;
  }
}

// Takes a further bottom, number k, where it is larger.  Updates top and mask.
extern "C" __global__ void eltwise_max_forward_more(int n, int k, const float* __restrict__ bottom SIZE(n),
                                                    float* __restrict__ top SIZE(n),
                                                    unsigned char* __restrict__ mask SIZE(n)) {
  ELEMENT_LOOP(i, n) {
    const float a = top[i], b = bottom[i];
    const bool first = !((b > a) | (b != b));
    top[i] = first ? a : b;
    mask[i] = first ? mask[i] : (unsigned char)k;
  }
}

// Passes the gradient on where bottom k was the maximum.  Overwrites bottom_diff.
extern "C" __global__ void eltwise_max_backward(int n, int k, const unsigned char* __restrict__ mask SIZE(n),
                                                const float* __restrict__ top_diff SIZE(n),
                                                float* __restrict__ bottom_diff SIZE(n)) {
  ELEMENT_LOOP(i, n) {
    const float diff = top_diff[i];  // read in any case, so that the loop has no branch
    bottom_diff[i] = mask[i] == k ? diff : 0.0f;
  }
}
