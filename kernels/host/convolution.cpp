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
#include <cstring>

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

// Walks the rows (along the last axis) of one kernel tap: calls visit(column, image, valid range) for each output row.
// `column` is the row's offset among the columns of this block, `image` that of the output position 0 in the image.
struct Tap {
  Tap(const Convolution& c, int64_t tap) : conv(c) {
    for (int axis = c.axes - 1; axis >= 0; --axis) {
      offset[axis] = (int)(tap % c.kernel[axis]) * c.dilation[axis] - c.pad[axis];
      tap /= c.kernel[axis];
    }
    const int last = c.axes - 1, stride = c.stride[last], width = c.in_shape[last], out = c.out_shape[last];
    first = offset[last] >= 0 ? 0 : std::min(out, (-offset[last] + stride - 1) / stride);
    end = offset[last] >= width ? first : std::max(first, std::min(out, (width - offset[last] + stride - 1) / stride));
  }

  template <typename Visit>
  void rows(int64_t begin, int64_t finish, Visit visit) const {
    const int last = conv.axes - 1;
    int at[kMaxAxes];
    int64_t rest = begin;
    for (int axis = last - 1; axis >= 0; --axis) {
      at[axis] = (int)(rest % conv.out_shape[axis]);
      rest /= conv.out_shape[axis];
    }
    for (int64_t row = begin; row < finish; ++row) {
      int64_t image = 0;
      bool inside = true;
      for (int axis = 0; axis < last; ++axis) {
        const int position = at[axis] * conv.stride[axis] + offset[axis];
        inside &= position >= 0 && position < conv.in_shape[axis];
        image = image * conv.in_shape[axis] + position;
      }
      image = image * conv.in_shape[last] + offset[last];
      visit((row - begin) * conv.out_shape[last], image, inside ? first : 0, inside ? end : 0);
      for (int axis = last - 1; axis >= 0 && ++at[axis] == conv.out_shape[axis]; --axis) at[axis] = 0;
    }
  }

  const Convolution& conv;
  int offset[kMaxAxes];
  int first, end;  // the output positions along the last axis whose input lies inside the image
};

// memcpy for the short rows of small images, without a call.
inline void copy_row(float* target, const float* source, int64_t n) {
  for (; n >= 8; n -= 8, target += 8, source += 8) __builtin_memcpy(target, source, 8 * sizeof(float));
  for (; n > 0; --n) *target++ = *source++;
}

// Unrolls rows [k_begin, k_end) of the columns for output rows [row_begin, row_end).
void im2col(const Convolution& c, const Sizes& s, const float* image, int64_t k_begin, int64_t k_end,
            int64_t row_begin, int64_t row_end, float* columns) {
  const int stride = c.stride[c.axes - 1];
  const int64_t width = s.out_width, block = (row_end - row_begin) * width;
  for (int64_t k = k_begin; k < k_end; ++k, columns += block) {
    const float* plane = image + k / s.kernel_volume * s.in_volume;
    Tap(c, k % s.kernel_volume).rows(row_begin, row_end, [&](int64_t column, int64_t source, int first, int end) {
      float* row = columns + column;
      for (int64_t i = 0; i < first; ++i) row[i] = 0;
      if (stride == 1) copy_row(row + first, plane + source + first, end - first);
      else
        for (int64_t i = first; i < end; ++i) row[i] = plane[source + i * stride];
      for (int64_t i = std::max(first, end); i < width; ++i) row[i] = 0;
    });
  }
}

// Adds all columns of the rows [k_begin, k_end) to the image they came from.
void col2im(const Convolution& c, const Sizes& s, const float* columns, int64_t k_begin, int64_t k_end, float* image) {
  const int stride = c.stride[c.axes - 1];
  for (int64_t k = k_begin; k < k_end; ++k, columns += s.out_volume) {
    float* plane = image + k / s.kernel_volume * s.in_volume;
    Tap(c, k % s.kernel_volume).rows(0, s.out_rows, [&](int64_t column, int64_t target, int first, int end) {
      const float* row = columns + column;
      if (stride == 1)
        for (int64_t i = first; i < end; ++i) plane[target + i] += row[i];
      else
        for (int64_t i = first; i < end; ++i) plane[target + i * stride] += row[i];
    });
  }
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
      col2im(c, s, columns, 0, k, bottom_diff);
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
// host_conv_add_partials then collects; otherwise a part owns a range of K and walks all images.
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
  float* weight_diff;
};

// weight_diff += the partial sums, in the order of their parts.
HOST_EXPORT void host_conv_add_partials(const void* args) {
  const AddPartials& a = *static_cast<const AddPartials*>(args);
  const int64_t begin = a.size * host_part.part / host_part.parts, end = a.size * (host_part.part + 1) / host_part.parts;
  for (int64_t part = 0; part < a.count; ++part)
    for (int64_t i = begin; i < end; ++i) a.weight_diff[i] += a.partial[part * a.size + i];
}
