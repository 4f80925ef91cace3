// Normalization by mean and variance: what BatchNorm and MVN compute.
//
//   y = (x - mean) * inverse                 inverse = 1 / (sqrt(variance + eps_variance) + eps_deviation)
//   dx = (dy - mean of dy - y * mean of (dy * y)) * inverse
//   not `scaled`: y = x - mean, dx = dy - mean of dy
//
// Memory: (num, channels, inner), row-major; mean and variance go over num and inner, for each channel by itself.
// `statistics` holds four rows of `channels` floats: mean, rest, variance, inverse.
// Threads: a block per channel, its threads share the elements.  Where inner is 1 (*_flat) a channel's elements lie far
// apart, so a block takes a tile of channels, a thread per channel, and walks over num.
// Accuracy: the first pass sums differences from a typical element and gives a mean that is off by rounding; the second
// sums the deviations d from it and their squares, so that mean + rest is the mean beyond a float's digits, and
// variance = E[d^2] - E[d]^2 loses none, however far from zero the values lie.  (The original has the rounded mean.)
// A NaN or an infinity makes its channel NaN.
// Backward takes y from x again, so a layer in place must keep its bottom.  There bottom_diff may be top_diff.

struct Normalization {
  int num, channels, inner, scaled, tile;
};

// Where the elements of item n and channel c begin.
DEVICE int channel_at(Normalization s, int n, int c) { return (n * s.channels + c) * s.inner; }

DEVICE int smaller(int a, int b) { return a < b ? a : b; }

// The elements of channel c: on CUDA one thread each, whatever inner is; on the host in runs that become vectors, short
// enough for a sum of their sums to be accurate.  INTO names what the loop adds to.
#ifdef __CUDACC__
#define CHANNEL_LOOP(at, s, c, pragma)      \
  LANE_LOOP(at##_lane, (s).num * (s).inner) \
    if (const int at = channel_at(s, at##_lane / (s).inner, c) + at##_lane % (s).inner; true)
#define INTO(...)
#else
#define RUN 4096
#define CHANNEL_LOOP(at, s, c, pragma)                              \
  for (int at##_n = 0; at##_n < (s).num; ++at##_n)                  \
    for (int at##_i = 0; at##_i < (s).inner; at##_i += RUN)         \
      pragma for (int at = channel_at(s, at##_n, c) + at##_i;       \
                  at < channel_at(s, at##_n, c) + smaller(at##_i + RUN, (s).inner); ++at)
#define INTO(...) HOST_PRAGMA(omp simd reduction(+ : __VA_ARGS__))
#endif

// The middle one of a channel's first, middle and last element: likely near the mean, if that is far from zero.
DEVICE float typical(Normalization s, int c, const float* bottom) {
  const float a = bottom[channel_at(s, 0, c)], b = bottom[channel_at(s, s.num / 2, c) + s.inner / 2];
  const float z = bottom[channel_at(s, s.num - 1, c) + s.inner - 1];
  const float low = a < b ? a : b, high = a < b ? b : a;
  return z < low ? low : (z > high ? high : z);
}

// What is known of a channel.
struct Moments {
  float mean, rest, variance, inverse;
};

// From the sums of d = x - mean and of d^2.
DEVICE Moments moments_of(Normalization s, float eps_variance, float eps_deviation, float mean, float sum,
                          float squares) {
  const float count = (float)s.num * s.inner, rest = sum / count;
  float variance = squares / count - rest * rest;
  variance = variance < 0.0f ? 0.0f : variance;
  const float inverse = 1.0f / (sqrtf(variance + eps_variance) + eps_deviation);
  return {mean, rest, variance, s.scaled ? inverse : 1.0f};
}

DEVICE void store(Moments m, int channels, int c, float* statistics) {
  statistics[c] = m.mean;
  statistics[channels + c] = m.rest;
  statistics[2 * channels + c] = m.variance;
  statistics[3 * channels + c] = m.inverse;
}

DEVICE Moments load(const float* statistics, int channels, int c) {
  return {statistics[c], statistics[channels + c], statistics[2 * channels + c], statistics[3 * channels + c]};
}

// Computes one channel's statistics and normalizes it.  Overwrites statistics and top.
extern "C" __global__ void normalize_forward(Normalization s, float eps_variance, float eps_deviation,
                                             const float* __restrict__ bottom SIZE(s.num * s.channels * s.inner),
                                             float* __restrict__ statistics SIZE(4 * s.channels),
                                             float* __restrict__ top SIZE(s.num * s.channels * s.inner)) {
  ROW_LOOP(c, s.channels) {
    const float near = typical(s, c, bottom);
    float sum = 0, squares = 0;
    CHANNEL_LOOP(at, s, c, INTO(sum)) sum += bottom[at] - near;
    const float mean = near + block_sum(sum) / ((float)s.num * s.inner);
    sum = 0;
    CHANNEL_LOOP(at, s, c, INTO(sum, squares)) {
      const float d = bottom[at] - mean;
      sum += d;
      squares += d * d;
    }
    sum = block_sum(sum);
    squares = block_sum(squares);
    const Moments m = moments_of(s, eps_variance, eps_deviation, mean, sum, squares);
    if (FIRST_LANE) store(m, s.channels, c, statistics);
    CHANNEL_LOOP(at, s, c, ) top[at] = ((bottom[at] - m.mean) - m.rest) * m.inverse;
  }
}

// Computes one channel's gradient.  Overwrites bottom_diff.
extern "C" __global__ void normalize_backward(Normalization s,
                                              const float* __restrict__ bottom SIZE(s.num * s.channels * s.inner),
                                              const float* __restrict__ statistics SIZE(4 * s.channels),
                                              const float* top_diff SIZE(s.num * s.channels * s.inner),
                                              float* bottom_diff SIZE(s.num * s.channels * s.inner)) {
  ROW_LOOP(c, s.channels) {
    const Moments m = load(statistics, s.channels, c);
    float sum = 0, dot = 0;
    CHANNEL_LOOP(at, s, c, INTO(sum, dot)) {
      sum += top_diff[at];
      dot += top_diff[at] * ((bottom[at] - m.mean) - m.rest);
    }
    const float count = (float)s.num * s.inner;
    const float mean = block_sum(sum) / count;
    dot = block_sum(dot) * m.inverse * m.inverse / count;  // once more, for the factor y
    const float slope = s.scaled ? dot : 0.0f;
    CHANNEL_LOOP(at, s, c, INDEPENDENT) {
      const float d = (bottom[at] - m.mean) - m.rest;
      bottom_diff[at] = (top_diff[at] - mean - d * slope) * m.inverse;
    }
  }
}

// How many channels the tile from `first` on has; the last may be short.
DEVICE int tile_width(Normalization s, int first) { return smaller(s.channels - first, s.tile); }

// Computes the statistics of one tile of channels where inner == 1; normalize_by_flat follows.  Overwrites statistics.
extern "C" __global__ void normalize_statistics_flat(int rows, Normalization s, float eps_variance, float eps_deviation,
                                                     const float* __restrict__ bottom SIZE(s.num * s.channels),
                                                     float* __restrict__ statistics SIZE(4 * s.channels)) {
  ROW_LOOP(r, rows) {
    const int first = r * s.tile, width = tile_width(s, first);
    float* mean = statistics + first;
    float* sum = mean + s.channels;
    float* squares = sum + s.channels;
    float* near = squares;
    LANE_LOOP(i, width) {
      mean[i] = sum[i] = 0;
      near[i] = typical(s, first + i, bottom);
    }
    for (int n = 0; n < s.num; ++n) {
      const float* x = bottom + n * s.channels + first;
      LANE_LOOP(i, width) mean[i] += x[i] - near[i];
    }
    LANE_LOOP(i, width) {
      mean[i] = near[i] + mean[i] / (float)s.num;
      squares[i] = 0;
    }
    for (int n = 0; n < s.num; ++n) {
      const float* x = bottom + n * s.channels + first;
      LANE_LOOP(i, width) {
        const float d = x[i] - mean[i];
        sum[i] += d;
        squares[i] += d * d;
      }
    }
    LANE_LOOP(i, width) {
      store(moments_of(s, eps_variance, eps_deviation, mean[i], sum[i], squares[i]), s.channels, first + i, statistics);
    }
  }
}

// Computes the gradient of one tile of channels where inner == 1.  Overwrites bottom_diff, and the scratch mean, slope.
extern "C" __global__ void normalize_backward_flat(int rows, Normalization s,
                                                   const float* __restrict__ bottom SIZE(s.num * s.channels),
                                                   const float* __restrict__ statistics SIZE(4 * s.channels),
                                                   const float* top_diff SIZE(s.num * s.channels),
                                                   float* __restrict__ mean SIZE(s.channels),
                                                   float* __restrict__ slope SIZE(s.channels),
                                                   float* bottom_diff SIZE(s.num * s.channels)) {
  ROW_LOOP(r, rows) {
    const int first = r * s.tile, end = first + tile_width(s, first);
    LANE_LOOP(i, end - first) mean[first + i] = slope[first + i] = 0;
    for (int n = 0; n < s.num; ++n) {
      LANE_LOOP(i, end - first) {
        const int c = first + i, at = n * s.channels + c;
        const Moments m = load(statistics, s.channels, c);
        mean[c] += top_diff[at];
        slope[c] += top_diff[at] * ((bottom[at] - m.mean) - m.rest);
      }
    }
    LANE_LOOP(i, end - first) {
      const float inverse = load(statistics, s.channels, first + i).inverse;
      mean[first + i] /= (float)s.num;
      slope[first + i] = s.scaled ? slope[first + i] * inverse * inverse / (float)s.num : 0.0f;
    }
    for (int n = 0; n < s.num; ++n) {
      LANE_LOOP(i, end - first) {
        const int c = first + i, at = n * s.channels + c;
        const Moments m = load(statistics, s.channels, c);
        const float d = (bottom[at] - m.mean) - m.rest;
        bottom_diff[at] = (top_diff[at] - mean[c] - d * slope[c]) * m.inverse;
      }
    }
  }
}

// Adds one batch's statistics to the stored sums.  One iteration owns one channel, the first also the sums' weight.
extern "C" __global__ void batch_norm_accumulate(int channels, float fraction, float correction,
                                                 const float* __restrict__ statistics SIZE(4 * channels),
                                                 float* __restrict__ mean SIZE(channels),
                                                 float* __restrict__ variance SIZE(channels),
                                                 float* __restrict__ weight SIZE(1)) {
  ELEMENT_LOOP(c, channels) {
    const Moments m = load(statistics, channels, c);
    mean[c] = fraction * mean[c] + (m.mean + m.rest);
    variance[c] = fraction * variance[c] + correction * m.variance;
    if (c == 0) weight[0] = fraction * weight[0] + 1.0f;
  }
}

// Makes statistics of the stored sums.  One iteration owns one channel.  Overwrites statistics.
extern "C" __global__ void batch_norm_stored(int channels, float eps, const float* __restrict__ mean SIZE(channels),
                                             const float* __restrict__ variance SIZE(channels),
                                             const float* __restrict__ weight SIZE(1),
                                             float* __restrict__ statistics SIZE(4 * channels)) {
  ELEMENT_LOOP(c, channels) {
    const float factor = weight[0] == 0.0f ? 0.0f : 1.0f / weight[0];
    const float scaled = variance[c] * factor;
    store({mean[c] * factor, 0.0f, scaled, 1.0f / sqrtf(scaled + eps)}, channels, c, statistics);
  }
}

// y = (x - mean) * inverse by given statistics, or, as the gradient, y = x * inverse.
// Runs of `inner` elements belong to one channel.  One iteration owns one element.  Overwrites top.
extern "C" __global__ void normalize_by(Normalization s, int centred,
                                        const float* __restrict__ statistics SIZE(4 * s.channels),
                                        const float* bottom SIZE(s.num * s.channels * s.inner),
                                        float* top SIZE(s.num * s.channels * s.inner)) {
  GRID_ELEMENT_LOOP(run, i, s.num * s.channels, s.inner) {
    const Moments m = load(statistics, s.channels, run % s.channels);
    const int at = run * s.inner + i;
    top[at] = (centred ? (bottom[at] - m.mean) - m.rest : bottom[at]) * m.inverse;
  }
}

// The same for inner == 1.  One iteration owns one element.  Overwrites top.
extern "C" __global__ void normalize_by_flat(Normalization s, int centred,
                                             const float* __restrict__ statistics SIZE(4 * s.channels),
                                             const float* bottom SIZE(s.num * s.channels),
                                             float* top SIZE(s.num * s.channels)) {
  GRID_ELEMENT_LOOP(n, c, s.num, s.channels) {
    const Moments m = load(statistics, s.channels, c);
    const int at = n * s.channels + c;
    top[at] = (centred ? (bottom[at] - m.mean) - m.rest : bottom[at]) * m.inverse;
  }
}
