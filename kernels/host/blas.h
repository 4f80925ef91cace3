// OpenBLAS, as the host library reaches it: the address comes from Python (the scipy-openblas32 wheel), so that nothing
// is linked.  Every call runs on the calling thread.
#pragma once

// C (m×n) = alpha op(A) op(B) + beta C, row-major with leading dimensions.
void sgemm(bool transpose_a, bool transpose_b, int m, int n, int k, float alpha, const float* a, int lda,
           const float* b, int ldb, float beta, float* c, int ldc);
