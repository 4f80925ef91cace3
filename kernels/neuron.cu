// Layers that treat each element alone: the top has the bottom's shape.
//
//   ReLU      y = max(x, 0) + slope * min(x, 0)            dx = dy * (x > 0 ? 1 : slope)
//   Dropout   y = x * kept / (1 - ratio)                   dx = dy * kept / (1 - ratio)
//   ELU       y = x > 0 ? x : alpha * (e^x - 1)            dx = dy * (x > 0 ? 1 : y + alpha)
//   Sigmoid   y = 1 / (1 + e^-x)                           dx = dy * y * (1 - y)
//   TanH      y = tanh x                                   dx = dy * (1 - y^2)
//   BNLL      y = log(1 + e^x)                             dx = dy / (1 + e^-x)
//   Swish     y = x * s, s = 1 / (1 + e^(-beta * x))       dx = dy * (beta * y + s * (1 - beta * y))
//
// Layout: any; n elements.  Mapping: one thread per element.
// Ties: at x = 0 ReLU's gradient is slope, ELU's is alpha, as in the original.  NaN in x gives NaN in y.
// In place (top is bottom, top_diff is bottom_diff) is allowed in every kernel here, hence no __restrict__ on these.
// Unlike the original, Dropout computes its random bits where it uses them, from seed, pass and index: the same on
// every device, whatever the number of threads, and what is kept of them for the way back is one byte an element.
// ELU near zero and BNLL far below it keep the digits that the original's e^x - 1 and 1 + e^x lose.

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

// Writes out[i] = scale * in[i], for a dropout that scales in TEST.  Overwrites; in place is allowed.
extern "C" __global__ void dropout_scale(int n, float scale, const float* in SIZE(n), float* out SIZE(n)) {
  ELEMENT_LOOP(i, n) out[i] = scale * in[i];
}

// Computes one element of y.  Overwrites top.
extern "C" __global__ void elu_forward(int n, float alpha, const float* bottom SIZE(n), float* top SIZE(n)) {
  ELEMENT_LOOP(i, n) {
    const float x = bottom[i], below = alpha * vexpm1(x);
    top[i] = x > 0 ? x : below;
  }
}

// Computes one element of dx; `bottom` is x, or y where y overwrote it.  Overwrites bottom_diff.
extern "C" __global__ void elu_backward(int n, float alpha, const float* __restrict__ bottom SIZE(n),
                                        const float* __restrict__ top SIZE(n), const float* top_diff SIZE(n),
                                        float* bottom_diff SIZE(n)) {
  ELEMENT_LOOP(i, n) bottom_diff[i] = top_diff[i] * (bottom[i] > 0 ? 1.0f : top[i] + alpha);
}

// Computes one element of y.  Overwrites top.
extern "C" __global__ void sigmoid_forward(int n, const float* bottom SIZE(n), float* top SIZE(n)) {
  ELEMENT_LOOP(i, n) top[i] = vsigmoid(bottom[i]);
}

// Computes one element of dx from y.  Overwrites bottom_diff.
extern "C" __global__ void sigmoid_backward(int n, const float* __restrict__ top SIZE(n), const float* top_diff SIZE(n),
                                            float* bottom_diff SIZE(n)) {
  ELEMENT_LOOP(i, n) bottom_diff[i] = top_diff[i] * (top[i] * (1.0f - top[i]));
}

// Computes one element of y.  Overwrites top.
extern "C" __global__ void tanh_forward(int n, const float* bottom SIZE(n), float* top SIZE(n)) {
  ELEMENT_LOOP(i, n) top[i] = vtanh(bottom[i]);
}

// Computes one element of dx from y.  Overwrites bottom_diff.
extern "C" __global__ void tanh_backward(int n, const float* __restrict__ top SIZE(n), const float* top_diff SIZE(n),
                                         float* bottom_diff SIZE(n)) {
  ELEMENT_LOOP(i, n) bottom_diff[i] = top_diff[i] * (1.0f - top[i] * top[i]);
}

// Computes one element of y.  Overwrites top.
extern "C" __global__ void bnll_forward(int n, const float* bottom SIZE(n), float* top SIZE(n)) {
  ELEMENT_LOOP(i, n) top[i] = vsoftplus(bottom[i]);
}

// Computes one element of dx from x.  Overwrites bottom_diff.
extern "C" __global__ void bnll_backward(int n, const float* __restrict__ bottom SIZE(n), const float* top_diff SIZE(n),
                                         float* bottom_diff SIZE(n)) {
  ELEMENT_LOOP(i, n) bottom_diff[i] = top_diff[i] * vsigmoid(bottom[i]);
}

// Computes one element of y.  Overwrites top.
extern "C" __global__ void swish_forward(int n, float beta, const float* bottom SIZE(n), float* top SIZE(n)) {
  ELEMENT_LOOP(i, n) top[i] = bottom[i] * vsigmoid(beta * bottom[i]);
}

// Computes one element of dx from x.  Overwrites bottom_diff.
extern "C" __global__ void swish_backward(int n, float beta, const float* __restrict__ bottom SIZE(n),
                                          const float* top_diff SIZE(n), float* bottom_diff SIZE(n)) {
  ELEMENT_LOOP(i, n) {
    const float x = bottom[i], s = vsigmoid(beta * x), above = beta * x * s;
    bottom_diff[i] = top_diff[i] * (above + s * (1.0f - above));
  }
}
