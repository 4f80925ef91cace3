// Bias and Scale: a factor f, a summand b, or both, for each channel; a channel is an index over some of x's axes.
//
//   Bias    y = x + b                 dx = dy         db[c] = sum over the elements of channel c of dy
//   Scale   y = x f, y = x f + b      dx = dy f       df[c] = sum over the elements of channel c of dy x
//
// Layout: x and y as (outer, channels, inner), row-major; f and b have `channels` elements.  Two mappings:
//   *_planes    inner > 1:  rows of `inner` elements, each of one channel; row r has channel r modulo `channels`
//   *_columns   inner == 1: rows of channels side by side
// Either may cut its rows further, where there is only one.  Forward: a thread per element (on the host, rows become
// vectors).  The sums go in two steps without atomics, and so repeat bit for bit: partial sums, then one a channel.
// In place (top is bottom, top_diff is bottom_diff) is allowed in the forward kernels, hence no __restrict__ on these.
// NaN and infinity come through.  Scale's dx is its forward kernel, applied to dy.
// The original does this with one BLAS call a plane, and gemv over vectors of ones; sums differ in their order only.

// Computes one element of y = x f.  Overwrites top.
extern "C" __global__ void scale_forward_planes(int rows, int columns, int channels,
                                                const float* bottom SIZE(rows * columns),
                                                const float* __restrict__ factor SIZE(channels),
                                                float* top SIZE(rows * columns)) {
  GRID_ELEMENT_LOOP(r, i, rows, columns) top[r * columns + i] = bottom[r * columns + i] * factor[r % channels];
}

// Computes one element of y = x f + b.  Overwrites top.
extern "C" __global__ void scale_bias_forward_planes(int rows, int columns, int channels,
                                                     const float* bottom SIZE(rows * columns),
                                                     const float* __restrict__ factor SIZE(channels),
                                                     const float* __restrict__ bias SIZE(channels),
                                                     float* top SIZE(rows * columns)) {
  GRID_ELEMENT_LOOP(r, i, rows, columns)
    top[r * columns + i] = bottom[r * columns + i] * factor[r % channels] + bias[r % channels];
}

// Computes one element of y = x + b.  Overwrites top.
extern "C" __global__ void bias_forward_planes(int rows, int columns, int channels,
                                               const float* bottom SIZE(rows * columns),
                                               const float* __restrict__ bias SIZE(channels),
                                               float* top SIZE(rows * columns)) {
  GRID_ELEMENT_LOOP(r, i, rows, columns) top[r * columns + i] = bottom[r * columns + i] + bias[r % channels];
}

// The same three where neighbours differ in channel.  The channels fill `period` rows, one after the other.

// Computes one element of y = x f.  Overwrites top.
extern "C" __global__ void scale_forward_columns(int rows, int columns, int period,
                                                 const float* bottom SIZE(rows * columns),
                                                 const float* __restrict__ factor SIZE(period * columns),
                                                 float* top SIZE(rows * columns)) {
  GRID_ELEMENT_LOOP(r, i, rows, columns)
    top[r * columns + i] = bottom[r * columns + i] * factor[r % period * columns + i];
}

// Computes one element of y = x f + b.  Overwrites top.
extern "C" __global__ void scale_bias_forward_columns(int rows, int columns, int period,
                                                      const float* bottom SIZE(rows * columns),
                                                      const float* __restrict__ factor SIZE(period * columns),
                                                      const float* __restrict__ bias SIZE(period * columns),
                                                      float* top SIZE(rows * columns)) {
  GRID_ELEMENT_LOOP(r, i, rows, columns) {
    const int c = r % period * columns + i;
    top[r * columns + i] = bottom[r * columns + i] * factor[c] + bias[c];
  }
}

// Computes one element of y = x + b.  Overwrites top.
extern "C" __global__ void bias_forward_columns(int rows, int columns, int period,
                                                const float* bottom SIZE(rows * columns),
                                                const float* __restrict__ bias SIZE(period * columns),
                                                float* top SIZE(rows * columns)) {
  GRID_ELEMENT_LOOP(r, i, rows, columns)
    top[r * columns + i] = bottom[r * columns + i] + bias[r % period * columns + i];
}

// One row sums its own dy x.  Overwrites partial.
extern "C" __global__ void scale_backward_planes(int rows, int columns,
                                                 const float* __restrict__ bottom SIZE(rows * columns),
                                                 const float* __restrict__ top_diff SIZE(rows * columns),
                                                 float* __restrict__ partial SIZE(rows)) {
  ROW_LOOP(r, rows) {
    const float *x = bottom + r * columns, *dy = top_diff + r * columns;
    float sum = 0;
    LANE_LOOP_SUM(i, columns, sum) sum += dy[i] * x[i];
    sum = block_sum(sum);
    if (FIRST_LANE) partial[r] = sum;
  }
}

// One row sums its own dy.  Overwrites partial.
extern "C" __global__ void bias_backward_planes(int rows, int columns,
                                                const float* __restrict__ top_diff SIZE(rows * columns),
                                                float* __restrict__ partial SIZE(rows)) {
  ROW_LOOP(r, rows) {
    const float* dy = top_diff + r * columns;
    float sum = 0;
    LANE_LOOP_SUM(i, columns, sum) sum += dy[i];
    sum = block_sum(sum);
    if (FIRST_LANE) partial[r] = sum;
  }
}

// How the sums over columns are cut: a row of work is `chunk` items (of `outer`) by `tile` channels.
struct ColumnSums {
  int outer, channels, chunk, chunks, tile, tiles;
};

// One row sums dy x down the items of its chunk, a thread a channel.  Overwrites partial, or adds to it if `add`
// (then it is the diff itself, and there is one chunk); nobody else writes to these elements.
extern "C" __global__ void scale_backward_columns(int rows, ColumnSums cut, int add,
                                                  const float* __restrict__ bottom SIZE(cut.outer * cut.channels),
                                                  const float* __restrict__ top_diff SIZE(cut.outer * cut.channels),
                                                  float* __restrict__ partial SIZE(cut.chunks * cut.channels)) {
  ROW_LOOP(r, rows) {
    const int chunk = r / cut.tiles, first = r % cut.tiles * cut.tile, left = cut.channels - first;
    const int begin = chunk * cut.chunk, end = begin + cut.chunk < cut.outer ? begin + cut.chunk : cut.outer;
    const int count = left < cut.tile ? left : cut.tile;
    float* sums = partial + chunk * cut.channels + first;
    if (!add) LANE_LOOP(c, count) sums[c] = 0;
    for (int item = begin; item < end; ++item) {
      const float *x = bottom + item * cut.channels + first, *dy = top_diff + item * cut.channels + first;
      LANE_LOOP(c, count) sums[c] += dy[c] * x[c];
    }
  }
}

// One row sums dy down the items of its chunk, a thread a channel.  Overwrites partial, or adds to it if `add`.
extern "C" __global__ void bias_backward_columns(int rows, ColumnSums cut, int add,
                                                 const float* __restrict__ top_diff SIZE(cut.outer * cut.channels),
                                                 float* __restrict__ partial SIZE(cut.chunks * cut.channels)) {
  ROW_LOOP(r, rows) {
    const int chunk = r / cut.tiles, first = r % cut.tiles * cut.tile, left = cut.channels - first;
    const int begin = chunk * cut.chunk, end = begin + cut.chunk < cut.outer ? begin + cut.chunk : cut.outer;
    const int count = left < cut.tile ? left : cut.tile;
    float* sums = partial + chunk * cut.channels + first;
    if (!add) LANE_LOOP(c, count) sums[c] = 0;
    for (int item = begin; item < end; ++item) {
      const float* dy = top_diff + item * cut.channels + first;
      LANE_LOOP(c, count) sums[c] += dy[c];
    }
  }
}

// One row adds up the partial sums of one channel.  Overwrites diff (a bottom's), or adds to it if `add` (a param's).
extern "C" __global__ void scale_backward_sum(int channels, int parts, int add,
                                              const float* __restrict__ partial SIZE(parts * channels),
                                              float* __restrict__ diff SIZE(channels)) {
  ROW_LOOP(c, channels) {
    float sum = 0;
    LANE_LOOP_SUM(i, parts, sum) sum += partial[i * channels + c];
    sum = block_sum(sum);
    if (FIRST_LANE) diff[c] = add ? diff[c] + sum : sum;
  }
}
