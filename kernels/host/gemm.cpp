// The matrix product on the host: OpenBLAS, called once a part over a range of C's columns or rows.

#include "blas.h"
#include "host.h"

namespace {

// cblas_sgemm with CBLAS_ORDER, CBLAS_TRANSPOSE as ints.
using CblasSgemm = void (*)(int order, int transpose_a, int transpose_b, int m, int n, int k, float alpha,
                            const float* a, int lda, const float* b, int ldb, float beta, float* c, int ldc);
CblasSgemm cblas_sgemm = nullptr;
constexpr int kRowMajor = 101, kNoTranspose = 111, kTranspose = 112;

struct Gemm {
  int transpose_a, transpose_b, m, n, k;
  float alpha;
  const float *a, *b;
  float beta;
  float* c;
  const float* bias;  // n elements or null
  float* partial;     // a long sum shared by parts: one product a part but the first, or null
};

struct Range {
  int begin, end;
};

// This part's share of n, in steps of 16.
Range share(int n) {
  const auto edge = [n](int part) {
    return part == host_part.parts ? n : (int)((int64_t)n * part / host_part.parts / 16 * 16);
  };
  return {edge(host_part.part), edge(host_part.part + 1)};
}

// C = beta C + bias over a block of rows and columns.
void start_from_bias(const Gemm& g, Range rows, Range columns) {
  for (int i = rows.begin; i < rows.end; ++i) {
    float* c = g.c + (int64_t)i * g.n;
    if (g.beta == 0)
      for (int j = columns.begin; j < columns.end; ++j) c[j] = g.bias[j];
    else
      for (int j = columns.begin; j < columns.end; ++j) c[j] = g.beta * c[j] + g.bias[j];
  }
}

// A few rows against a matrix whose rows are contiguous along k: dot products, bound by reading B once.
void dot_products(const Gemm& g, Range columns) {
  for (int j = columns.begin; j < columns.end; ++j) {
    const float* b = g.b + (int64_t)j * g.k;
    for (int i = 0; i < g.m; ++i) {
      const float* a = g.a + (int64_t)i * g.k;
      float sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int p = 0; p < g.k; ++p) sum += a[p] * b[p];
      float& c = g.c[(int64_t)i * g.n + j];
      c = g.alpha * sum + (g.beta == 0 ? 0 : g.beta * c) + (g.bias ? g.bias[j] : 0);
    }
  }
}

// This part's share of the sums over k: the first part's goes into C, the others' into their partials.
void product_of_share(const Gemm& g) {
  const Range depth = share(g.k);
  const int lda = g.transpose_a ? g.m : g.k, ldb = g.transpose_b ? g.k : g.n;
  const bool is_first = host_part.part == 0;
  if (is_first && g.bias) start_from_bias(g, {0, g.m}, {0, g.n});
  sgemm(g.transpose_a, g.transpose_b, g.m, g.n, depth.end - depth.begin, g.alpha,
        g.a + (int64_t)depth.begin * (g.transpose_a ? lda : 1), lda,
        g.b + (int64_t)depth.begin * (g.transpose_b ? 1 : ldb), ldb, is_first ? (g.bias ? 1 : g.beta) : 0,
        is_first ? g.c : g.partial + (int64_t)(host_part.part - 1) * g.m * g.n, g.n);
}

}  // namespace

void sgemm(bool transpose_a, bool transpose_b, int m, int n, int k, float alpha, const float* a, int lda,
           const float* b, int ldb, float beta, float* c, int ldc) {
  cblas_sgemm(kRowMajor, transpose_a ? kTranspose : kNoTranspose, transpose_b ? kTranspose : kNoTranspose, m, n, k,
              alpha, a, lda, b, ldb, beta, c, ldc);
}

HOST_EXPORT void host_set_sgemm(CblasSgemm function) { cblas_sgemm = function; }

// C = alpha op(A) op(B) + beta C (+ bias), dense.  Parts share the larger of C's sides; with partials they share k, and
// host_add_partials collects what each has.
HOST_EXPORT void host_gemm(const void* args) {
  const Gemm& g = *static_cast<const Gemm*>(args);
  if (g.partial) return product_of_share(g);
  if (g.m <= 2 && !g.transpose_a && g.transpose_b) return dot_products(g, share(g.n));
  Range rows = {0, g.m}, columns = {0, g.n};
  (g.n >= g.m ? columns : rows) = share(g.n >= g.m ? g.n : g.m);
  if (rows.begin >= rows.end || columns.begin >= columns.end) return;
  if (g.bias) start_from_bias(g, rows, columns);
  const int lda = g.transpose_a ? g.m : g.k, ldb = g.transpose_b ? g.k : g.n;
  const float* a = g.a + (int64_t)rows.begin * (g.transpose_a ? 1 : lda);
  const float* b = g.b + (int64_t)columns.begin * (g.transpose_b ? ldb : 1);
  float* c = g.c + (int64_t)rows.begin * g.n + columns.begin;
  sgemm(g.transpose_a, g.transpose_b, rows.end - rows.begin, columns.end - columns.begin, g.k, g.alpha, a, lda, b, ldb,
        g.bias ? 1 : g.beta, c, g.n);
}
