// Reduction over the last axes, and ArgMax.
//
//   SUM     y = coeff sum x          dx = coeff dy                MEAN is SUM with coeff / dim
//   ASUM    y = coeff sum |x|        dx = coeff dy sign(x)        sign(0) = sign(NaN) = 0, as in the original
//   SUMSQ   y = coeff sum x^2        dx = 2 coeff dy x
//   ArgMax  the places, or the values, of the top_k largest x
//
// Layout: Reduction (num, dim); ArgMax (outer, channels, inner); row-major.
// Mapping: Reduction, a block per chunk of a row, and where a row has several chunks another block adds them up;
// ArgMax, inner == 1, a block per chunk of a row, then one per row; *_spatial, a block per tile of positions, a thread
// per position, with what belongs to a position in a scratch buffer between the loops over the channels.
// ArgMax: of equal values the one with the larger index comes first, as in the original, and 0 equals -0.  NaN comes
// before everything, so that it stays visible; the original's order is undefined there.

enum { SUM = 1, ASUM = 2, SUMSQ = 3 };

struct Chunks {
  int operation, dim, chunk, chunks;  // chunks = dim / chunk, rounded up
};

// Reduces one chunk and multiplies by coeff.  rows = num * chunks.  Overwrites partial.
extern "C" __global__ void reduction_forward(int rows, Chunks c, float coeff,
                                             const float* __restrict__ bottom SIZE(rows / c.chunks * c.dim),
                                             float* __restrict__ partial SIZE(rows)) {
  ROW_LOOP(r, rows) {
    const int begin = r % c.chunks * c.chunk, left = c.dim - begin, length = left < c.chunk ? left : c.chunk;
    const float* x = bottom + (long long)(r / c.chunks) * c.dim + begin;
    float sum = 0;
    if (c.operation == SUM) {
      LANE_LOOP_SUM(i, length, sum) sum += x[i];
    } else if (c.operation == ASUM) {
      LANE_LOOP_SUM(i, length, sum) sum += fabsf(x[i]);
    } else {
      LANE_LOOP_SUM(i, length, sum) sum += x[i] * x[i];
    }
    sum = block_sum(sum);
    if (FIRST_LANE) partial[r] = coeff * sum;
  }
}

// Adds up the chunks of one row and multiplies by coeff.  Overwrites top.
extern "C" __global__ void reduction_forward_sum(int rows, int chunks, float coeff,
                                                 const float* __restrict__ partial SIZE(rows * chunks),
                                                 float* __restrict__ top SIZE(rows)) {
  ROW_LOOP(r, rows) {
    float sum = 0;
    LANE_LOOP_SUM(i, chunks, sum) sum += partial[(long long)r * chunks + i];
    sum = block_sum(sum);
    if (FIRST_LANE) top[r] = coeff * sum;
  }
}

// Computes the gradient of one chunk; SUM does not read bottom.  rows = num * chunks.  Overwrites bottom_diff.
extern "C" __global__ void reduction_backward(int rows, Chunks c, float coeff,
                                              const float* __restrict__ bottom SIZE(rows / c.chunks * c.dim),
                                              const float* __restrict__ top_diff SIZE(rows / c.chunks),
                                              float* __restrict__ bottom_diff SIZE(rows / c.chunks * c.dim)) {
  ROW_LOOP(r, rows) {
    const int begin = r % c.chunks * c.chunk, left = c.dim - begin, length = left < c.chunk ? left : c.chunk;
    const long long first = (long long)(r / c.chunks) * c.dim + begin;
    const float* __restrict__ x = bottom + first;
    float* __restrict__ dx = bottom_diff + first;
    const float factor = coeff * top_diff[r / c.chunks];
    if (c.operation == SUM) {
      LANE_LOOP(i, length) dx[i] = factor;
    } else if (c.operation == ASUM) {
      LANE_LOOP(i, length) dx[i] = factor * ((x[i] > 0 ? 1.0f : 0.0f) - (x[i] < 0 ? 1.0f : 0.0f));
    } else {
      LANE_LOOP(i, length) dx[i] = 2 * factor * x[i];
    }
  }
}

enum { LEAST = -2147483647 - 1, MOST = 2147483647 };

// A whole number that is larger where x is, with NaN above all.
DEVICE int rank(float x) {
  const float value = x + 0.0f;  // makes -0 to 0
#ifdef __CUDACC__
  const int bits = __float_as_int(value);
#else
  int bits;
  __builtin_memcpy(&bits, &value, 4);
#endif
  return value != value ? MOST : bits ^ ((bits >> 31) & MOST);
}

// True if element `at` of rank `key` comes after the element `last_at` of rank `last` in the order of the result.
DEVICE bool follows(int key, int at, int last, int last_at) {
  return (key < last) | ((key == last) & (at < last_at));
}

// Places and values lie `step` apart from item to item, from places_at and values_at on; a negative one is not wanted.
// `chunk`: how many elements of a row (inner == 1), or positions of an item, one block takes.
struct ArgMaxShape {
  int outer, channels, inner, top_k, chunk, step, places_at, values_at;
};

DEVICE int argmax_chunks(ArgMaxShape s) { return (s.channels + s.chunk - 1) / s.chunk; }

// Finds the largest rank of one chunk (inner == 1).  rows = outer * chunks.  Overwrites key.
extern "C" __global__ void argmax_forward_chunks(int rows, ArgMaxShape s,
                                                 const float* __restrict__ bottom SIZE(s.outer * s.channels),
                                                 int* __restrict__ key SIZE(rows)) {
  ROW_LOOP(r, rows) {
    const int begin = r % argmax_chunks(s) * s.chunk, left = s.channels - begin;
    const float* x = bottom + (long long)(r / argmax_chunks(s)) * s.channels + begin;
    int largest = LEAST;
    LANE_LOOP_MAX(i, left < s.chunk ? left : s.chunk, largest) largest = rank(x[i]) > largest ? rank(x[i]) : largest;
    largest = ~block_min(~largest);
    if (FIRST_LANE) key[r] = largest;
  }
}

// Takes one row's top_k elements (inner == 1): each time the largest of the chunks' largest, whose chunk then looks for
// its next.  rows = outer.  Overwrites top, and key, of which a thread reads only what it wrote.
extern "C" __global__ void argmax_forward(int rows, int chunks, ArgMaxShape s,
                                          const float* __restrict__ bottom SIZE(rows * s.channels),
                                          int* __restrict__ key SIZE(rows * chunks),
                                          float* __restrict__ top SIZE(rows * s.step)) {
  ROW_LOOP(r, rows) {
    const float* x = bottom + (long long)r * s.channels;
    int* keys = key + (long long)r * chunks;
    float* y = top + (long long)r * s.step;
    int last = MOST, last_at = s.channels;
    for (int k = 0; k < s.top_k; ++k) {
      int largest = LEAST, chunk = -1, at = -1, next = LEAST;
      LANE_LOOP_MAX(j, chunks, largest) largest = keys[j] > largest ? keys[j] : largest;
      largest = ~block_min(~largest);
      LANE_LOOP_MAX(j, chunks, chunk) chunk = keys[j] == largest && j > chunk ? j : chunk;
      chunk = ~block_min(~chunk);
      const int begin = chunk * s.chunk, left = s.channels - begin, length = left < s.chunk ? left : s.chunk;
      LANE_LOOP_MAX(i, length, at) {
        const bool fits = (rank(x[begin + i]) == largest) & follows(largest, begin + i, last, last_at);
        at = fits && begin + i > at ? begin + i : at;
      }
      at = ~block_min(~at);
      LANE_LOOP_MAX(i, length, next) {
        const int value = follows(rank(x[begin + i]), begin + i, largest, at) ? rank(x[begin + i]) : LEAST;
        next = value > next ? value : next;
      }
      next = ~block_min(~next);
      LANE_LOOP(j, chunks) keys[j] = j == chunk ? next : keys[j];
      if (FIRST_LANE && s.places_at >= 0) y[s.places_at + k] = (float)at;
      if (FIRST_LANE && s.values_at >= 0) y[s.values_at + k] = x[at];
      last = largest;
      last_at = at;
    }
  }
}

// Sorts out the top_k elements of one tile of positions.  rows = outer * tiles.  Overwrites top (outer, top_k, inner),
// and key, at, last and last_at, which are scratch.
extern "C" __global__ void argmax_forward_spatial(
    int rows, ArgMaxShape s, const float* __restrict__ bottom SIZE(s.outer * s.channels * s.inner),
    int* __restrict__ key SIZE(s.outer * s.inner), int* __restrict__ at SIZE(s.outer * s.inner),
    int* __restrict__ last SIZE(s.outer * s.inner), int* __restrict__ last_at SIZE(s.outer * s.inner),
    float* __restrict__ top SIZE(s.outer * s.top_k * s.inner)) {
  ROW_LOOP(r, rows) {
    const int tiles = (s.inner + s.chunk - 1) / s.chunk, item = r / tiles, begin = r % tiles * s.chunk;
    const int left = s.inner - begin, width = left < s.chunk ? left : s.chunk;
    const float* x = bottom + (long long)item * s.channels * s.inner + begin;
    const long long position = (long long)item * s.inner + begin;
    int* __restrict__ most = key + position;
    int* __restrict__ where = at + position;
    int* __restrict__ bound = last + position;
    int* __restrict__ bound_at = last_at + position;
    for (int k = 0; k < s.top_k; ++k) {
      LANE_LOOP(i, width) {
        most[i] = LEAST;
        where[i] = 0;
      }
      for (int c = 0; c < s.channels; ++c) {
        const float* plane = x + (long long)c * s.inner;
        LANE_LOOP(i, width) {
          const int value = rank(plane[i]);
          const bool takes = (value >= most[i]) & ((k == 0) | follows(value, c, bound[i], bound_at[i]));
          most[i] = takes ? value : most[i];
          where[i] = takes ? c : where[i];
        }
      }
      float* y = top + ((long long)item * s.top_k + k) * s.inner + begin;
      LANE_LOOP(i, width) {
        y[i] = s.values_at >= 0 ? x[(long long)where[i] * s.inner + i] : (float)where[i];
        bound[i] = most[i];
        bound_at[i] = where[i];
      }
    }
  }
}
