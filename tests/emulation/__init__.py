"""The CUDA side of the kernels, run on the CPU."""
