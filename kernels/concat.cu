// Layers that copy runs of elements to another place: Concat, Slice, Tile, Crop.
//
//   Concat  y[:, begin_k : end_k] = x_k          dx_k = dy[:, begin_k : end_k]          one launch a bottom
//   Slice   y_k = x[:, begin_k : end_k]          dx[:, begin_k : end_k] = dy_k          one launch a top
//   Tile    y[o, t, i] = x[o, i]                 dx[o, i] = sum over t of dy[o, t, i]
//   Crop    y[j] = x[j + offset]                 dx[j + offset] = dy[j], 0 outside
//
// Layout: row-major.  A blob is rows of contiguous elements; long rows are cut into pieces, so that all threads have
// some.  Mapping: one thread per copied element, next to each other along a row; on the host a loop per piece.
// Tile adds in the order of the tiles, as the original does.  NaN is copied as is.  Nothing differs from the original.

// One row of a part, `pieces` * length elements, within a row of the whole, `full` elements, from `begin` on.
struct Part {
  int pieces, length, full, begin;
};

DEVICE long long place_in_whole(int r, Part part) {
  return (long long)(r / part.pieces) * part.full + part.begin + r % part.pieces * part.length;
}

// Copies one piece of a part into the whole.  rows = outer * pieces.  Overwrites those elements of whole.
extern "C" __global__ void concat_forward(int rows, Part part, const float* __restrict__ piece SIZE(rows * part.length),
                                          float* __restrict__ whole SIZE(rows / part.pieces * part.full)) {
  GRID_ELEMENT_LOOP(r, i, rows, part.length)
    whole[place_in_whole(r, part) + i] = piece[(long long)r * part.length + i];
}

// Copies one piece of a part out of the whole.  rows = outer * pieces.  Overwrites piece.
extern "C" __global__ void slice_forward(int rows, Part part,
                                         const float* __restrict__ whole SIZE(rows / part.pieces * part.full),
                                         float* __restrict__ piece SIZE(rows * part.length)) {
  GRID_ELEMENT_LOOP(r, i, rows, part.length)
    piece[(long long)r * part.length + i] = whole[place_in_whole(r, part) + i];
}

struct Tiles {
  int pieces, length, tiles;
};

// Copies one piece into one tile; the tiles of a piece follow each other, while it is in the cache.
// rows = outer * pieces * tiles.  Overwrites top.
extern "C" __global__ void tile_forward(int rows, Tiles t,
                                        const float* __restrict__ bottom SIZE(rows / t.tiles * t.length),
                                        float* __restrict__ top SIZE(rows * t.length)) {
  GRID_ELEMENT_LOOP(r, i, rows, t.length) {
    const int item = r / t.tiles / t.pieces, piece = r / t.tiles % t.pieces;
    const long long row = ((long long)item * t.tiles + r % t.tiles) * t.pieces + piece;
    top[row * t.length + i] = bottom[(long long)(r / t.tiles) * t.length + i];
  }
}

// Repeats single elements (length 1).  rows = outer.  Overwrites top.
extern "C" __global__ void tile_forward_single(int rows, int tiles, const float* __restrict__ bottom SIZE(rows),
                                               float* __restrict__ top SIZE(rows * tiles)) {
  GRID_ELEMENT_LOOP(r, i, rows, tiles) top[(long long)r * tiles + i] = bottom[r];
}

// Adds up the tiles of one piece.  rows = outer * pieces.  Overwrites bottom_diff; a thread reads only what it wrote.
extern "C" __global__ void tile_backward(int rows, Tiles t,
                                         const float* __restrict__ top_diff SIZE(rows * t.tiles * t.length),
                                         float* __restrict__ bottom_diff SIZE(rows * t.length)) {
  ROW_LOOP(r, rows) {
    const long long step = (long long)t.pieces * t.length;
    const float* dy = top_diff + (long long)(r / t.pieces) * t.tiles * step + r % t.pieces * t.length;
    float* dx = bottom_diff + (long long)r * t.length;
    LANE_LOOP(i, t.length) dx[i] = dy[i];
    for (int tile = 1; tile < t.tiles; ++tile) {
      const float* more = dy + tile * step;
      LANE_LOOP(i, t.length) dx[i] += more[i];
    }
  }
}

// Adds up the repetitions of single elements (length 1).  rows = outer.  Overwrites bottom_diff.
extern "C" __global__ void tile_backward_single(int rows, int tiles,
                                                const float* __restrict__ top_diff SIZE(rows * tiles),
                                                float* __restrict__ bottom_diff SIZE(rows)) {
  ROW_LOOP(r, rows) {
    float sum = 0;
    LANE_LOOP_SUM(i, tiles, sum) sum += top_diff[(long long)r * tiles + i];
    sum = block_sum(sum);
    if (FIRST_LANE) bottom_diff[r] = sum;
  }
}

// top_rows rows of top_length elements, out of bottom_rows rows of bottom_length elements, from `begin` on.
struct CropRows {
  int top_rows, top_length, bottom_rows, bottom_length, begin;
};

// Copies one row.  source says which bottom row a top row comes from.  Overwrites top.
extern "C" __global__ void crop_forward(CropRows c, const int* __restrict__ source SIZE(c.top_rows),
                                        const float* __restrict__ bottom SIZE(c.bottom_rows * c.bottom_length),
                                        float* __restrict__ top SIZE(c.top_rows * c.top_length)) {
  GRID_ELEMENT_LOOP(r, i, c.top_rows, c.top_length)
    top[(long long)r * c.top_length + i] = bottom[(long long)source[r] * c.bottom_length + c.begin + i];
}

// Copies one row back, with zeros around it.  target says which top row a bottom row went to, -1 where it was cut off.
// Overwrites bottom_diff.
extern "C" __global__ void crop_backward(CropRows c, const int* __restrict__ target SIZE(c.bottom_rows),
                                         const float* __restrict__ top_diff SIZE(c.top_rows * c.top_length),
                                         float* __restrict__ bottom_diff SIZE(c.bottom_rows * c.bottom_length)) {
  ROW_LOOP(r, c.bottom_rows) {
    const int kept = target[r] < 0 ? 0 : c.top_length, after = c.bottom_length - c.begin - kept;
    float* dx = bottom_diff + (long long)r * c.bottom_length;
    const float* dy = top_diff + (long long)(target[r] < 0 ? 0 : target[r]) * c.top_length;
    LANE_LOOP(i, c.begin) dx[i] = 0;
    LANE_LOOP(i, kept) dx[c.begin + i] = dy[i];
    LANE_LOOP(i, after) dx[c.begin + kept + i] = 0;
  }
}
