// Convolutions straight from their definition: the CUDA device's `conv_*` primitives (the host has OpenBLAS).
//
//   top[n, m, o]         = bias[m] + sum over c, k of weights[m, c, k] * bottom[n, c, o * stride - pad + k * dilation]
//   bottom_diff[n, c, i] = sum over m, k, o with o * stride - pad + k * dilation = i
//                          of weights[m, c, k] * top_diff[n, m, o]
//   weight_diff[m, c, k] += sum over n, o of bottom[n, c, o * stride - pad + k * dilation] * top_diff[n, m, o]
//
// i, o and k run over depth, height and width; a convolution with fewer axes has the first ones at length 1.  What lies
// in the padding counts as zero.  m sees the channels c of its group only.
// Memory: bottom is num x channels x in, top is num x num_output x out, weights are num_output x (channels / group) x
// kernel, all row-major, as in the original.
// Threads: forward and backward data one per output; backward weights one block per weight, whose threads share the
// top's lines.  Everything gathers and sums in a fixed order, so that results repeat bit for bit.  NaN and infinity come
// through.
// The original multiplies matrices of unfolded patches; the sums are the same up to their order.

struct Convolution {
  int num, channels, num_output, group;
  int in_depth, in_height, in_width;
  int out_depth, out_height, out_width;
  int kernel_depth, kernel_height, kernel_width;
  int stride_depth, stride_height, stride_width;
  int pad_depth, pad_height, pad_width;
  int dilation_depth, dilation_height, dilation_width;
};

// Returns which output position the kernel's tap `offset` (times dilation) takes bottom position `in` to, -1 if none.
DEVICE int reached(int in, int offset, int stride, int pad, int out) {
  const int scaled = in + pad - offset;
  return scaled >= 0 && scaled % stride == 0 && scaled / stride < out ? scaled / stride : -1;
}

// One iteration computes one element of top; bias is read only where has_bias is 1.  Overwrites.
extern "C" __global__ void direct_convolution_forward(
    int n, Convolution s, int has_bias,
    const float* __restrict__ bottom SIZE(s.num * s.channels * s.in_depth * s.in_height * s.in_width),
    const float* __restrict__ weights SIZE(s.num_output * (s.channels / s.group) * s.kernel_depth * s.kernel_height *
                                           s.kernel_width),
    const float* __restrict__ bias SIZE(has_bias * s.num_output), float* __restrict__ top SIZE(n)) {
  ELEMENT_LOOP(i, n) {
    const int w = i % s.out_width, h = i / s.out_width % s.out_height;
    const int d = i / (s.out_width * s.out_height) % s.out_depth;
    const int image_output = i / (s.out_width * s.out_height * s.out_depth);
    const int m = image_output % s.num_output, image = image_output / s.num_output;
    const int channels = s.channels / s.group, first = m / (s.num_output / s.group) * channels;
    const float* weight = weights + m * channels * s.kernel_depth * s.kernel_height * s.kernel_width;
    float sum = 0;
    for (int c = 0; c < channels; ++c) {
      const float* volume = bottom + (image * s.channels + first + c) * s.in_depth * s.in_height * s.in_width;
      for (int kd = 0; kd < s.kernel_depth; ++kd) {
        const int z = d * s.stride_depth - s.pad_depth + kd * s.dilation_depth;
        for (int kh = 0; kh < s.kernel_height; ++kh) {
          const int y = h * s.stride_height - s.pad_height + kh * s.dilation_height;
          const bool inside = z >= 0 && z < s.in_depth && y >= 0 && y < s.in_height;
          for (int kw = 0; kw < s.kernel_width; ++kw, ++weight) {
            const int x = w * s.stride_width - s.pad_width + kw * s.dilation_width;
            if (inside && x >= 0 && x < s.in_width) sum += *weight * volume[(z * s.in_height + y) * s.in_width + x];
          }
        }
      }
    }
    top[i] = has_bias ? sum + bias[m] : sum;
  }
}

// One iteration computes one element of bottom_diff from all the outputs that saw it.  Overwrites.
extern "C" __global__ void direct_convolution_backward_data(
    int n, Convolution s,
    const float* __restrict__ weights SIZE(s.num_output * (s.channels / s.group) * s.kernel_depth * s.kernel_height *
                                           s.kernel_width),
    const float* __restrict__ top_diff SIZE(s.num * s.num_output * s.out_depth * s.out_height * s.out_width),
    float* __restrict__ bottom_diff SIZE(n)) {
  ELEMENT_LOOP(i, n) {
    const int x = i % s.in_width, y = i / s.in_width % s.in_height;
    const int z = i / (s.in_width * s.in_height) % s.in_depth;
    const int image_channel = i / (s.in_width * s.in_height * s.in_depth);
    const int image = image_channel / s.channels, channel = image_channel % s.channels;
    const int channels = s.channels / s.group, outputs = s.num_output / s.group;
    const int first = channel / channels * outputs, c = channel % channels;
    const int taps = s.kernel_depth * s.kernel_height * s.kernel_width;
    const int out_volume = s.out_depth * s.out_height * s.out_width;
    float sum = 0;
    for (int kd = 0; kd < s.kernel_depth; ++kd) {
      const int d = reached(z, kd * s.dilation_depth, s.stride_depth, s.pad_depth, s.out_depth);
      for (int kh = 0; d >= 0 && kh < s.kernel_height; ++kh) {
        const int h = reached(y, kh * s.dilation_height, s.stride_height, s.pad_height, s.out_height);
        for (int kw = 0; h >= 0 && kw < s.kernel_width; ++kw) {
          const int w = reached(x, kw * s.dilation_width, s.stride_width, s.pad_width, s.out_width);
          if (w < 0) continue;
          const int tap = (kd * s.kernel_height + kh) * s.kernel_width + kw;
          const int position = (d * s.out_height + h) * s.out_width + w;
          const float* weight = weights + (first * channels + c) * taps + tap;
          const float* diff = top_diff + (image * s.num_output + first) * out_volume + position;
          for (int m = 0; m < outputs; ++m) sum += weight[m * channels * taps] * diff[m * out_volume];
        }
      }
    }
    bottom_diff[i] = sum;
  }
}

// One row sums one weight's gradient over all images and positions.  Adds to weight_diff; nobody else writes to it.
extern "C" __global__ void direct_convolution_backward_weights(
    int rows, Convolution s,
    const float* __restrict__ bottom SIZE(s.num * s.channels * s.in_depth * s.in_height * s.in_width),
    const float* __restrict__ top_diff SIZE(s.num * s.num_output * s.out_depth * s.out_height * s.out_width),
    float* __restrict__ weight_diff SIZE(rows)) {
  ROW_LOOP(r, rows) {
    const int kw = r % s.kernel_width, kh = r / s.kernel_width % s.kernel_height;
    const int kd = r / (s.kernel_width * s.kernel_height) % s.kernel_depth;
    const int output_channel = r / (s.kernel_width * s.kernel_height * s.kernel_depth);
    const int channels = s.channels / s.group, m = output_channel / channels;
    const int channel = m / (s.num_output / s.group) * channels + output_channel % channels;
    const int first = kw * s.dilation_width - s.pad_width;
    float sum = 0;
    LANE_LOOP(line, s.num * s.out_depth * s.out_height) {
      const int h = line % s.out_height, d = line / s.out_height % s.out_depth, n = line / (s.out_height * s.out_depth);
      const int y = h * s.stride_height - s.pad_height + kh * s.dilation_height;
      const int z = d * s.stride_depth - s.pad_depth + kd * s.dilation_depth;
      if (y < 0 || y >= s.in_height || z < 0 || z >= s.in_depth) continue;
      const float* x = bottom + (((n * s.channels + channel) * s.in_depth + z) * s.in_height + y) * s.in_width;
      const float* diff = top_diff + (((n * s.num_output + m) * s.out_depth + d) * s.out_height + h) * s.out_width;
      for (int w = 0; w < s.out_width; ++w) {
        const int at = first + w * s.stride_width;
        if (at >= 0 && at < s.in_width) sum += x[at] * diff[w];
      }
    }
    sum = block_sum(sum);
    if (FIRST_LANE) weight_diff[r] += sum;
  }
}
