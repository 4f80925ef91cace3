// Im2col: lays out, for each tap of a kernel, the image as that tap sees it from every place of the kernel.
//
//   forward    top[n, (c, k), p] = bottom[n, c, at(p, k)]                         0 where at(p, k) is in the padding
//   backward   bottom_diff[n, c, i] = sum over all k, p with at(p, k) = i of top_diff[n, (c, k), p]
//   at(p, k) = stride p + dilation k - pad,  place p, tap k and position i with one number a spatial axis
//
// Layout: bottom (num, channels, in...), top (num, channels * taps, out...), row-major, any number of spatial axes.
// A line is what runs along the last of them.  Mapping: forward, a block per tap of a plane walks its lines, a thread
// per place; backward, a block per plane walks taps and lines, a thread per position of a line.
// No two threads write to one element, so the sum runs over the taps in their order.  NaN and infinity come through.
// Sizes lie in a buffer of six rows, one number a spatial axis: in, out, kernel, stride, pad, dilation.
// The original does the same, with a kernel of its own for two spatial axes.

struct ColumnShape {
  int planes, axes, taps, in_volume, out_volume;  // planes = num * channels
};

// The sizes along one spatial axis.
struct Along {
  int in, out, kernel, stride, pad, dilation;
};

DEVICE Along along(const int* sizes, int axes, int axis) {
  const int* at = sizes + axis;
  return {at[0], at[axes], at[2 * axes], at[3 * axes], at[4 * axes], at[5 * axes]};
}

// Returns the bottom's line that line `place` of the top sees through `tap`, a tap of all axes but the last; -1 for
// padding.
DEVICE int line_seen(const int* sizes, int axes, int place, int tap) {
  int line = 0, pitch = 1;
  for (int axis = axes - 2; axis >= 0; --axis) {
    const Along a = along(sizes, axes, axis);
    const int p = axis ? place % a.out : place, k = axis ? tap % a.kernel : tap;
    const int at = p * a.stride + k * a.dilation - a.pad;
    if (at < 0 || at >= a.in) return -1;
    line += at * pitch;
    if (axis) place /= a.out, tap /= a.kernel, pitch *= a.in;
  }
  return line;
}

// Returns x / y rounded up, held between 0 and `largest`.
DEVICE int places_before(int x, int y, int largest) {
  const int up = x > 0 ? (x + y - 1) / y : 0;
  return up < largest ? up : largest;
}

// One row lays out one tap of one plane.  rows = planes * taps.  Overwrites top.
extern "C" __global__ void im2col_forward(int rows, ColumnShape shape,
                                          const int* __restrict__ sizes SIZE(6 * shape.axes),
                                          const float* __restrict__ bottom SIZE(shape.planes * shape.in_volume),
                                          float* __restrict__ top SIZE(rows * shape.out_volume)) {
  const Along a = along(sizes, shape.axes, shape.axes - 1);
  ROW_LOOP(r, rows) {
    const int plane = r / shape.taps, tap = r % shape.taps, outer_tap = tap / a.kernel;
    const int shift = tap % a.kernel * a.dilation - a.pad;  // place p sees position p * stride + shift
    const int begin = places_before(-shift, a.stride, a.out), end = places_before(a.in - shift, a.stride, a.out);
    for (int place = 0; place < shape.out_volume / a.out; ++place) {
      float* __restrict__ y = top + (long long)r * shape.out_volume + place * a.out;
      const int line = line_seen(sizes, shape.axes, place, outer_tap);
      const int inside = line < 0 ? 0 : end - begin, padded = line < 0 ? 0 : begin;
      const float* __restrict__ x =
          bottom + (long long)plane * shape.in_volume + line * a.in + padded * a.stride + shift;
      LANE_LOOP(p, padded) y[p] = 0;
      LANE_LOOP(p, inside) y[padded + p] = x[p * a.stride];
      LANE_LOOP(p, a.out - padded - inside) y[padded + inside + p] = 0;
    }
  }
}

// One row sums the gradient of one plane, tap by tap.  A position belongs to thread (position / stride) from tap to
// tap, hence no loop over the places themselves.  rows = planes.  Overwrites bottom_diff.
extern "C" __global__ void im2col_backward(
    int rows, ColumnShape shape, const int* __restrict__ sizes SIZE(6 * shape.axes),
    const float* __restrict__ top_diff SIZE(rows * shape.taps * shape.out_volume),
    float* __restrict__ bottom_diff SIZE(rows * shape.in_volume)) {
  const Along a = along(sizes, shape.axes, shape.axes - 1);
  ROW_LOOP(plane, rows) {
    float* __restrict__ dx = bottom_diff + (long long)plane * shape.in_volume;
    for (int line = 0; line < shape.in_volume; line += a.in)
      for (int phase = 0; phase < a.stride && phase < a.in; ++phase)
        LANE_LOOP(j, (a.in - phase + a.stride - 1) / a.stride) dx[line + phase + j * a.stride] = 0;
    for (int tap = 0; tap < shape.taps; ++tap) {
      const int shift = tap % a.kernel * a.dilation - a.pad;  // place p sees position p * stride + shift
      const int begin = places_before(-shift, a.stride, a.out), end = places_before(a.in - shift, a.stride, a.out);
      const int phase = (shift % a.stride + a.stride) % a.stride, ahead = (shift - phase) / a.stride;
      const float* columns = top_diff + ((long long)plane * shape.taps + tap) * shape.out_volume;
      for (int place = 0; place < shape.out_volume / a.out; ++place) {
        const int line = line_seen(sizes, shape.axes, place, tap / a.kernel);
        if (line < 0) continue;
        const float* __restrict__ dy = columns + place * a.out - ahead;
        float* __restrict__ sums = dx + line * a.in + phase;
        LANE_LOOP(j, end + ahead) sums[j * a.stride] += j >= begin + ahead ? dy[j] : 0.0f;
      }
    }
  }
}
