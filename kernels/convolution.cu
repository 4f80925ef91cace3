// What Convolution and Deconvolution do with their bias; the products of weights and image patches are the device's
// `conv_*` primitives.
//
//   bias_diff[c] += sum over items n and positions s of top_diff[n, c, s]
//   top[n, c, s] += bias[c]                                  Deconvolution only: conv_forward adds the bias itself
//
// Memory: top and top_diff are num x channels x spatial, row-major; spatial is the product of the top's spatial axes,
// so that one kernel serves 1-D, 2-D, 3-D and so on.
// Threads: forward, one per element; backward, one block per channel, whose threads share the positions of one item
// after the other and meet in block_sum.
// On the host a channel's positions are summed in vector lanes.  The order is fixed, so that the result repeats bit for
// bit; NaN and infinity come through.
// The original multiplies each item's top_diff by a vector of ones (a gemv per item); the sum is the same up to its
// order.

// One row sums one channel.  Adds to bias_diff (a convolution with several bottoms adds once per bottom); nobody else
// writes to it meanwhile.
extern "C" __global__ void convolution_backward_bias(int channels, int num, int spatial,
                                                     const float* __restrict__ top_diff SIZE(num * channels * spatial),
                                                     float* __restrict__ bias_diff SIZE(channels)) {
  ROW_LOOP(c, channels) {
    float sum = 0;
    for (int n = 0; n < num; ++n) {
      const float* plane = top_diff + (n * channels + c) * spatial;
      LANE_LOOP_SUM(s, spatial, sum) sum += plane[s];
    }
    sum = block_sum(sum);
    if (FIRST_LANE) bias_diff[c] += sum;
  }
}

// Adds one element's bias: a deconvolution's forward pass is a primitive without one.  planes = num * channels.
// Adds to top.
extern "C" __global__ void convolution_forward_bias(int planes, int channels, int spatial,
                                                    const float* __restrict__ bias SIZE(channels),
                                                    float* __restrict__ top SIZE(planes * spatial)) {
  GRID_ELEMENT_LOOP(p, s, planes, spatial) top[p * spatial + s] += bias[p % channels];
}
