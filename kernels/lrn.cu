// Local response normalization: divides each element by a power of the squares around it.
//
//   scale = k + share * sum over the window of x^2           y = x * scale^-beta          share = alpha / window's size
//   dx = dy * scale^-beta - 2 share beta * x * sum over the window of r            r = dy * x * scale^(-beta - 1)
//
// Memory: (outer, length, inner), row-major.  A window covers `size` places along `length`, itself in the middle;
// what lies outside counts as 0.  Across channels that is all: (num, channels, height * width).  Within a channel the
// window is a square: sums along the rows of pixels first (lrn_row_sums), then down the columns, as (planes, height,
// width).
// Threads: a block per `tile` positions of one outer item, a thread per position, a loop over `length`; what belongs to
// a position between the loops is read only by the thread that wrote it.  Elsewhere a thread per element.
// Every window is summed from its own elements, while the original adds the next and takes away the last, which
// carries the rounding of large elements along.  Backward takes y from x and scale; the original reads it.
// scale <= 0 gives infinity or NaN, as there.

struct Lrn {
  int outer, length, inner, size, tile;
};

// Where a tile's positions lie.
struct LrnTile {
  long long first;  // of its elements, at place 0
  int width;        // positions in it; the last of an item may be short
};

DEVICE LrnTile lrn_tile(int r, Lrn s) {
  const int tiles = (s.inner + s.tile - 1) / s.tile, begin = r % tiles * s.tile;
  return {(long long)(r / tiles) * s.length * s.inner + begin, s.inner - begin < s.tile ? s.inner - begin : s.tile};
}

// scale^-0.75.  Two square roots are faster than the power, and as accurate.
DEVICE float lrn_usual_power(float scale) { return 1.0f / (sqrtf(scale) * sqrtf(sqrtf(scale))); }

// Runs a loop with `power` as scale^-beta; two loops, so that each becomes vectors.
#define WITH_POWER(power, beta, ...)                                         \
  if ((beta) == 0.75f) {                                                     \
    const auto power = [](float scale) { return lrn_usual_power(scale); };   \
    __VA_ARGS__                                                              \
  } else {                                                                   \
    const auto power = [beta](float scale) { return vpow(scale, -(beta)); }; \
    __VA_ARGS__                                                              \
  }

// Lanes from begin up to, not including, end; lane i runs in the thread of element i.
#ifdef __CUDACC__
#define LANE_RANGE(i, begin, end) LANE_LOOP(i, end) if (i >= (begin))
#else
#define LANE_RANGE(i, begin, end) for (int i = (begin); i < (end); ++i)
#endif

DEVICE float lrn_term(int squared, float value) { return squared ? value * value : value; }

// Sums a window at each position of a tile: the middle one first, then pairs around it.  `step` is from one place to
// the next.  A neighbour outside the blob is read as the middle one and counts as 0.
DEVICE void lrn_window(int width, int place, int length, int size, int step, int squared, const float* field,
                       float* __restrict__ sum) {
  LANE_LOOP(i, width) sum[i] = lrn_term(squared, field[i]);
  for (int distance = 1; distance <= size / 2; ++distance) {
    const bool inside_below = distance <= place, inside_above = distance < length - place;
    const float* below = inside_below ? field - (long long)distance * step : field;
    const float* above = inside_above ? field + (long long)distance * step : field;
    LANE_LOOP(i, width) {
      const float pair = inside_below ? lrn_term(squared, below[i]) : 0.0f;
      sum[i] += pair + (inside_above ? lrn_term(squared, above[i]) : 0.0f);
    }
  }
}

// Computes one tile, with windows along `length` over the squares of `field`, or over `field` itself if not `squared`.
// Overwrites scale and top.
extern "C" __global__ void lrn_forward(int rows, Lrn s, int squared, float k, float share, float beta,
                                       const float* __restrict__ bottom SIZE(s.outer * s.length * s.inner),
                                       const float* __restrict__ field SIZE(s.outer * s.length * s.inner),
                                       float* __restrict__ scale SIZE(s.outer * s.length * s.inner),
                                       float* __restrict__ top SIZE(s.outer * s.length * s.inner)) {
  ROW_LOOP(r, rows) {
    const LrnTile tile = lrn_tile(r, s);
    for (int place = 0; place < s.length; ++place) {
      const long long at = tile.first + (long long)place * s.inner;
      const float* __restrict__ x = bottom + at;
      float* __restrict__ y = top + at;
      float* __restrict__ sum = scale + at;
      lrn_window(tile.width, place, s.length, s.size, s.inner, squared, field + at, sum);
      LANE_LOOP(i, tile.width) sum[i] = k + share * sum[i];
      WITH_POWER(power, beta, LANE_LOOP(i, tile.width) y[i] = x[i] * power(sum[i]);)
    }
  }
}

// Computes one tile's gradient, with windows across channels.  Overwrites bottom_diff, and scratch: for each tile the
// r of `size` channels in turn, and their sum.
extern "C" __global__ void lrn_backward_across(int rows, Lrn s, float share, float beta,
                                               const float* __restrict__ bottom SIZE(s.outer * s.length * s.inner),
                                               const float* __restrict__ scale SIZE(s.outer * s.length * s.inner),
                                               const float* __restrict__ top_diff SIZE(s.outer * s.length * s.inner),
                                               float* __restrict__ scratch SIZE(rows * (s.size + 1) * s.tile),
                                               float* __restrict__ bottom_diff SIZE(s.outer * s.length * s.inner)) {
  ROW_LOOP(r, rows) {
    const LrnTile tile = lrn_tile(r, s);
    float* sum = scratch + (long long)r * (s.size + 1) * s.tile;
    float* ring = sum + s.tile;
    for (int next = 0; next < s.length + s.size / 2; ++next) {
      if (next < s.length) {
        const long long at = tile.first + (long long)next * s.inner;
        float* __restrict__ ratio = ring + next % s.size * s.tile;
        WITH_POWER(power, beta, LANE_LOOP(i, tile.width) {
          ratio[i] = top_diff[at + i] * bottom[at + i] * power(scale[at + i]) / scale[at + i];
        })
      }
      const int c = next - s.size / 2;
      if (c < 0) continue;
      const float* middle = ring + c % s.size * s.tile;
      LANE_LOOP(i, tile.width) sum[i] = middle[i];
      for (int distance = 1; distance <= s.size / 2; ++distance) {
        const bool inside_below = distance <= c, inside_above = distance < s.length - c;
        const float* below = inside_below ? ring + (c - distance) % s.size * s.tile : middle;
        const float* above = inside_above ? ring + (c + distance) % s.size * s.tile : middle;
        LANE_LOOP(i, tile.width) sum[i] += (inside_below ? below[i] : 0.0f) + (inside_above ? above[i] : 0.0f);
      }
      const long long at = tile.first + (long long)c * s.inner;
      const float slope = 2.0f * share * beta;
      WITH_POWER(power, beta, LANE_LOOP(i, tile.width) {
        bottom_diff[at + i] = top_diff[at + i] * power(scale[at + i]) - slope * bottom[at + i] * sum[i];
      })
    }
  }
}

// r, which the windows of the backward pass sum.  One iteration owns one element.  Overwrites ratio.
extern "C" __global__ void lrn_ratio(int n, float beta, const float* __restrict__ bottom SIZE(n),
                                     const float* __restrict__ scale SIZE(n),
                                     const float* __restrict__ top_diff SIZE(n),
                                     float* __restrict__ ratio SIZE(n)) {
  WITH_POWER(power, beta, ELEMENT_LOOP(i, n) ratio[i] = top_diff[i] * bottom[i] * power(scale[i]) / scale[i];)
}

// Sums `size` neighbours along a row of pixels, their squares if `squared`.  Overwrites sums.
extern "C" __global__ void lrn_row_sums(int rows, int width, int size, int squared,
                                        const float* __restrict__ field SIZE(rows * width),
                                        float* __restrict__ sums SIZE(rows * width)) {
  ROW_LOOP(r, rows) {
    const float* __restrict__ x = field + (long long)r * width;
    float* __restrict__ sum = sums + (long long)r * width;
    LANE_LOOP(i, width) sum[i] = lrn_term(squared, x[i]);
    for (int distance = 1; distance <= size / 2; ++distance) {
      LANE_RANGE(i, distance, width) sum[i] += lrn_term(squared, x[i - distance]);
      LANE_LOOP(i, width - distance) sum[i] += lrn_term(squared, x[i + distance]);
    }
  }
}

// Computes one tile's gradient from the row sums of r.  Overwrites bottom_diff.
extern "C" __global__ void lrn_backward_within(int rows, Lrn s, float share, float beta,
                                               const float* __restrict__ bottom SIZE(s.outer * s.length * s.inner),
                                               const float* __restrict__ scale SIZE(s.outer * s.length * s.inner),
                                               const float* __restrict__ top_diff SIZE(s.outer * s.length * s.inner),
                                               const float* __restrict__ sums SIZE(s.outer * s.length * s.inner),
                                               float* __restrict__ bottom_diff SIZE(s.outer * s.length * s.inner)) {
  ROW_LOOP(r, rows) {
    const LrnTile tile = lrn_tile(r, s);
    for (int h = 0; h < s.length; ++h) {
      const long long at = tile.first + (long long)h * s.inner;
      float* __restrict__ dx = bottom_diff + at;
      lrn_window(tile.width, h, s.length, s.size, s.inner, 0, sums + at, dx);
      const float slope = 2.0f * share * beta;
      WITH_POWER(power, beta, LANE_LOOP(i, tile.width) {
        dx[i] = top_diff[at + i] * power(scale[at + i]) - slope * bottom[at + i] * dx[i];
      })
    }
  }
}
