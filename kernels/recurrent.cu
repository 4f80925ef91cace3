// What RNN and LSTM do between the device's matrix products, one timestep at a time, beside the kernels of lstm_unit.cu
// and neuron.cu.
//
//   continued = cont h                      dh = dh' + cont dcontinued, where dh' comes from the step's own output
//   inputs += static part, in each step     dpart = sum over the steps of dinputs
//
// Memory: a step is streams x width, row-major; steps follow one another.  cont has one number a stream, 0 where a
// sequence begins.
// Threads: one thread per element of a step.  On the host a stream is a plain loop, which becomes vectors.
// NaN: a stream whose sequence begins anew still multiplies by 0, so a NaN stays in it, as in the original.

// Computes one element of cont times h, on the way forth, or times a diff, on the way back.  Overwrites continued.
extern "C" __global__ void recurrent_continue(int streams, int width, const float* __restrict__ cont SIZE(streams),
                                              const float* __restrict__ hidden SIZE(streams * width),
                                              float* __restrict__ continued SIZE(streams * width)) {
  GRID_ELEMENT_LOOP(n, d, streams, width) continued[n * width + d] = cont[n] * hidden[n * width + d];
}

// Computes one element of a hidden state's diff: what the step's own output gives, and what the step after it gives.
// `given` may be hidden_diff.  Overwrites hidden_diff.
extern "C" __global__ void recurrent_continue_backward(int streams, int width,
                                                       const float* __restrict__ cont SIZE(streams),
                                                       const float* __restrict__ continued_diff SIZE(streams * width),
                                                       const float* given SIZE(streams * width),
                                                       float* hidden_diff SIZE(streams * width)) {
  GRID_ELEMENT_LOOP(n, d, streams, width) {
    const int i = n * width + d;
    hidden_diff[i] = given[i] + cont[n] * continued_diff[i];
  }
}

// Adds the part of the static input, which is the same in each step, to one element.  Adds to inputs.
extern "C" __global__ void recurrent_add_static(int steps, int n, const float* __restrict__ part SIZE(n),
                                                float* __restrict__ inputs SIZE(steps * n)) {
  GRID_ELEMENT_LOOP(t, i, steps, n) inputs[t * n + i] += part[i];
}

// Sums one element over the steps; a thread keeps its elements from step to step.  Overwrites part_diff.
extern "C" __global__ void recurrent_backward_static(int n, int steps,
                                                     const float* __restrict__ input_diff SIZE(steps * n),
                                                     float* __restrict__ part_diff SIZE(n)) {
  ELEMENT_LOOP(i, n) part_diff[i] = input_diff[i];
  for (int t = 1; t < steps; ++t) {
    const float* __restrict__ step = input_diff + t * n;
    ELEMENT_LOOP(i, n) part_diff[i] += step[i];
  }
}
