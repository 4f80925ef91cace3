// Accuracy: the share of labelled positions whose label is among the top_k scores.
//
//   hit = (number of classes k, other than the label, with x[k] >= x[label]) < top_k
//
// Layout: scores (outer, channels, inner), classes (outer, inner), all row-major; a position is an (outer, inner) pair.
// Mapping: inner == 1, a block per position and a thread per class; *_spatial, a thread per position; the counts, a
// block each.
// Ties count against the label, as in the original: of equal scores none is a hit, unless top_k covers all of them.
// NaN: it is never >= anything, so a label whose own score is NaN is a hit, as in the original.
// `classes` comes from label_classes in loss.cu; a negative one (ignored, or no class) is no hit and is not counted.

// Decides one position of contiguous scores.  Overwrites hits.
extern "C" __global__ void accuracy_forward(int rows, int channels, int top_k,
                                            const float* __restrict__ scores SIZE(rows * channels),
                                            const int* __restrict__ classes SIZE(rows),
                                            int* __restrict__ hits SIZE(rows)) {
  ROW_LOOP(r, rows) {
    const int label = classes[r];
    const float* x = scores + (long long)r * channels;
    const float own = x[label < 0 ? 0 : label];
    int better = 0;
    LANE_LOOP_SUM(c, channels, better) better += c != label && x[c] >= own;
    better = block_sum(better);
    if (FIRST_LANE) hits[r] = label >= 0 && better < top_k;
  }
}

// Decides one position of scores that lie `inner` apart.  n = outer * inner.  Overwrites hits.
extern "C" __global__ void accuracy_forward_spatial(int n, int channels, int inner, int top_k,
                                                    const float* __restrict__ scores SIZE(n * channels),
                                                    const int* __restrict__ classes SIZE(n),
                                                    int* __restrict__ hits SIZE(n)) {
  ELEMENT_LOOP(i, n) {
    const int label = classes[i];
    const float* x = scores + (long long)(i / inner) * channels * inner + i % inner;
    const float own = x[(long long)(label < 0 ? 0 : label) * inner];
    int better = 0;
    for (int c = 0; c < channels; ++c) better += (c != label) & (x[(long long)c * inner] >= own);
    hits[i] = label >= 0 && better < top_k;
  }
}

// Divides the hits by the number of labels; 0 if there are none.  One row.  Overwrites accuracy.
extern "C" __global__ void accuracy_forward_mean(int rows, int positions, const int* classes SIZE(positions),
                                                 const int* hits SIZE(positions), float* accuracy SIZE(rows)) {
  ROW_LOOP(r, rows) {
    int labels = 0, right = 0;
    LANE_LOOP_SUM(i, positions, labels) labels += classes[i] >= 0;
    LANE_LOOP_SUM(i, positions, right) right += hits[i];
    labels = block_sum(labels);
    right = block_sum(right);
    if (FIRST_LANE) accuracy[r] = labels == 0 ? 0 : (float)right / (float)labels;
  }
}

// The same among the labels of class r.  rows = channels.  Overwrites accuracy.
extern "C" __global__ void accuracy_forward_per_class(int rows, int positions, const int* classes SIZE(positions),
                                                      const int* hits SIZE(positions), float* accuracy SIZE(rows)) {
  ROW_LOOP(r, rows) {
    int labels = 0, right = 0;
    LANE_LOOP_SUM(i, positions, labels) labels += classes[i] == r;
    LANE_LOOP_SUM(i, positions, right) right += classes[i] == r ? hits[i] : 0;
    labels = block_sum(labels);
    right = block_sum(right);
    if (FIRST_LANE) accuracy[r] = labels == 0 ? 0 : (float)right / (float)labels;
  }
}
