// One step of an LSTM, from the inputs of its gates on; LSTM itself uses these kernels, too.
//
//   (i, f, o, g) = (sigmoid, sigmoid, sigmoid, tanh) of the gates' inputs
//   c = cont f c_prev + i g         dc' = dc + dh o (1 - tanh(c)^2)          dc_prev = cont f dc'
//   h = o tanh(c)                   di = dc' g i (1 - i)                     df = cont dc' c_prev f (1 - f)
//                                   do = dh tanh(c) o (1 - o)                dg = dc' i (1 - g^2)
//
// Memory: c and h are streams x width, row-major, the gates streams x (i, f, o, g) x width.  cont has one number a
// stream, 0 where a sequence begins.
// Threads: one thread per element of c.  On the host a stream is a plain loop, which becomes vectors.
// NaN: a stream whose sequence begins anew still multiplies by 0, so a NaN in c_prev stays, as in the original.
// Unlike the original's CPU code, but like its GPU code, df is right for a cont that is neither 0 nor 1.

// Computes one element of a step; input, the gates' inputs, may be gates.  Overwrites gates, cell and hidden.
extern "C" __global__ void lstm_unit_forward(int streams, int width, const float* __restrict__ cont SIZE(streams),
                                             const float* __restrict__ previous SIZE(streams * width),
                                             const float* input SIZE(streams * 4 * width),
                                             float* gates SIZE(streams * 4 * width),
                                             float* __restrict__ cell SIZE(streams * width),
                                             float* __restrict__ hidden SIZE(streams * width)) {
  GRID_ELEMENT_LOOP(n, d, streams, width) {
    const int at = n * width + d, gate = n * 4 * width + d;
    const float i = vsigmoid(input[gate]);
    const float f = vsigmoid(input[gate + width]);
    const float o = vsigmoid(input[gate + 2 * width]);
    const float g = vtanh(input[gate + 3 * width]);
    const float c = cont[n] * f * previous[at] + i * g;
    gates[gate] = i;
    gates[gate + width] = f;
    gates[gate + 2 * width] = o;
    gates[gate + 3 * width] = g;
    cell[at] = c;
    hidden[at] = o * vtanh(c);
  }
}

// Computes the diffs of one element of a step; cell_diff may be previous_diff.  Overwrites previous_diff, input_diff.
extern "C" __global__ void lstm_unit_backward(int streams, int width, const float* __restrict__ cont SIZE(streams),
                                              const float* __restrict__ previous SIZE(streams * width),
                                              const float* __restrict__ gates SIZE(streams * 4 * width),
                                              const float* __restrict__ cell SIZE(streams * width),
                                              const float* cell_diff SIZE(streams * width),
                                              const float* __restrict__ hidden_diff SIZE(streams * width),
                                              float* previous_diff SIZE(streams * width),
                                              float* __restrict__ input_diff SIZE(streams * 4 * width)) {
  GRID_ELEMENT_LOOP(n, d, streams, width) {
    const int at = n * width + d, gate = n * 4 * width + d;
    const float i = gates[gate], f = gates[gate + width], o = gates[gate + 2 * width], g = gates[gate + 3 * width];
    const float tanh_c = vtanh(cell[at]), dh = hidden_diff[at];
    const float dc = cell_diff[at] + dh * o * (1.0f - tanh_c * tanh_c), kept = cont[n] * dc;
    const float df = kept * previous[at] * f * (1.0f - f);
    previous_diff[at] = kept * f;
    input_diff[gate] = dc * g * i * (1.0f - i);
    input_diff[gate + width] = df;
    input_diff[gate + 2 * width] = dh * tanh_c * o * (1.0f - o);
    input_diff[gate + 3 * width] = dc * i * (1.0f - g * g);
  }
}
