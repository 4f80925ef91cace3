// Spatial pyramid pooling, the way back.  Going forward it is the pooling of pooling.cu, once a level.
//
//   MAX, STOCHASTIC  bottom_diff[i] = sum over the levels of top_diff of the window whose maximum (or pick) i is
//   AVE              bottom_diff[i] = sum over the levels of top_diff of the window around i / (kernel_h kernel_w)
//
// Memory: planes x height x width, and planes x bins x bins a level, row-major.  mask: where in its plane a window's
// maximum is, from pooling.cu; negative if there is none.
// The windows of a level tile the plane, so an element has one, and this is cheaper than pooling.cu's search for those
// around it.  The levels are added in their order, as in the original.  NaN shows.
// Mapping: MAX, one thread per window, which alone writes into it; AVE, one thread per element of a window.

// Adds one level's gradients where the maxima were.  n = planes * bins * bins, windows = bins * bins, plane = height *
// width.  Adds to bottom_diff.
extern "C" __global__ void spp_max_backward(int n, int windows, int plane, const int* __restrict__ mask SIZE(n),
                                            const float* __restrict__ top_diff SIZE(n),
                                            float* __restrict__ bottom_diff SIZE(n / windows * plane)) {
  ELEMENT_LOOP(i, n) {
    if (mask[i] >= 0) bottom_diff[(long long)(i / windows) * plane + mask[i]] += top_diff[i];
  }
}

struct Level {
  int height, width, bins, kernel_h, kernel_w, pad_h, pad_w, first;
};

// Spreads one level's gradients over the windows, one row of a window an iteration of the outer loop; windows stick out
// by their padding.  rows = planes * height * bins.  Overwrites bottom_diff at the first level, adds to it at others.
extern "C" __global__ void spp_ave_backward(int rows, Level p,
                                            const float* __restrict__ top_diff SIZE(rows / p.height * p.bins),
                                            float* __restrict__ bottom_diff SIZE(rows / p.bins * p.width)) {
  GRID_ELEMENT_LOOP(r, i, rows, p.kernel_w) {
    const int line = r / p.bins, column = r % p.bins;
    const int row = (line % p.height + p.pad_h) / p.kernel_h;
    const float diff = top_diff[(line / p.height * p.bins + row) * p.bins + column] / (float)(p.kernel_h * p.kernel_w);
    const int w = column * p.kernel_w - p.pad_w + i;
    if (w >= 0 && w < p.width) {
      float* dx = bottom_diff + (long long)line * p.width;
      dx[w] = p.first ? diff : dx[w] + diff;
    }
  }
}
