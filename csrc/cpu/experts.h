// Launch interface of the expert FFN kernels: raw pointers and sizes, no torch. Legend: T tokens,
// k choices of a token, N experts, d hidden size, f hidden size of an expert, M kept choices.
//
// A slot is the position t k + i of choice i of token t in the routing. Kept slots are sorted by
// expert, in token order within one; "row" is a position in that order, 0 to M - 1. As kernels.h,
// this header defines no inline function.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.h"

namespace moge {

enum class Activation { kGelu, kRelu, kSilu };

// BLAS's xgemm with alpha = 1, column-major: C (m x n) = op(A) op(B) + beta C. It runs on the
// calling thread alone.
template <class Scalar>
using Gemm = void (*)(char trans_a, char trans_b, int64_t m, int64_t n, int64_t k, const Scalar* a,
                      int64_t lda, const Scalar* b, int64_t ldb, Scalar beta, Scalar* c,
                      int64_t ldc);
Gemm<float> float_gemm();
Gemm<double> double_gemm();

// Rows [begin, begin + rows) of one expert. Tasks depend on the routing alone, never on the
// number of threads: so do the shapes of the matrix products, and with them every rounding.
struct ExpertTask {
  int expert;
  int64_t begin, rows;
  int64_t segment;  // backward: index of this task's partial sums
};

// Stable counting sort: slots[0..M) by expert; the rows of expert e are offsets[e] to
// offsets[e + 1]. Entries of -1 are left out. Returns the first slot whose entry is below -1 or
// not below N (then nothing is written), or -1.
int64_t sort_choices(const int64_t* experts, int64_t count, int num_experts, int32_t* slots,
                     int64_t* offsets);

// Rows that one block of scratch holds, about; a block never exceeds max_block_rows().
int64_t block_rows(int64_t hidden, int64_t ffn);
int64_t max_block_rows(int64_t hidden, int64_t ffn, const int64_t* offsets, int num_experts);

// Forward: a task a block. Backward: a task a segment of at least an eighth of all rows, since
// every further segment of an expert costs a partial weight gradient; experts without rows get an
// empty task. Both longest first, which keeps threads from waiting on a late long one.
std::vector<ExpertTask> forward_tasks(const int64_t* offsets, int num_experts, int64_t block);
std::vector<ExpertTask> backward_tasks(const int64_t* offsets, int num_experts, int64_t block);

// "Scalar" is float for kFloat32 and kBFloat16, double for kFloat64; "stored" is dtype.
struct ExpertsForward {
  Dtype dtype;
  Activation activation;
  int64_t hidden, ffn, block;
  int top_k;
  Gemm<float> gemm_float;
  Gemm<double> gemm_double;
  const void *x, *w_in, *b_in, *w_out, *b_out;  // stored; the biases may be null
  const void* weights;                          // (T, k) Scalar
  const int32_t* slots;
  void* activations;  // (M, f) stored: w_in x + b_in before the activation; null: not kept
  void* y;            // (T, d) stored: what the first choice of each token adds
  void* extra;        // (T, k - 1, d) stored: what the others add
};

struct ExpertsBackward {
  Dtype dtype;
  Activation activation;
  int64_t hidden, ffn, block;
  int top_k;
  Gemm<float> gemm_float;
  Gemm<double> gemm_double;
  const void *x, *w_in, *w_out, *b_out, *grad_y, *activations;
  const void* weights;
  const int32_t* slots;
  void *grad_x, *extra;          // as y and extra of the forward
  void* grad_weights;            // (T, k) Scalar
  void *grad_w_in, *grad_w_out;  // stored; segments with a place in partial do not write here
  const int64_t* partial_of;     // (segments): place in partial, or -1
  void* partial;                 // (., 2, f d) Scalar: sums over a segment for w_in, then w_out
  double* bias_sums;             // (segments, f + d), or null without biases
};

struct ExpertsCombine {
  Dtype dtype;
  int64_t hidden;
  int top_k;
  const int64_t* experts;  // (T, k)
  void* rows;              // (T, d) stored: y, or grad_x
  const void* extra;
};

struct ExpertKernels {
  const char* name;
  // Scratch that one call of forward or backward needs, in bytes.
  size_t (*scratch_bytes)(Dtype, bool backward, int64_t hidden, int64_t ffn, int64_t block);
  void (*forward)(const ExpertsForward&, const ExpertTask&, void* scratch);
  void (*backward)(const ExpertsBackward&, const ExpertTask&, void* scratch);
  // rows[t] = sum over the kept choices of token t, in the order of the choices; tokens [begin,
  // end).
  void (*combine)(const ExpertsCombine&, int64_t begin, int64_t end);
  // out[i] (stored) = sum over parts of parts[p][i]; parts Scalar, or double for the biases.
  void (*reduce)(Dtype, const void* const* parts, int64_t num_parts, int64_t count, void* out);
  void (*reduce_bias)(Dtype, const double* const* parts, int64_t num_parts, int64_t count,
                      void* out);
};

extern const ExpertKernels kBaselineExperts;
#if defined(__x86_64__)
extern const ExpertKernels kAvx2Experts;
extern const ExpertKernels kAvx512Experts;
#endif

// The set of the instruction set that kernels() runs.
const ExpertKernels& expert_kernels();

}  // namespace moge
