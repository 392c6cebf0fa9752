// The matrix product of the expert kernels: the BLAS that torch was linked with, called directly.
// Through at::mm_out a product costs about 3 us before it starts; one of 68 x 64 x 128, a tiny
// expert's, takes 15 us. Where torch exports no BLAS the products go through at::mm_out.

#include <ATen/ATen.h>

#include "experts.h"

// Weak: null where the process has no such symbol.
extern "C" {
__attribute__((weak)) void sgemm_(const char*, const char*, const int*, const int*, const int*,
                                  const float*, const float*, const int*, const float*, const int*,
                                  const float*, float*, const int*);
__attribute__((weak)) void dgemm_(const char*, const char*, const int*, const int*, const int*,
                                  const double*, const double*, const int*, const double*,
                                  const int*, const double*, double*, const int*);
}

namespace moge {
namespace {

template <class T, auto Xgemm>
void blas_gemm(char trans_a, char trans_b, int64_t m, int64_t n, int64_t k, const T* a, int64_t lda,
               const T* b, int64_t ldb, T beta, T* c, int64_t ldc) {
  const int im = int(m), in = int(n), ik = int(k), ia = int(lda), ib = int(ldb), ic = int(ldc);
  const T one = 1;
  Xgemm(&trans_a, &trans_b, &im, &in, &ik, &one, a, &ia, b, &ib, &beta, c, &ic);
}

void sgemm(const char* ta, const char* tb, const int* m, const int* n, const int* k,
           const float* alpha, const float* a, const int* lda, const float* b, const int* ldb,
           const float* beta, float* c, const int* ldc) {
  sgemm_(ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}
void dgemm(const char* ta, const char* tb, const int* m, const int* n, const int* k,
           const double* alpha, const double* a, const int* lda, const double* b, const int* ldb,
           const double* beta, double* c, const int* ldc) {
  dgemm_(ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

// A column-major (rows, cols) matrix, transposed if asked.
template <class T>
at::Tensor view(const T* data, bool transposed, int64_t rows, int64_t cols, int64_t ld) {
  const auto options = at::TensorOptions().dtype(c10::CppTypeToScalarType<T>::value);
  T* mutable_data = const_cast<T*>(data);  // from_blob takes no const; operands are only read
  return transposed ? at::from_blob(mutable_data, {rows, cols}, {ld, 1}, options)
                    : at::from_blob(mutable_data, {rows, cols}, {1, ld}, options);
}

template <class T>
void aten_gemm(char trans_a, char trans_b, int64_t m, int64_t n, int64_t k, const T* a, int64_t lda,
               const T* b, int64_t ldb, T beta, T* c, int64_t ldc) {
  // Worker threads do not inherit the guard that the dispatcher set on the calling thread.
  const at::AutoDispatchBelowADInplaceOrView guard;
  at::Tensor out = view<T>(c, false, m, n, ldc);
  const at::Tensor left = view(a, trans_a == 'T', m, k, lda);
  const at::Tensor right = view(b, trans_b == 'T', k, n, ldb);
  if (beta == T(0)) {
    at::mm_out(out, left, right);
  } else {
    at::addmm_out(out, out, left, right, beta, 1);
  }
}

}  // namespace

Gemm<float> float_gemm() { return sgemm_ ? blas_gemm<float, sgemm> : aten_gemm<float>; }
Gemm<double> double_gemm() { return dgemm_ ? blas_gemm<double, dgemm> : aten_gemm<double>; }

}  // namespace moge
