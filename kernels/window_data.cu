// What WindowData does to a batch on the device:  top = (pixel - mean) * scale  inside each item's region, 0 outside.
//
// pixels and top are (num, channels, size, size); the host has warped and mirrored each window already, and put it where
// it belongs: region is (num, 4), the first row and the row after the last, then the same for the columns.
// mean is (channels, mean_height, mean_width): whole images, of which the square that begins at (offset, offset) is
// subtracted, or 1 x 1, one value a channel (zeros where nothing is subtracted).
// One row of a row kernel is one line of one channel of one item; its lanes are the line's pixels.
// The same two operations in the same order as in the original.

struct WindowShape {
  int num, channels, size, mean_height, mean_width, offset;
};

// Transforms one line.  Overwrites its line of top, and nobody else writes there.
extern "C" __global__ void transform_windows(
    int rows, WindowShape shape, float scale,
    const float* mean SIZE(shape.channels * shape.mean_height * shape.mean_width),
    const int* region SIZE(4 * shape.num),
    const unsigned char* __restrict__ pixels SIZE(shape.num * shape.channels * shape.size * shape.size),
    float* __restrict__ top SIZE(shape.num * shape.channels * shape.size * shape.size)) {
  ROW_LOOP(r, rows) {
    const int size = shape.size;
    const int h = r % size, c = r / size % shape.channels;
    const int* place = region + r / size / shape.channels * 4;
    const bool whole_image = shape.mean_height * shape.mean_width > 1;
    const int mean_row = c * shape.mean_height + (whole_image ? shape.offset + h : 0);
    const float* means = mean + (long long)mean_row * shape.mean_width + (whole_image ? shape.offset : 0);
    const float value = means[0];
    const bool inside = h >= place[0] && h < place[1];
    const int begin = inside ? place[2] : 0, end = inside ? place[3] : 0;
    const unsigned char* line = pixels + (long long)r * size;
    float* out = top + (long long)r * size;
    LANE_LOOP(w, size) {
      const float result = ((float)line[w] - (whole_image ? means[w] : value)) * scale;
      out[w] = w >= begin && w < end ? result : 0.0f;
    }
  }
}
