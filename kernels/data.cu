// What a data layer does to a batch on the device:  top = (pixel - mean) * scale,  perhaps mirrored.
//
// pixels and top are (num, channels, height, width); the host has cut out each item's window already.
// placement is (num, 3): row and column where the window begins in its image, and 1 to mirror it, else 0.
// mean is (channels, mean_height, mean_width): whole images, from which the same window is taken, or 1 x 1, one value a
// channel (zeros where nothing is subtracted).
// One row of a row kernel is one line of one channel of one item; its lanes are the line's pixels.
// NaN passes through.  The results equal the original's bit for bit: the same two operations in the same order.

struct ImageShape {
  int num, channels, height, width, mean_height, mean_width;
};

template <typename Pixel>
DEVICE void transform_line(int row, ImageShape shape, float scale, const float* mean, const int* placement,
                           const Pixel* pixels, float* top) {
  const int width = shape.width;
  const int c = row / shape.height % shape.channels;
  const int* place = placement + row / shape.height / shape.channels * 3;
  const bool whole_image = shape.mean_height * shape.mean_width > 1;
  const int mean_row = c * shape.mean_height + (whole_image ? place[0] + row % shape.height : 0);
  const float* means = mean + (long long)mean_row * shape.mean_width + (whole_image ? place[1] : 0);
  const float value = means[0];
  const Pixel* line = pixels + (long long)row * width;
  float* out = top + (long long)row * width;
  if (place[2]) {
    LANE_LOOP(w, width) out[width - 1 - w] = ((float)line[w] - (whole_image ? means[w] : value)) * scale;
  } else {
    LANE_LOOP(w, width) out[w] = ((float)line[w] - (whole_image ? means[w] : value)) * scale;
  }
}

// Transforms one line of bytes.  Overwrites its line of top, and nobody else writes there.
extern "C" __global__ void transform_bytes(
    int rows, ImageShape shape, float scale,
    const float* mean SIZE(shape.channels * shape.mean_height * shape.mean_width),
    const int* placement SIZE(3 * shape.num),
    const unsigned char* __restrict__ pixels SIZE(shape.num * shape.channels * shape.height * shape.width),
    float* __restrict__ top SIZE(shape.num * shape.channels * shape.height * shape.width)) {
  ROW_LOOP(r, rows) transform_line(r, shape, scale, mean, placement, pixels, top);
}

// The same for images of floats.
extern "C" __global__ void transform_floats(
    int rows, ImageShape shape, float scale,
    const float* mean SIZE(shape.channels * shape.mean_height * shape.mean_width),
    const int* placement SIZE(3 * shape.num),
    const float* __restrict__ pixels SIZE(shape.num * shape.channels * shape.height * shape.width),
    float* __restrict__ top SIZE(shape.num * shape.channels * shape.height * shape.width)) {
  ROW_LOOP(r, rows) transform_line(r, shape, scale, mean, placement, pixels, top);
}
