// SoftmaxWithLoss: the mean negative logarithm of the probability that softmax.cu gave to each label; and what every
// loss shares, labels and sums.
//
//   E = sum over labelled positions of -log(max(p[label], FLT_MIN)) / normalizer
//   dx[c] = (p[c] - (c == label)) * dE / normalizer                                        0 where the label is ignored
//
// Layout: probabilities (outer, channels, inner), labels and classes (outer, inner), all row-major; a position is an
// (outer, inner) pair.  Mapping: a block per chunk of positions, a thread per position; going back, a block per row.
// Labels are floats.  The fraction is cut off, as the original does; one that is ignored becomes the class IGNORED, one
// that is no class (NaN too) becomes OUTSIDE.  Neither is used as an index, both contribute nothing; the original reads
// and writes outside the blob for the latter.  What was OUTSIDE is reported per chunk, for the host to raise.
// The normalizer stays on the device: dE / normalizer needs what the forward pass counted.
// NaN in a labelled position's probability makes the loss NaN.

enum { IGNORED = -1, OUTSIDE = -2 };

#define SMALLEST 1.17549435e-38f  // FLT_MIN, which nvcc does not define by itself

struct LabelRule {
  int positions, chunk, classes, has_ignore_label, ignore_label;
};

// Turns one chunk of labels into classes, counts those that are one, and finds the first that is neither a class nor
// ignored (`positions` if there is none).  Overwrites classes, valid and outside.  Accuracy uses it too.
extern "C" __global__ void label_classes(int rows, LabelRule rule, const float* __restrict__ label SIZE(rule.positions),
                                         int* __restrict__ classes SIZE(rule.positions), int* valid SIZE(rows),
                                         int* outside SIZE(rows)) {
  ROW_LOOP(r, rows) {
    const int begin = r * rule.chunk, left = rule.positions - begin;
    int count = 0, first = rule.positions;
    LANE_LOOP(i, left < rule.chunk ? left : rule.chunk) {
      const float whole = truncf(label[begin + i]);
      const bool ignored = rule.has_ignore_label && whole == (float)rule.ignore_label;
      const bool fits = whole >= 0 && whole < (float)rule.classes;
      const int c = ignored ? IGNORED : fits ? (int)whole : OUTSIDE;
      classes[begin + i] = c;
      count += c >= 0;
      if (c == OUTSIDE && begin + i < first) first = begin + i;
    }
    count = block_sum(count);
    first = block_min(first);
    if (FIRST_LANE) {
      valid[r] = count;
      outside[r] = first;
    }
  }
}

struct LossShape {
  int outer, channels, inner, chunk;
};

// Sums the losses of one chunk of positions.  Overwrites partial.
extern "C" __global__ void softmax_loss_forward(int rows, LossShape shape,
                                                const float* prob SIZE(shape.outer * shape.channels * shape.inner),
                                                const int* classes SIZE(shape.outer * shape.inner),
                                                float* partial SIZE(rows)) {
  ROW_LOOP(r, rows) {
    const int begin = r * shape.chunk, left = shape.outer * shape.inner - begin;
    float sum = 0;
    LANE_LOOP(i, left < shape.chunk ? left : shape.chunk) {
      const int position = begin + i, c = classes[position];
      if (c < 0) continue;
      const int item = position / shape.inner, s = position % shape.inner;
      const float p = prob[((long long)item * shape.channels + c) * shape.inner + s];
      sum -= logf(p < SMALLEST ? SMALLEST : p);
    }
    sum = block_sum(sum);
    if (FIRST_LANE) partial[r] = sum;
  }
}

// Adds up partial losses and divides by the normalizer: `fixed`, or the number of valid labels where that is 0; at
// least 1, so that a batch without labels has the loss 0.  One row.  Overwrites normalizer and loss.  Other losses with
// a `normalization` use it too.
extern "C" __global__ void loss_forward_sum(int rows, int partials, int chunks, float fixed,
                                            const float* partial SIZE(partials), const int* valid SIZE(chunks),
                                            float* normalizer SIZE(1), float* loss SIZE(1)) {
  ROW_LOOP(r, rows) {
    float sum = 0;
    int count = 0;
    LANE_LOOP_SUM(i, partials, sum) sum += partial[i];
    LANE_LOOP_SUM(i, chunks, count) count += valid[i];
    sum = block_sum(sum);
    count = block_sum(count);
    const float divisor = fixed > 0 ? fixed : (float)count;
    if (FIRST_LANE) {
      normalizer[r] = divisor > 1 ? divisor : 1;
      loss[r] = sum / normalizer[r];
    }
  }
}

// Adds up partial losses and multiplies by `scale`; for losses with a fixed one.  One row.  Overwrites loss.
extern "C" __global__ void loss_forward_scale(int rows, int partials, float scale, const float* partial SIZE(partials),
                                              float* loss SIZE(1)) {
  ROW_LOOP(r, rows) {
    float sum = 0;
    LANE_LOOP_SUM(i, partials, sum) sum += partial[i];
    sum = block_sum(sum);
    if (FIRST_LANE) loss[r] = sum * scale;
  }
}

// Computes the gradient of one item with one label (inner == 1).  Overwrites bottom_diff.
extern "C" __global__ void softmax_loss_backward(
    int rows, int channels, const float* __restrict__ prob SIZE(rows * channels),
    const int* __restrict__ classes SIZE(rows), const float* __restrict__ normalizer SIZE(1),
    const float* __restrict__ top_diff SIZE(1), float* __restrict__ bottom_diff SIZE(rows * channels)) {
  const float factor = top_diff[0] / normalizer[0];
  ROW_LOOP(r, rows) {
    const int label = classes[r];
    const long long first = (long long)r * channels;
    LANE_LOOP(c, channels) bottom_diff[first + c] = label < 0 ? 0 : (prob[first + c] - (c == label)) * factor;
  }
}

// Computes the gradient of one item's plane of one class.  rows = outer * channels.  Overwrites bottom_diff.
extern "C" __global__ void softmax_loss_backward_spatial(
    int rows, int channels, int inner, const float* __restrict__ prob SIZE(rows * inner),
    const int* __restrict__ classes SIZE(rows / channels * inner), const float* __restrict__ normalizer SIZE(1),
    const float* __restrict__ top_diff SIZE(1), float* __restrict__ bottom_diff SIZE(rows * inner)) {
  const float factor = top_diff[0] / normalizer[0];
  ROW_LOOP(r, rows) {
    const int item = r / channels, c = r % channels;
    const int* labels = classes + (long long)item * inner;
    const long long first = (long long)r * inner;
    LANE_LOOP(s, inner)
      bottom_diff[first + s] = labels[s] < 0 ? 0 : (prob[first + s] - (c == labels[s])) * factor;
  }
}
