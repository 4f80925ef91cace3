// Pooling over height and width: the largest element (MAX) or the mean (AVE) of each window.
//
//   MAX  top[p] = max over the window of bottom        bottom_diff[i] = sum over windows whose maximum is i of top_diff
//   AVE  top[p] = sum over the window / divisor        bottom_diff[i] = sum over windows around i of top_diff / divisor
//
// Memory: planes x height x width and planes x pooled_height x pooled_width, row-major; a plane is one channel of one
// item.  The mask holds, for each pooled element, where in its plane the maximum is: h * width + w.
// Threads: forward, one thread per pooled element; backward, one thread per bottom element, which gathers from the
// windows around it.  On the host a row of elements is a plain loop, which becomes vectors where sizes are constant.
// A window is clipped to the plane; the divisor counts its padding too, unless that lies beyond size + pad.
// Ties: the first maximum in row-major order wins.  NaN: a NaN is its window's maximum, the last of several.
// Unlike the original: its own kernels pass NaN over (its cuDNN engine does not).  An empty window, which only a stride
// larger than the kernel makes, gives -FLT_MAX and mask -1 as there, but an average of 0 (there 0 / 0) and no gradient.

// What a launch must know of the shapes; every kernel here takes it.
struct Pooling {
  int planes, height, width, pooled_height, pooled_width;
  int kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w;
};

// The elements of rows x columns: on CUDA one thread each, so that narrow rows waste none; on the host a part takes
// rows, and walks each in a loop without divisions, which can become vectors.
#ifdef __CUDACC__
#define GRID_ELEMENT_LOOP(row, column, rows, columns) \
  ELEMENT_LOOP(row##_at, (rows) * (columns))          \
    if (const int row = row##_at / (columns), column = row##_at % (columns); true)
#else
#define GRID_ELEMENT_LOOP(row, column, rows, columns) \
  ROW_LOOP(row, rows)                                 \
    for (int column = 0; column < (columns); ++column)
#endif

// The value of an empty window: -FLT_MAX, which nvcc knows only through a header.
#define LOWEST -3.402823466e38f

DEVICE int smaller(int a, int b) { return a < b ? a : b; }
DEVICE int larger(int a, int b) { return a > b ? a : b; }

// The index nearest to `at` inside an axis.
DEVICE int inside(int at, int size) { return smaller(larger(at, 0), size - 1); }

// From begin up to, not including, end.
struct Span {
  int begin, end;
};

// A window along one axis, clipped to the axis.
DEVICE Span window(int pooled, int kernel, int stride, int pad, int size) {
  const int begin = pooled * stride - pad;
  return {larger(begin, 0), smaller(begin + kernel, size)};
}

// The windows that an element lies in, along one axis.
DEVICE Span windows(int at, int kernel, int stride, int pad, int pooled_size) {
  const int begin = at + pad < kernel ? 0 : (at + pad - kernel) / stride + 1;
  return {begin, smaller((at + pad) / stride + 1, pooled_size)};
}

// How many elements of a window the average counts along one axis: padding counts, what lies beyond it does not.
DEVICE int counted(int pooled, int kernel, int stride, int pad, int size) {
  const int begin = pooled * stride - pad;
  return smaller(begin + kernel, size + pad) - begin;
}

// True if `value` takes the place of the maximum so far.  (| and not ||: a vector has no branches.)
DEVICE bool wins(float value, float best) { return (value > best) | (value != value); }

// One iteration owns one pooled element.  Overwrites top and mask.
extern "C" __global__ void pool_max_forward(
    Pooling p, const float* __restrict__ bottom SIZE(p.planes * p.height * p.width),
    float* __restrict__ top SIZE(p.planes * p.pooled_height * p.pooled_width),
    int* __restrict__ mask SIZE(p.planes * p.pooled_height * p.pooled_width)) {
  GRID_ELEMENT_LOOP(row, pw, p.planes * p.pooled_height, p.pooled_width) {
    const float* plane = bottom + row / p.pooled_height * p.height * p.width;
    const Span rows = window(row % p.pooled_height, p.kernel_h, p.stride_h, p.pad_h, p.height);
    const Span columns = window(pw, p.kernel_w, p.stride_w, p.pad_w, p.width);
    const bool empty = rows.begin >= rows.end || columns.begin >= columns.end;
    int at = empty ? 0 : rows.begin * p.width + columns.begin;
    for (int h = rows.begin; h < rows.end; ++h) {
      for (int w = columns.begin; w < columns.end; ++w) {
        if (wins(plane[h * p.width + w], plane[at])) at = h * p.width + w;
      }
    }
    top[row * p.pooled_width + pw] = empty ? LOWEST : plane[at];
    mask[row * p.pooled_width + pw] = empty ? -1 : at;
  }
}

// The same where windows of 2 x 2 tile the plane (stride 2, no padding, even height and width), which is LeNet's and
// VGG's pooling: with constant steps the host compiler makes vectors of whole rows.
// One iteration owns one pooled element.  Overwrites top and mask.
extern "C" __global__ void pool_max_2x2_forward(
    Pooling p, const float* __restrict__ bottom SIZE(p.planes * p.height * p.width),
    float* __restrict__ top SIZE(p.planes * p.pooled_height * p.pooled_width),
    int* __restrict__ mask SIZE(p.planes * p.pooled_height * p.pooled_width)) {
  GRID_ELEMENT_LOOP(row, pw, p.planes * p.pooled_height, p.pooled_width) {
    const float* __restrict__ upper = bottom + row * 2 * p.width;
    const float* __restrict__ lower = upper + p.width;
    const int corner = row % p.pooled_height * 2 * p.width + 2 * pw;
    float best = upper[2 * pw];
    int at = corner;
    float value = upper[2 * pw + 1];
    at = wins(value, best) ? corner + 1 : at;
    best = wins(value, best) ? value : best;
    value = lower[2 * pw];
    at = wins(value, best) ? corner + p.width : at;
    best = wins(value, best) ? value : best;
    value = lower[2 * pw + 1];
    at = wins(value, best) ? corner + p.width + 1 : at;
    best = wins(value, best) ? value : best;
    top[row * p.pooled_width + pw] = best;
    mask[row * p.pooled_width + pw] = at;
  }
}

// The same for windows of 3 x 3 at any stride up to 3: constant counts let the host compiler make vectors of pooled
// elements.  Where a window leaves the plane the nearest element inside is read again, which changes no maximum.
// One iteration owns one pooled element.  Overwrites top and mask.
extern "C" __global__ void pool_max_3x3_forward(
    Pooling p, const float* __restrict__ bottom SIZE(p.planes * p.height * p.width),
    float* __restrict__ top SIZE(p.planes * p.pooled_height * p.pooled_width),
    int* __restrict__ mask SIZE(p.planes * p.pooled_height * p.pooled_width)) {
  GRID_ELEMENT_LOOP(row, pw, p.planes * p.pooled_height, p.pooled_width) {
    const float* __restrict__ plane = bottom + row / p.pooled_height * p.height * p.width;
    const int upper = row % p.pooled_height * p.stride_h - p.pad_h, left = pw * p.stride_w - p.pad_w;
    int at = inside(upper, p.height) * p.width + inside(left, p.width);
    float best = plane[at];
    for (int k = 1; k < 9; ++k) {
      const int next = inside(upper + k / 3, p.height) * p.width + inside(left + k % 3, p.width);
      const float value = plane[next];
      at = wins(value, best) ? next : at;
      best = wins(value, best) ? value : best;
    }
    top[row * p.pooled_width + pw] = best;
    mask[row * p.pooled_width + pw] = at;
  }
}

// Writes the mask as the floats of a second top.  One iteration owns one pooled element.  Overwrites.
extern "C" __global__ void pool_max_forward_mask(int n, const int* __restrict__ mask SIZE(n),
                                                 float* __restrict__ top SIZE(n)) {
  ELEMENT_LOOP(i, n) top[i] = (float)mask[i];
}

// One iteration owns one bottom element.  Overwrites bottom_diff.
extern "C" __global__ void pool_max_backward(
    Pooling p, const float* __restrict__ top_diff SIZE(p.planes * p.pooled_height * p.pooled_width),
    const int* __restrict__ mask SIZE(p.planes * p.pooled_height * p.pooled_width),
    float* __restrict__ bottom_diff SIZE(p.planes * p.height * p.width)) {
  GRID_ELEMENT_LOOP(row, w, p.planes * p.height, p.width) {
    const int h = row % p.height;
    const int first_row = row / p.height * p.pooled_height;
    const Span rows = windows(h, p.kernel_h, p.stride_h, p.pad_h, p.pooled_height);
    const Span columns = windows(w, p.kernel_w, p.stride_w, p.pad_w, p.pooled_width);
    float sum = 0;
    for (int ph = rows.begin; ph < rows.end; ++ph) {
      for (int pw = columns.begin; pw < columns.end; ++pw) {
        const int pooled = (first_row + ph) * p.pooled_width + pw;
        sum += mask[pooled] == h * p.width + w ? top_diff[pooled] : 0.0f;
      }
    }
    bottom_diff[row * p.width + w] = sum;
  }
}

// The gradient of pool_max_2x2_forward, whose windows do not overlap: nothing is summed.
// One iteration owns two neighbouring bottom elements, half a window.  Overwrites bottom_diff.
extern "C" __global__ void pool_max_2x2_backward(
    Pooling p, const float* __restrict__ top_diff SIZE(p.planes * p.pooled_height * p.pooled_width),
    const int* __restrict__ mask SIZE(p.planes * p.pooled_height * p.pooled_width),
    float* __restrict__ bottom_diff SIZE(p.planes * p.height * p.width)) {
  GRID_ELEMENT_LOOP(row, pw, p.planes * p.height, p.pooled_width) {
    const int left = row % p.height * p.width + 2 * pw;
    const int at = mask[row / 2 * p.pooled_width + pw];
    const float diff = top_diff[row / 2 * p.pooled_width + pw];
    bottom_diff[row * p.width + 2 * pw] = at == left ? diff : 0.0f;
    bottom_diff[row * p.width + 2 * pw + 1] = at == left + 1 ? diff : 0.0f;
  }
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
    float sum = 0;
    for (int h = rows.begin; h < rows.end; ++h) {
      for (int w = columns.begin; w < columns.end; ++w) sum += plane[h * p.width + w];
    }
    const int divisor = counted(ph, p.kernel_h, p.stride_h, p.pad_h, p.height) *
                        counted(pw, p.kernel_w, p.stride_w, p.pad_w, p.width);
    const bool empty = rows.begin >= rows.end || columns.begin >= columns.end;
    top[row * p.pooled_width + pw] = empty ? 0.0f : sum / divisor;
  }
}

// One iteration owns one bottom element.  Overwrites bottom_diff.
extern "C" __global__ void pool_ave_backward(
    Pooling p, const float* __restrict__ top_diff SIZE(p.planes * p.pooled_height * p.pooled_width),
    float* __restrict__ bottom_diff SIZE(p.planes * p.height * p.width)) {
  GRID_ELEMENT_LOOP(row, w, p.planes * p.height, p.width) {
    const int h = row % p.height;
    const int first_row = row / p.height * p.pooled_height;
    const Span rows = windows(h, p.kernel_h, p.stride_h, p.pad_h, p.pooled_height);
    const Span columns = windows(w, p.kernel_w, p.stride_w, p.pad_w, p.pooled_width);
    float sum = 0;
    for (int ph = rows.begin; ph < rows.end; ++ph) {
      const int high = counted(ph, p.kernel_h, p.stride_h, p.pad_h, p.height);
      for (int pw = columns.begin; pw < columns.end; ++pw) {
        const int wide = counted(pw, p.kernel_w, p.stride_w, p.pad_w, p.width);
        sum += top_diff[(first_row + ph) * p.pooled_width + pw] / (high * wide);
      }
    }
    bottom_diff[row * p.width + w] = sum;
  }
}
