// SigmoidCrossEntropyLoss: the cross entropy of each element's target t and the sigmoid p of its score x.
//
//   E = -sum over elements of (t log p + (1 - t) log(1 - p)) / normalizer
//     = sum over elements of (max(x, 0) - x t + log(1 + e^-|x|)) / normalizer
//   dx = (p - t) dE / normalizer                                                          0 where the target is ignored
//
// Memory: any shape, n elements.  Threads: a block per chunk of elements, whose threads share them; going back, a
// thread per element.  The partial sums meet in loss.cu's loss_forward_sum, always in the same order.
// A target is ignored if it is ignore_label with its fraction cut off.  NaN in x or t makes the loss NaN.
// Unlike the original, the sigmoid is not kept for the way back, and log(1 + e) does not lose a small e.

struct SigmoidLoss {
  int count, chunk, has_ignore_label, ignore_label;
};

DEVICE bool sigmoid_loss_ignores(SigmoidLoss rule, float target) {
  return (rule.has_ignore_label != 0) & (truncf(target) == (float)rule.ignore_label);
}

// Sums the losses of one chunk, and counts its elements that are not ignored.  Overwrites partial and valid.
extern "C" __global__ void sigmoid_loss_forward(int rows, SigmoidLoss rule,
                                                const float* __restrict__ score SIZE(rule.count),
                                                const float* __restrict__ target SIZE(rule.count),
                                                float* partial SIZE(rows), int* valid SIZE(rows)) {
  ROW_LOOP(r, rows) {
    const int begin = r * rule.chunk, left = rule.count - begin, width = left < rule.chunk ? left : rule.chunk;
    float sum = 0;
    int count = 0;
    LANE_LOOP_SUM(i, width, sum) {
      const float x = score[begin + i], t = target[begin + i];
      const float loss = (x < 0 ? 0.0f : x) - x * t + vlog1p(vexp(x < 0 ? x : -x));
      sum += sigmoid_loss_ignores(rule, t) ? 0.0f : loss;
    }
    LANE_LOOP_SUM(i, width, count) count += !sigmoid_loss_ignores(rule, target[begin + i]);
    sum = block_sum(sum);
    count = block_sum(count);
    if (FIRST_LANE) {
      partial[r] = sum;
      valid[r] = count;
    }
  }
}

// Computes one element's gradient.  Overwrites bottom_diff.
extern "C" __global__ void sigmoid_loss_backward(SigmoidLoss rule, const float* __restrict__ score SIZE(rule.count),
                                                 const float* __restrict__ target SIZE(rule.count),
                                                 const float* __restrict__ normalizer SIZE(1),
                                                 const float* __restrict__ top_diff SIZE(1),
                                                 float* __restrict__ bottom_diff SIZE(rule.count)) {
  const float factor = top_diff[0] / normalizer[0];
  ELEMENT_LOOP(i, rule.count) {
    const float diff = (vsigmoid(score[i]) - target[i]) * factor;
    bottom_diff[i] = sigmoid_loss_ignores(rule, target[i]) ? 0.0f : diff;
  }
}
