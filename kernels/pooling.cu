// Pooling over height and width: the largest element (MAX), the mean (AVE) or a random one (STOCHASTIC) of each window.
//
//   MAX  top[p] = max over the window of bottom        bottom_diff[i] = sum over windows whose maximum is i of top_diff
//   AVE  top[p] = sum over the window / divisor        bottom_diff[i] = sum over windows around i of top_diff / divisor
//   STOCHASTIC  top[p] = bottom[i] with probability bottom[i] / sum, MAX's way back;  TEST: sum of squares / sum
//
// Memory: planes x height x width and planes x pooled_height x pooled_width, row-major; a plane is one channel of one
// item.  The mask holds, for each pooled element, where in its plane the maximum is: h * width + w.
// Threads: forward, one per pooled element; backward, one per bottom element, or two neighbours, which gathers from the
// windows around it.  On the host a row of them is a plain loop, which becomes vectors where sizes are constant.
// A window is clipped to the plane; the divisor counts its padding too, unless that lies beyond size + pad.
// Ties: the first maximum in row-major order wins.  NaN: a NaN is its window's maximum, the last of several.
// Unlike the original: its own kernels pass NaN over (its cuDNN engine does not).  An empty window, which only a stride
// larger than the kernel makes, gives -FLT_MAX and mask -1 as there, but an average of 0 (there 0 / 0) and no gradient.

struct Pooling {
  int planes, height, width, pooled_height, pooled_width;
  int kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w;
};

#define LOWEST -3.402823466e38f  // -FLT_MAX, which nvcc knows only through a header
DEVICE int smaller(int a, int b) { return a < b ? a : b; }
DEVICE int larger(int a, int b) { return a > b ? a : b; }
DEVICE int inside(int at, int size) { return smaller(larger(at, 0), size - 1); }  // the nearest index inside an axis

struct Span {
  int begin, end;  // end excluded
};

// A window along one axis, clipped to the axis.
DEVICE Span window(int pooled, int kernel, int stride, int pad, int size) {
  const int begin = pooled * stride - pad;
  return {larger(begin, 0), smaller(begin + kernel, size)};
}

// The elements of a window in row-major order; `i` is where each is in its plane.
#define WINDOW_LOOP(i, rows, columns, width)                               \
  for (int i##_row = (rows).begin; i##_row < (rows).end; ++i##_row)        \
    for (int i = i##_row * (width) + (columns).begin, i##_end = i##_row * (width) + (columns).end; i < i##_end; ++i)

// The windows that an element lies in, along one axis.
DEVICE Span windows(int at, int kernel, int stride, int pad, int pooled_size) {
  const int begin = at + pad < kernel ? 0 : (at + pad - kernel) / stride + 1;
  return {begin, smaller((at + pad) / stride + 1, pooled_size)};
}

// How many elements of a window the average counts: padding counts, what lies beyond it does not.
DEVICE int divisor(Pooling p, int ph, int pw) {
  const int h = ph * p.stride_h - p.pad_h, w = pw * p.stride_w - p.pad_w;
  return (smaller(h + p.kernel_h, p.height + p.pad_h) - h) * (smaller(w + p.kernel_w, p.width + p.pad_w) - w);
}

// True if windows of 2 x 2 tile the plane, as in LeNet and VGG.
DEVICE bool are_tiles(Pooling p) {
  return p.kernel_h == 2 && p.kernel_w == 2 && p.stride_h == 2 && p.stride_w == 2 && p.pad_h == 0 && p.pad_w == 0 &&
         p.pooled_height * 2 == p.height && p.pooled_width * 2 == p.width;
}

// True if `value` takes the place of the maximum so far.  (| and not ||: a vector has no branches.)
DEVICE bool wins(float value, float best) { return (value > best) | (value != value); }

// The maximum of a window of kernel x kernel, in selects.  A window that leaves the plane (it is not `whole`) reads the
// nearest element inside again, which changes no maximum.  Constants let the host compiler make vectors of windows.
DEVICE void best_of(Pooling p, int kernel, bool whole, const float* __restrict__ plane, int upper, int left,
                    float* __restrict__ top, int* __restrict__ mask) {
  int at = 0;
  float best = 0;
  for (int k = 0; k < kernel * kernel; ++k) {
    const int h = upper + k / kernel, w = left + k % kernel;
    const int next = whole ? h * p.width + w : inside(h, p.height) * p.width + inside(w, p.width);
    const bool is_best = k == 0 || wins(plane[next], best);
    at = is_best ? next : at;
    best = is_best ? plane[next] : best;
  }
  *top = best;
  *mask = at;
}

#define BEST_LOOP(kernel, whole, stride_w)                                                        \
  GRID_ELEMENT_LOOP(row, pw, p.planes * p.pooled_height, p.pooled_width)                          \
    best_of(p, kernel, whole, bottom + row / p.pooled_height * p.height * p.width,                \
            row % p.pooled_height * p.stride_h - p.pad_h, pw * (stride_w) - (whole ? 0 : p.pad_w), \
            top + row * p.pooled_width + pw, mask + row * p.pooled_width + pw);

// One iteration owns one pooled element.  Overwrites top and mask.
extern "C" __global__ void pool_max_forward(
    Pooling p, const float* __restrict__ bottom SIZE(p.planes * p.height * p.width),
    float* __restrict__ top SIZE(p.planes * p.pooled_height * p.pooled_width),
    int* __restrict__ mask SIZE(p.planes * p.pooled_height * p.pooled_width)) {
  const bool is_square = p.kernel_h == p.kernel_w && p.stride_h <= p.kernel_h && p.stride_w <= p.kernel_w;
  if (are_tiles(p)) {
    BEST_LOOP(2, true, 2)
  } else if (is_square && p.kernel_w == 2) {
    BEST_LOOP(2, false, p.stride_w)
  } else if (is_square && p.kernel_w == 3) {
    BEST_LOOP(3, false, p.stride_w)
  } else {
    GRID_ELEMENT_LOOP(row, pw, p.planes * p.pooled_height, p.pooled_width) {
      const float* plane = bottom + row / p.pooled_height * p.height * p.width;
      const Span rows = window(row % p.pooled_height, p.kernel_h, p.stride_h, p.pad_h, p.height);
      const Span columns = window(pw, p.kernel_w, p.stride_w, p.pad_w, p.width);
      const bool empty = rows.begin >= rows.end || columns.begin >= columns.end;
      int at = empty ? 0 : rows.begin * p.width + columns.begin;
      WINDOW_LOOP(i, rows, columns, p.width) at = wins(plane[i], plane[at]) ? i : at;
      top[row * p.pooled_width + pw] = empty ? LOWEST : plane[at];
      mask[row * p.pooled_width + pw] = empty ? -1 : at;
    }
  }
}

// Writes the mask as the floats of a second top.  One iteration owns one pooled element.  Overwrites.
extern "C" __global__ void pool_max_forward_mask(int n, const int* __restrict__ mask SIZE(n),
                                                 float* __restrict__ top SIZE(n)) {
  ELEMENT_LOOP(i, n) top[i] = (float)mask[i];
}

// What the windows around the `stride` elements of a row's group number `group` send back to each.  Constants let the
// host compiler make vectors of groups: `stride`, and `reach`, the most windows along an axis that an element lies in;
// 1 is for tiles.  share(h, w, first, ph, pw, exists): from window (ph, pw), whose row begins at `first`, if it exists.
template <int stride, int reach, typename Share>
DEVICE void gather_group(Pooling p, int row, int group, float* __restrict__ bottom_diff, Share share) {
  const int h = row % p.height, last_h = (h + p.pad_h) / stride;
  for (int i = 0; i < stride; ++i) {
    const int w = group * stride + i, last_w = group + (i + p.pad_w) / stride;
    float sum = 0;
    for (int a = reach - 1; a >= 0; --a) {
      const int ph = inside(last_h - a, p.pooled_height), limit = (ph == last_h - a) * p.pooled_width;
      const int first = (row / p.height * p.pooled_height + ph) * p.pooled_width;
      for (int pw = last_w - reach + 1; pw <= last_w; ++pw)
        sum += share(h, w, first, ph, pw, reach == 1 || (unsigned)pw < (unsigned)limit);
    }
    if (i == 0 || group < (p.width - i + stride - 1) / stride) bottom_diff[row * p.width + w] = sum;
  }
}

// The same for one element and any windows.
template <typename Share>
DEVICE void gather(Pooling p, int row, int w, float* __restrict__ bottom_diff, Share share) {
  const int h = row % p.height;
  const Span rows = windows(h, p.kernel_h, p.stride_h, p.pad_h, p.pooled_height);
  const Span columns = windows(w, p.kernel_w, p.stride_w, p.pad_w, p.pooled_width);
  float sum = 0;
  for (int ph = rows.begin; ph < rows.end; ++ph)
    for (int pw = columns.begin; pw < columns.end; ++pw)
      sum += share(h, w, (row / p.height * p.pooled_height + ph) * p.pooled_width, ph, pw, true);
  bottom_diff[row * p.width + w] = sum;
}

#define GATHER_ELEMENT_LOOP(share)                                                                  \
  const bool is_square = p.kernel_h == p.kernel_w && p.stride_h == p.stride_w;                      \
  const int rows = p.planes * p.height, pairs = (p.width + 1) / 2;                                  \
  if (are_tiles(p)) {                                                                               \
    GRID_ELEMENT_LOOP(row, pair, rows, pairs) gather_group<2, 1>(p, row, pair, bottom_diff, share); \
  } else if (is_square && p.stride_w == 2 && p.kernel_w <= 4) {                                     \
    GRID_ELEMENT_LOOP(row, pair, rows, pairs) gather_group<2, 2>(p, row, pair, bottom_diff, share); \
  } else if (is_square && p.stride_w == 1 && p.kernel_w <= 3) {                                     \
    GRID_ELEMENT_LOOP(row, w, rows, p.width) gather_group<1, 3>(p, row, w, bottom_diff, share);     \
  } else {                                                                                          \
    GRID_ELEMENT_LOOP(row, w, rows, p.width) gather(p, row, w, bottom_diff, share);                 \
  }

// One iteration owns one bottom element, or two neighbours.  Overwrites bottom_diff.
extern "C" __global__ void pool_max_backward(
    Pooling p, const float* __restrict__ top_diff SIZE(p.planes * p.pooled_height * p.pooled_width),
    const int* __restrict__ mask SIZE(p.planes * p.pooled_height * p.pooled_width),
    float* __restrict__ bottom_diff SIZE(p.planes * p.height * p.width)) {
  const auto share = [=](int h, int w, int first, int, int pw, bool exists) {
    const int at = exists ? (mask + first)[pw] : -1;
    const float diff = exists ? (top_diff + first)[pw] : 0.0f;
    return at == h * p.width + w ? diff : 0.0f;
  };
  GATHER_ELEMENT_LOOP(share)
}

// One iteration owns one pooled element.  Overwrites top.
extern "C" __global__ void pool_ave_forward(
    Pooling p, const float* __restrict__ bottom SIZE(p.planes * p.height * p.width),
    float* __restrict__ top SIZE(p.planes * p.pooled_height * p.pooled_width)) {
  GRID_ELEMENT_LOOP(row, pw, p.planes * p.pooled_height, p.pooled_width) {
    const int ph = row % p.pooled_height;
    const float* plane = bottom + row / p.pooled_height * p.height * p.width;
    const Span rows = window(ph, p.kernel_h, p.stride_h, p.pad_h, p.height);
    const Span columns = window(pw, p.kernel_w, p.stride_w, p.pad_w, p.width);
    const float* first = plane + rows.begin * p.width + columns.begin;
    const int high = rows.end - rows.begin, wide = columns.end - columns.begin;
    float sum = 0;
    if (high == 3 && wide == 3) {  // constant counts are unrolled
      for (int k = 0; k < 9; ++k) sum += first[k / 3 * p.width + k % 3];
    } else if (high == 2 && wide == 2) {
      for (int k = 0; k < 4; ++k) sum += first[k / 2 * p.width + k % 2];
    } else {
      WINDOW_LOOP(i, rows, columns, p.width) sum += plane[i];
    }
    top[row * p.pooled_width + pw] = high <= 0 || wide <= 0 ? 0.0f : sum / divisor(p, ph, pw);
  }
}

// One iteration owns one bottom element, or two neighbours.  Overwrites bottom_diff.
extern "C" __global__ void pool_ave_backward(
    Pooling p, const float* __restrict__ top_diff SIZE(p.planes * p.pooled_height * p.pooled_width),
    float* __restrict__ bottom_diff SIZE(p.planes * p.height * p.width)) {
  const auto share = [=](int h, int w, int first, int ph, int pw, bool exists) {
    const bool holds = (h < ph * p.stride_h - p.pad_h + p.kernel_h) & (w < pw * p.stride_w - p.pad_w + p.kernel_w);
    const float diff = exists & holds ? (top_diff + first)[pw] : 0.0f;
    return diff / divisor(p, ph, pw);
  };
  GATHER_ELEMENT_LOOP(share)
}

// Picks one element of each window at random, in proportion to its (positive) value: the first at which the sum so far
// reaches a random part of the whole, or the last.  One iteration owns one pooled element.  Overwrites top and mask.
extern "C" __global__ void pool_stochastic_forward(
    Pooling p, unsigned seed_low, unsigned seed_high, const int* __restrict__ passes SIZE(1),
    const float* __restrict__ bottom SIZE(p.planes * p.height * p.width),
    float* __restrict__ top SIZE(p.planes * p.pooled_height * p.pooled_width),
    int* __restrict__ mask SIZE(p.planes * p.pooled_height * p.pooled_width)) {
  GRID_ELEMENT_LOOP(row, pw, p.planes * p.pooled_height, p.pooled_width) {
    const float* plane = bottom + row / p.pooled_height * p.height * p.width;
    const Span rows = window(row % p.pooled_height, p.kernel_h, p.stride_h, 0, p.height);
    const Span columns = window(pw, p.kernel_w, p.stride_w, 0, p.width);
    const int pooled = row * p.pooled_width + pw;
    float sum = 0, so_far = 0;
    WINDOW_LOOP(i, rows, columns, p.width) sum += plane[i];
    // 24 random bits as a float above 0, up to 1: an element of 0 is not picked before one that is more
    const unsigned bits = (random_bits(seed_low, seed_high, (unsigned)passes[0], (unsigned)pooled) >> 8) + 1;
    const float reach = bits * 5.9604644775390625e-8f * sum;
    int at = -1;
    WINDOW_LOOP(i, rows, columns, p.width) {
      at = (at >= 0) & (so_far >= reach) ? at : i;
      so_far += plane[i];
    }
    top[pooled] = at < 0 ? 0.0f : sum == sum ? plane[at] : sum;  // NaN in the window stays visible
    mask[pooled] = at;
  }
}

// The mean of a window, its values weighted by themselves.  One iteration owns one pooled element.  Overwrites top.
extern "C" __global__ void pool_stochastic_forward_test(
    Pooling p, const float* __restrict__ bottom SIZE(p.planes * p.height * p.width),
    float* __restrict__ top SIZE(p.planes * p.pooled_height * p.pooled_width)) {
  GRID_ELEMENT_LOOP(row, pw, p.planes * p.pooled_height, p.pooled_width) {
    const float* plane = bottom + row / p.pooled_height * p.height * p.width;
    const Span rows = window(row % p.pooled_height, p.kernel_h, p.stride_h, 0, p.height);
    const Span columns = window(pw, p.kernel_w, p.stride_w, 0, p.width);
    float sum = 0, squares = 0;
    WINDOW_LOOP(i, rows, columns, p.width) sum += plane[i];
    WINDOW_LOOP(i, rows, columns, p.width) squares += plane[i] * plane[i];
    top[row * p.pooled_width + pw] = sum <= 0 ? 0.0f : squares / sum;
  }
}
