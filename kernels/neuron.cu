// Layers that treat each element alone: the top has the bottom's shape.
//
//   ReLU      y = max(x, 0) + slope * min(x, 0)            dx = dy * (x > 0 ? 1 : slope)
//   Dropout   y = x * kept / (1 - ratio)                   dx = dy * kept / (1 - ratio)
//
// Layout: any; n elements.  Mapping: one thread per element.
// Ties: at x = 0 ReLU's gradient is slope, as in the original.  NaN in x gives NaN in y.
// In place (top is bottom, top_diff is bottom_diff) is allowed in every kernel here, hence no __restrict__ on these.
// Unlike the original, Dropout computes its random bits where it uses them, from seed, pass and index: the same on
// every device, whatever the number of threads, and what is kept of them for the way back is one byte an element.

// Computes one element of y.  Overwrites top.
extern "C" __global__ void relu_forward(int n, float slope, const float* bottom SIZE(n), float* top SIZE(n)) {
  ELEMENT_LOOP(i, n) {
    const float x = bottom[i];
    top[i] = (x > 0 ? x : 0.0f) + slope * (x > 0 ? 0.0f : x);
  }
}

// Computes one element of dx; `bottom` is x, or y where y overwrote it (the sign is the same).  Overwrites bottom_diff.
extern "C" __global__ void relu_backward(int n, float slope, const float* __restrict__ bottom SIZE(n),
                                         const float* top_diff SIZE(n), float* bottom_diff SIZE(n)) {
  ELEMENT_LOOP(i, n) bottom_diff[i] = top_diff[i] * (bottom[i] > 0 ? 1.0f : slope);
}

// Drops element i if its 32 random bits are below `drop_below`, else scales it.  Overwrites kept and top.
extern "C" __global__ void dropout_forward(int n, unsigned drop_below, float scale, unsigned seed_low,
                                           unsigned seed_high, const int* __restrict__ passes SIZE(1),
                                           const float* bottom SIZE(n), unsigned char* __restrict__ kept SIZE(n),
                                           float* top SIZE(n)) {
  const unsigned counter = (unsigned)passes[0];
  ELEMENT_LOOP(i, n) {
    const bool keep = random_bits(seed_low, seed_high, counter, (unsigned)i) >= drop_below;
    kept[i] = keep;
    top[i] = bottom[i] * (keep ? scale : 0.0f);
  }
}

// Scales the gradient of a kept element, stops that of a dropped one.  Overwrites bottom_diff.
extern "C" __global__ void dropout_backward(int n, float scale, const unsigned char* __restrict__ kept SIZE(n),
                                            const float* top_diff SIZE(n), float* bottom_diff SIZE(n)) {
  ELEMENT_LOOP(i, n) bottom_diff[i] = top_diff[i] * (kept[i] ? scale : 0.0f);
}
