// Convolution on the host: the image unrolled into columns (im2col), then OpenBLAS, for any number of spatial axes.
//
// Per image and group   top     (M × P) = weights (M × K) · columns (K × P)
//                       columns (K × P) = weightsᵀ (K × M) · top_diff (M × P), folded back into bottom_diff
//                       weight_diff (M × K) += top_diff (M × P) · columnsᵀ (P × K)
// with M = num_output / group, K = channels / group · kernel volume, P = output volume.
//
// Only a block of the columns exists at a time, in the running thread's scratch memory, small enough for its cache.
// Parts own disjoint outputs (an image and a block of output rows; an image and a range of channels; a range of K), so
// the order of additions, and with it every bit, is the same whoever runs them.

#include <algorithm>
#include <vector>

#include "blas.h"
#include "host.h"

namespace {

constexpr int kMaxAxes = 8;
constexpr int64_t kColumnElements = 1 << 17;  // 512 KiB of columns at a time: half of a common second-level cache

struct Convolution {
  int num, channels, num_output, group, axes;
  int in_shape[kMaxAxes], out_shape[kMaxAxes], kernel[kMaxAxes], stride[kMaxAxes], pad[kMaxAxes], dilation[kMaxAxes];
  const float *bottom, *weights, *bias, *top;  // top is the top's diff in the backward passes
  float* output;                               // top, bottom_diff or weight_diff
  float* partial;                              // backward weights: one weight_diff a part but the first, or null
};

int64_t volume(const int* shape, int axes) {
  int64_t product = 1;
  for (int axis = 0; axis < axes; ++axis) product *= shape[axis];
  return product;
}

// A convolution's sizes, derived once a part.
struct Sizes {
  explicit Sizes(const Convolution& c)
      : in_volume(volume(c.in_shape, c.axes)),
        out_volume(volume(c.out_shape, c.axes)),
        out_rows(volume(c.out_shape, c.axes - 1)),
        out_width(c.out_shape[c.axes - 1]),
        kernel_volume(volume(c.kernel, c.axes)),
        group_channels(c.channels / c.group),
        m(c.num_output / c.group),
        k(group_channels * kernel_volume) {
    pointwise = kernel_volume == 1;
    for (int axis = 0; axis < c.axes; ++axis) pointwise &= c.stride[axis] == 1 && c.pad[axis] == 0;
  }
  int64_t in_volume, out_volume, out_rows, out_width, kernel_volume, group_channels, m, k;
  bool pointwise;  // the columns are the image itself
};

// The output positions along one axis whose input, under one kernel tap, lies inside the image.
struct Span {
  int64_t begin, end;
};

// Consecutive output rows that see the image alike: `row` counts from the first of the block; `image` is the offset of
// the (perhaps absent) output position 0 of the first row.
struct Run {
  int64_t row, rows, image;
  bool padding;
};

// How one kernel tap, which is one row of the columns a channel, looks at the image.
struct Tap {
  Tap(const Convolution& c, int64_t tap) : conv(c), last(c.axes - 1) {
    for (int axis = last; axis >= 0; --axis) {
      offset[axis] = (int)(tap % c.kernel[axis]) * c.dilation[axis] - c.pad[axis];
      tap /= c.kernel[axis];
    }
    across = span(last);
    down = last > 0 ? span(last - 1) : Span{0, 1};
  }

  Span span(int axis) const {
    const int64_t stride = conv.stride[axis], size = conv.in_shape[axis], out = conv.out_shape[axis];
    const int64_t begin = offset[axis] >= 0 ? 0 : std::min(out, (-offset[axis] + stride - 1) / stride);
    const int64_t end = offset[axis] >= size ? 0 : std::min(out, (size - offset[axis] + stride - 1) / stride);
    return {begin, std::max(begin, end)};
  }

  // Cuts the output rows [begin, end) into runs that lie in the padding, or see lines of the image one stride apart.
  void cut(int64_t begin, int64_t end, std::vector<Run>* runs) const {
    runs->clear();
    const auto add = [&](int64_t from, int64_t to, int64_t image, bool padding) {
      if (to > from) runs->push_back({from - begin, to - from, image, padding});
    };
    const int64_t height = last > 0 ? conv.out_shape[last - 1] : 1;
    for (int64_t row = begin; row < end;) {
      const int64_t top = row / height * height, next = std::min(end, top + height);
      int64_t image = 0;
      if (outer(row / height, &image)) {
        const int64_t first = std::min(std::max(row, top + down.begin), next);
        const int64_t past = std::max(first, std::min(next, top + down.end));
        add(row, first, 0, true);
        add(first, past, image + line(first - top) + offset[last], false);
        add(past, next, 0, true);
      } else {
        add(row, next, 0, true);
      }
      row = next;
    }
  }

  // The image's offset of an output line, without the axes outside of it.
  int64_t line(int64_t at) const {
    return last > 0 ? (at * conv.stride[last - 1] + offset[last - 1]) * conv.in_shape[last] : 0;
  }

  // The image's offset of plane number `plane` of the output; false if it lies in the padding.
  bool outer(int64_t plane, int64_t* image) const {
    int64_t pitch = last > 0 ? (int64_t)conv.in_shape[last] * conv.in_shape[last - 1] : 0;
    for (int axis = last - 2; axis >= 0; --axis) {
      const int64_t at = plane % conv.out_shape[axis] * conv.stride[axis] + offset[axis];
      if (at < 0 || at >= conv.in_shape[axis]) return false;
      *image += at * pitch;
      pitch *= conv.in_shape[axis];
      plane /= conv.out_shape[axis];
    }
    return true;
  }

  const Convolution& conv;
  const int last;
  int offset[kMaxAxes];
  Span across, down;
};

// memcpy and += for the short rows of small images, eight at a time and without a call.
inline void copy_row(float* target, const float* source, int64_t n) {
  for (; n >= 8; n -= 8, target += 8, source += 8) __builtin_memcpy(target, source, 8 * sizeof(float));
  for (; n > 0; --n) *target++ = *source++;
}
inline void add_row(float* __restrict__ target, const float* __restrict__ source, int64_t n) {
  for (; n >= 8; n -= 8, target += 8, source += 8)
    for (int i = 0; i < 8; ++i) target[i] += source[i];
  for (; n > 0; --n) *target++ += *source++;
}

// Calls visit(row of the columns, plane of the image, how the tap sees it, its runs) for the rows [k_begin, k_end) of
// the columns, tap by tap, so that each tap is looked at once for all channels.
template <typename Visit>
void each_column_row(const Convolution& c, const Sizes& s, int64_t k_begin, int64_t k_end, int64_t row_begin,
                     int64_t row_end, Visit visit) {
  static thread_local std::vector<Run> runs;
  for (int64_t t = 0; t < s.kernel_volume; ++t) {
    const Tap tap(c, t);
    tap.cut(row_begin, row_end, &runs);
    int64_t channel = (k_begin - t + s.kernel_volume - 1) / s.kernel_volume;
    for (; channel * s.kernel_volume + t < k_end; ++channel)
      visit(channel * s.kernel_volume + t - k_begin, channel * s.in_volume, tap.across, runs);
  }
}

// Floats between two lines of the image that neighbouring output rows see.
int64_t line_pitch(const Convolution& c) {
  return c.axes > 1 ? (int64_t)c.in_shape[c.axes - 1] * c.stride[c.axes - 2] : 0;
}

// Unrolls rows [k_begin, k_end) of the columns for output rows [row_begin, row_end).
void im2col(const Convolution& c, const Sizes& s, const float* image, int64_t k_begin, int64_t k_end,
            int64_t row_begin, int64_t row_end, float* columns) {
  const int64_t stride = c.stride[c.axes - 1], width = s.out_width, pitch = line_pitch(c);
  each_column_row(c, s, k_begin, k_end, row_begin, row_end, [&](int64_t k, int64_t plane, Span in, const auto& runs) {
    for (const Run& run : runs) {
      float* target = columns + (k * (row_end - row_begin) + run.row) * width;
      const float* source = image + plane + run.image;
      if (run.padding) {
        std::fill_n(target, run.rows * width, 0.0f);
        continue;
      }
      for (int64_t row = 0; row < run.rows; ++row, target += width, source += pitch) {
        for (int64_t i = 0; i < in.begin; ++i) target[i] = 0;
        if (stride == 1) copy_row(target + in.begin, source + in.begin, in.end - in.begin);
        else
          for (int64_t i = in.begin; i < in.end; ++i) target[i] = source[i * stride];
        for (int64_t i = in.end; i < width; ++i) target[i] = 0;
      }
    }
  });
}

// Adds the rows [0, k_end) of all columns to the image they came from.
void col2im(const Convolution& c, const Sizes& s, const float* columns, int64_t k_end, float* image) {
  const int64_t stride = c.stride[c.axes - 1], width = s.out_width, pitch = line_pitch(c);
  each_column_row(c, s, 0, k_end, 0, s.out_rows, [&](int64_t k, int64_t plane, Span in, const auto& runs) {
    for (const Run& run : runs) {
      if (run.padding) continue;
      const float* source = columns + k * s.out_volume + run.row * width;
      float* target = image + plane + run.image;
      for (int64_t row = 0; row < run.rows; ++row, source += width, target += pitch) {
        if (stride == 1) add_row(target + in.begin, source + in.begin, in.end - in.begin);
        else
          for (int64_t i = in.begin; i < in.end; ++i) target[i * stride] += source[i];
      }
    }
  });
}

// Cuts `total` into blocks of at most `largest` (at least one), and for few images into enough for all parts.
struct Blocks {
  Blocks(int64_t total, int64_t largest, int64_t wanted) {
    size = std::max<int64_t>(1, std::min(largest, (total + wanted - 1) / wanted));
    count = (total + size - 1) / size;
  }
  int64_t size, count;
};

int64_t first_unit(int64_t units, int part) { return units * part / host_part.parts; }

}  // namespace

// Overwrites top.  A unit of work is one image, one group and a block of output rows.
HOST_EXPORT void host_conv_forward(const void* args) {
  const Convolution& c = *static_cast<const Convolution*>(args);
  const Sizes s(c);
  const int64_t wanted = (host_part.parts + c.num - 1) / c.num;
  const Blocks blocks(s.out_rows, s.pointwise ? s.out_rows : kColumnElements / (s.k * s.out_width), wanted);
  const int64_t units = c.num * c.group * blocks.count, end = first_unit(units, host_part.part + 1);
  for (int64_t unit = first_unit(units, host_part.part); unit < end; ++unit) {
    const int64_t block = unit % blocks.count, group = unit / blocks.count % c.group;
    const int64_t image = unit / blocks.count / c.group;
    const int64_t row_begin = block * blocks.size, row_end = std::min(s.out_rows, row_begin + blocks.size);
    const int64_t width = (row_end - row_begin) * s.out_width;
    const float* bottom = c.bottom + (image * c.channels + group * s.group_channels) * s.in_volume;
    float* top = c.output + (image * c.num_output + group * s.m) * s.out_volume + row_begin * s.out_width;
    const float* columns = bottom + row_begin * s.out_width;
    int64_t stride = s.out_volume;
    if (!s.pointwise) {
      float* unrolled = host_scratch(s.k * width);
      im2col(c, s, bottom, 0, s.k, row_begin, row_end, unrolled);
      columns = unrolled;
      stride = width;
    }
    if (c.bias)
      for (int64_t i = 0; i < s.m; ++i) std::fill_n(top + i * s.out_volume, width, c.bias[group * s.m + i]);
    sgemm(false, false, (int)s.m, (int)width, (int)s.k, 1, c.weights + group * s.m * s.k, (int)s.k, columns,
          (int)stride, c.bias ? 1 : 0, top, (int)s.out_volume);
  }
}

// Overwrites bottom_diff.  A unit of work is one image, one group and a block of its channels.
HOST_EXPORT void host_conv_backward_data(const void* args) {
  const Convolution& c = *static_cast<const Convolution*>(args);
  const Sizes s(c);
  const int64_t wanted = (host_part.parts + c.num - 1) / c.num;
  const Blocks blocks(s.group_channels, kColumnElements / (s.kernel_volume * s.out_volume), wanted);
  const int64_t units = c.num * c.group * blocks.count, end = first_unit(units, host_part.part + 1);
  for (int64_t unit = first_unit(units, host_part.part); unit < end; ++unit) {
    const int64_t block = unit % blocks.count, group = unit / blocks.count % c.group;
    const int64_t image = unit / blocks.count / c.group;
    const int64_t channel = block * blocks.size, channels = std::min(blocks.size, s.group_channels - channel);
    const int64_t k = channels * s.kernel_volume;
    const float* weights = c.weights + group * s.m * s.k + channel * s.kernel_volume;
    const float* top_diff = c.top + (image * c.num_output + group * s.m) * s.out_volume;
    float* bottom_diff = c.output + (image * c.channels + group * s.group_channels + channel) * s.in_volume;
    float* columns = s.pointwise ? bottom_diff : host_scratch(k * s.out_volume);
    sgemm(true, false, (int)k, (int)s.out_volume, (int)s.m, 1, weights, (int)s.k, top_diff, (int)s.out_volume, 0,
          columns, (int)s.out_volume);
    if (!s.pointwise) {
      std::fill_n(bottom_diff, channels * s.in_volume, 0.0f);
      col2im(c, s, columns, k, bottom_diff);
    }
  }
}

namespace {

// weight_diff[:, k_begin:k_end] of one group += top_diff · columnsᵀ over the images [begin, end).
void add_weight_diff(const Convolution& c, const Sizes& s, int64_t group, int64_t k_begin, int64_t k_end,
                     int64_t begin, int64_t end, float* weight_diff) {
  const Blocks blocks(s.out_rows, s.pointwise ? s.out_rows : kColumnElements / ((k_end - k_begin) * s.out_width), 1);
  for (int64_t image = begin; image < end; ++image) {
    const float* bottom = c.bottom + (image * c.channels + group * s.group_channels) * s.in_volume;
    const float* top_diff = c.top + (image * c.num_output + group * s.m) * s.out_volume;
    for (int64_t row = 0; row < s.out_rows; row += blocks.size) {
      const int64_t row_end = std::min(s.out_rows, row + blocks.size), width = (row_end - row) * s.out_width;
      const float* columns = bottom + k_begin * s.in_volume;
      if (!s.pointwise) {
        float* unrolled = host_scratch((k_end - k_begin) * width);
        im2col(c, s, bottom, k_begin, k_end, row, row_end, unrolled);
        columns = unrolled;
      }
      sgemm(false, true, (int)s.m, (int)(k_end - k_begin), (int)width, 1, top_diff + row * s.out_width,
            (int)s.out_volume, columns, (int)(s.pointwise ? s.out_volume : width), 1,
            weight_diff + group * s.m * s.k + k_begin, (int)s.k);
    }
  }
}

}  // namespace

// Adds to weight_diff.  With partials (small weights, many images) a part owns a range of images and its own sum, which
// host_add_partials then collects; otherwise a part owns a range of K and walks all images.
HOST_EXPORT void host_conv_backward_weights(const void* args) {
  const Convolution& c = *static_cast<const Convolution*>(args);
  const Sizes s(c);
  if (c.partial) {
    const int64_t size = c.num_output * s.k;
    float* weight_diff = c.output;
    if (host_part.part > 0) {
      weight_diff = c.partial + (host_part.part - 1) * size;
      std::fill_n(weight_diff, size, 0.0f);
    }
    for (int64_t group = 0; group < c.group; ++group)
      add_weight_diff(c, s, group, 0, s.k, first_unit(c.num, host_part.part), first_unit(c.num, host_part.part + 1),
                      weight_diff);
    return;
  }
  const int64_t per_group = (host_part.parts + c.group - 1) / c.group, units = c.group * per_group;
  const int64_t end = first_unit(units, host_part.part + 1);
  for (int64_t unit = first_unit(units, host_part.part); unit < end; ++unit) {
    const int64_t block = unit % per_group, k_begin = s.k * block / per_group, k_end = s.k * (block + 1) / per_group;
    if (k_begin < k_end) add_weight_diff(c, s, unit / per_group, k_begin, k_end, 0, c.num, c.output);
  }
}

struct AddPartials {
  int64_t size, count;
  const float* partial;
  float* sum;
};

// sum += the partial sums, in the order of their parts.
HOST_EXPORT void host_add_partials(const void* args) {
  const AddPartials& a = *static_cast<const AddPartials*>(args);
  const int64_t begin = a.size * host_part.part / host_part.parts, end = a.size * (host_part.part + 1) / host_part.parts;
  for (int64_t part = 0; part < a.count; ++part)
    for (int64_t i = begin; i < end; ++i) a.sum[i] += a.partial[part * a.size + i];
}
