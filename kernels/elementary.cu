// Elementary functions of each element: the top has the bottom's shape.
//
//   AbsVal      y = |x|                                    dx = dy * sign(x), 0 at x = 0
//   Power       y = (scale * x + shift)^power              dx = dy * power * scale * y / (scale * x + shift)
//   Exp         y = outer * e^(inner * x)                  dx = dy * inner * y
//   Log         y = log(scale * x + shift) * factor        dx = dy * scale * factor / (scale * x + shift)
//   Threshold   y = x > threshold ? 1 : 0                  none
//   Clip        y = max(low, min(x, high))                 dx = low <= x <= high ? dy : 0
//
// Layout: any; n elements.  Mapping: one thread per element.
// NaN in x gives NaN in y, save in Threshold (0); Clip of the original turns NaN into low.
// Where scale * x + shift is 0, Power's gradient is its limit; the original's is 0 / 0.
// In place (top is bottom, top_diff is bottom_diff) is allowed in every kernel here, hence no __restrict__ on these.

// Computes one element of y.  Overwrites top.
extern "C" __global__ void abs_forward(int n, const float* bottom SIZE(n), float* top SIZE(n)) {
  ELEMENT_LOOP(i, n) top[i] = fabsf(bottom[i]);
}

// Computes one element of dx from x.  Overwrites bottom_diff.
extern "C" __global__ void abs_backward(int n, const float* __restrict__ bottom SIZE(n), const float* top_diff SIZE(n),
                                        float* bottom_diff SIZE(n)) {
  ELEMENT_LOOP(i, n) {
    const float x = bottom[i];
    bottom_diff[i] = top_diff[i] * (x > 0 ? 1.0f : (x < 0 ? -1.0f : 0.0f));
  }
}

// Computes one element of y.  Overwrites top.
extern "C" __global__ void power_forward(int n, float power, float scale, float shift, const float* bottom SIZE(n),
                                         float* top SIZE(n)) {
  ELEMENT_LOOP(i, n) top[i] = vpow(scale * bottom[i] + shift, power);
}

// The same for power 1.  Overwrites top.
extern "C" __global__ void power_forward_linear(int n, float scale, float shift, const float* bottom SIZE(n),
                                                float* top SIZE(n)) {
  ELEMENT_LOOP(i, n) top[i] = scale * bottom[i] + shift;
}

// The same for power 2.  Overwrites top.
extern "C" __global__ void power_forward_square(int n, float scale, float shift, const float* bottom SIZE(n),
                                                float* top SIZE(n)) {
  ELEMENT_LOOP(i, n) {
    const float base = scale * bottom[i] + shift;
    top[i] = base * base;
  }
}

// Computes one element of dx from x and y; `factor` is power * scale, `at_zero` the derivative where the base is 0.
// Overwrites bottom_diff.
extern "C" __global__ void power_backward(int n, float factor, float scale, float shift, float at_zero,
                                          const float* __restrict__ bottom SIZE(n),
                                          const float* __restrict__ top SIZE(n), const float* top_diff SIZE(n),
                                          float* bottom_diff SIZE(n)) {
  ELEMENT_LOOP(i, n) {
    const float base = scale * bottom[i] + shift, slope = factor * (top[i] / base);
    bottom_diff[i] = top_diff[i] * (base == 0 ? at_zero : slope);
  }
}

// The same for power 1.  Overwrites bottom_diff.
extern "C" __global__ void power_backward_linear(int n, float factor, const float* top_diff SIZE(n),
                                                 float* bottom_diff SIZE(n)) {
  ELEMENT_LOOP(i, n) bottom_diff[i] = factor * top_diff[i];
}

// The same for power 2.  Overwrites bottom_diff.
extern "C" __global__ void power_backward_square(int n, float factor, float scale, float shift,
                                                 const float* __restrict__ bottom SIZE(n),
                                                 const float* top_diff SIZE(n), float* bottom_diff SIZE(n)) {
  ELEMENT_LOOP(i, n) bottom_diff[i] = top_diff[i] * (factor * (scale * bottom[i] + shift));
}

// Computes one element of y.  Overwrites top.
extern "C" __global__ void exp_forward(int n, float inner, float outer, const float* bottom SIZE(n),
                                       float* top SIZE(n)) {
  ELEMENT_LOOP(i, n) top[i] = outer * vexp(inner * bottom[i]);
}

// Computes one element of dx from y.  Overwrites bottom_diff.
extern "C" __global__ void exp_backward(int n, float inner, const float* __restrict__ top SIZE(n),
                                        const float* top_diff SIZE(n), float* bottom_diff SIZE(n)) {
  ELEMENT_LOOP(i, n) bottom_diff[i] = top_diff[i] * top[i] * inner;
}

// Computes one element of y.  Overwrites top.
extern "C" __global__ void log_forward(int n, float scale, float shift, float factor, const float* bottom SIZE(n),
                                       float* top SIZE(n)) {
  ELEMENT_LOOP(i, n) top[i] = factor * vlog(scale * bottom[i] + shift);
}

// Computes one element of dx from x; `factor` has the scale in it.  Overwrites bottom_diff.
extern "C" __global__ void log_backward(int n, float scale, float shift, float factor,
                                        const float* __restrict__ bottom SIZE(n), const float* top_diff SIZE(n),
                                        float* bottom_diff SIZE(n)) {
  ELEMENT_LOOP(i, n) bottom_diff[i] = top_diff[i] * (factor / (scale * bottom[i] + shift));
}

// Computes one element of y.  Overwrites top.
extern "C" __global__ void threshold_forward(int n, float threshold, const float* bottom SIZE(n), float* top SIZE(n)) {
  ELEMENT_LOOP(i, n) top[i] = bottom[i] > threshold ? 1.0f : 0.0f;
}

// Computes one element of y.  Overwrites top.
extern "C" __global__ void clip_forward(int n, float low, float high, const float* bottom SIZE(n), float* top SIZE(n)) {
  ELEMENT_LOOP(i, n) {
    const float x = bottom[i], below = x > high ? high : x;
    top[i] = below < low ? low : below;
  }
}

// Computes one element of dx from x.  Overwrites bottom_diff.
extern "C" __global__ void clip_backward(int n, float low, float high, const float* __restrict__ bottom SIZE(n),
                                         const float* top_diff SIZE(n), float* bottom_diff SIZE(n)) {
  ELEMENT_LOOP(i, n) bottom_diff[i] = (bottom[i] >= low) & (bottom[i] <= high) ? top_diff[i] : 0.0f;
}
