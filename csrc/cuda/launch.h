// Launch interface of the CUDA kernels: raw pointers to device memory, sizes, a stream; no torch.
// Legend: T tokens, N experts (1 to 1024), k choices of a token, d hidden size, R = T k rows.
//
// A launcher returns 0, or a code other than 0 with the reason in moge_cuda_last_error(). It starts
// kernels on `stream` (a cudaStream_t) and returns: it allocates nothing, waits for nothing, and
// may be captured in a CUDA graph. The caller gives a workspace of at least the bytes that its
// ..._workspace_bytes function tells, 256-byte aligned (cudaMalloc's alignment); it is scratch and
// need not be cleared. Output pointers are written in full, whatever they held. Sums over tokens
// are made in an order that depends on the number of tokens alone, so the same input gives the same
// bits on every run; on devices of one architecture, since exp2, sqrt and reciprocal are the
// hardware's approximations, which may differ in the last bit from one architecture to the next.
// They are float32 over at most 256 tokens, and float64 over those sums.
//
// Tensors are contiguous. Pointers to elements must be aligned to the element; rows are read and
// written up to 16 bytes at a time where the base pointer and N allow it. T = 0 is allowed
// everywhere.
#pragma once

#include <cstdint>

namespace moge::cuda {

enum class Element : int32_t { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };

// The groups of docs/method.md on a rows x cols map, as GroupSettings of plan.h tells them. The
// taps are in device memory and are read when a kernel runs, so that a captured graph filters with
// the sigma of now; a torus wraps those beyond the map. They are Gaussian: mirrored, of sum 1, the
// middle one of an odd number the largest.
struct GroupMap {
  const double* taps;  // (group_size), in device memory
  int32_t group_size, rows, cols, stride;
  int32_t group_rows, group_cols;  // number of groups down and across the map
  int32_t torus;
};

// What the strict mode needs to know, in device memory; -1 where every row is sound.
struct BadRows {
  int64_t logits;  // first row (from 0) of logits or scores with NaN or an infinity
  int64_t noise;   // the same of the noise
};

// What "Wider routing" of docs/method.md adds. Kernels of their own serve it
// (route_wide_forward.cuh, route_wide_backward.cuh).
struct Wide {
  const float* bias;    // (N): added to the scores that top-k compares, or null
  const uint8_t* mask;  // (T): 0 for tokens that do not count, or null
  // The loss is a mean over the tokens that count, whose number the host does not know: it is
  // divided by it into here, and so is grad_loss. group_loss, or () of scratch; null: no such mean.
  float* mean;
  double scale;      // of the weights
  int32_t function;  // z of the logits: 0 softmax, 1 sigmoid, 2 sqrt(softplus)
  int32_t num_groups, top_groups;
  int32_t unit_energy;
  int32_t strict;  // a masked row is routed as zeros if it is not finite, not only if it is NaN
};

// moge::route, forward. Rows with NaN or +inf, or with nothing but -inf, get NaN weights and make
// the importance and the loss NaN. In the selection NaN ranks as -inf, and ties go to the lower
// index.
struct RouteForward {
  const void* logits;      // (T, N) in `element`
  const float* noise;      // (T, N) added for selection only, or null; rows of noise_stride
  const GroupMap* groups;  // in host memory; null: no group norm, group_loss is 0
  float* weights;          // (T, k)
  int64_t* experts;        // (T, k), in descending order of logits + noise
  float* row_stats;        // (T, 2), 8-byte aligned: row_stats of csrc/kernels.h
  float* importance;       // (N)
  int64_t* load;           // (N)
  int64_t* first_load;     // (N): tokens that chose the expert first
  float* group_loss;       // (): loss_scale times the sum of all group norms
  BadRows* bad_rows;       // (), or null where nobody asks
  void* workspace;
  int64_t num_tokens;
  int64_t noise_stride;  // N, or 0: one row for all tokens
  double loss_scale;     // GroupSettings::scale
  Element element;
  int32_t num_experts, top_k;
  int32_t renormalize;
  const Wide* wide;  // in host memory, or null
};

// moge::route, backward: writes grad_logits once. An index in `experts` outside 0..N-1 is skipped.
struct RouteBackward {
  const void* logits;            // (T, N) in `element`
  const float* row_stats;        // (T, 2), 8-byte aligned
  const float* weights;          // (T, k)
  const int64_t* experts;        // (T, k)
  const float* grad_weights;     // (T, k), or null
  const float* grad_importance;  // (N), or null
  const float* grad_loss;        // () in device memory, or null
  const GroupMap* groups;        // in host memory; null: the group norm has no gradient
  void* grad_logits;             // (T, N) in `element`
  int64_t num_tokens;
  double loss_scale;
  Element element;
  int32_t num_experts, top_k;
  int32_t renormalize;
  const Wide* wide;  // in host memory, or null
};

// moge::group_norm, forward and backward, of any scores.
struct GroupNormForward {
  const void* scores;      // (T, N) in `element`
  const GroupMap* groups;  // in host memory
  float* group_loss;       // ()
  BadRows* bad_rows;       // (), or null
  void* workspace;
  int64_t num_tokens;
  double loss_scale;
  Element element;
  int32_t num_experts;
  const Wide* wide;  // mask and unit_energy, in host memory, or null
};
struct GroupNormBackward {
  const void* scores;      // (T, N) in `element`
  const float* grad_loss;  // () in device memory
  const GroupMap* groups;  // in host memory
  void* grad_scores;       // (T, N) in `element`
  int64_t num_tokens;
  double loss_scale;
  Element element;
  int32_t num_experts;
  const Wide* wide;  // mask and unit_energy, in host memory, or null
};

// Stable counting sort of the R choices by expert. A choice that is -1, or outside 0..N-1, is
// dropped. slots and positions are each other's inverse: slots[positions[j]] = j.
struct SortChoices {
  const int64_t* experts;  // (T, k)
  int64_t* offsets;        // (N + 1): rows offsets[e] to offsets[e + 1] belong to expert e
  int32_t* slots;          // (R): the choice t k + i in that row; -1 from offsets[N] on
  int32_t* positions;      // (T, k): the row of that choice; -1 where it is dropped
  int64_t* bad_row;  // (): first token with an index that is neither -1 nor valid, or -1; or null
  void* workspace;
  int64_t num_tokens;  // T k < 2^31
  int32_t num_experts, top_k;
};

// rows[p] = scale source[slots[p] / k], 0 where slots[p] is -1; scale = weights[slots[p]], 1 where
// weights is null. Without weights it is dispatch, with them the gradient of combine's rows.
struct GatherRows {
  const void* source;    // (T, d) in `element`
  const float* weights;  // (T, k), or null
  const int32_t* slots;  // (R)
  void* rows;            // (R, d) in `element`
  int64_t num_tokens;
  int64_t hidden_size;
  Element element;
  int32_t top_k;
};

// y[t] = sum_i weights[t, i] rows[positions[t, i]], in float32 and in the order of the choices;
// dropped choices add nothing. Null weights are 1: the gradient of dispatch's source.
struct CombineRows {
  const void* rows;          // (R, d) in `element`
  const float* weights;      // (T, k), or null
  const int32_t* positions;  // (T, k)
  void* output;              // (T, d) in `element`
  int64_t num_tokens;
  int64_t hidden_size;
  Element element;
  int32_t top_k;
};

// grad_weights[t, i] = sum_c grad_output[t, c] rows[positions[t, i], c], 0 for a dropped choice.
struct CombineWeightGrad {
  const void* grad_output;   // (T, d) in `element`
  const void* rows;          // (R, d) in `element`
  const int32_t* positions;  // (T, k)
  float* grad_weights;       // (T, k)
  int64_t num_tokens;
  int64_t hidden_size;
  Element element;
  int32_t top_k;
};

// What an expert's rows go through after its product.
enum class Activation : int32_t { kNone = 0, kGelu = 1, kRelu = 2, kSilu = 3 };

// output[p] = act(rows[p] + bias[e]), computed in float32, for offsets[e] <= p < offsets[e + 1]:
// the rows of expert e. From offsets[N] on, where choices were dropped, it is 0 and rows is not
// read.
struct BiasActivation {
  const void* rows;        // (R, c) in `element`
  const void* bias;        // (N, c) in `element`
  const int64_t* offsets;  // (N + 1)
  void* output;            // (R, c) in `element`
  int64_t num_rows;        // R < 2^31
  int64_t hidden_size;     // c
  Element element;
  Activation activation;
  int32_t num_experts;
};

// grad_rows[p] = act'(rows[p] + bias[e]) grad_output[p], and 0 from offsets[N] on, where nothing is
// read; grad_bias[e] = the sum of it over the rows of e, in float32 and before it is rounded, 0 for
// an expert without rows. With kNone rows, bias and grad_rows are null: grad_rows = grad_output.
struct BiasActivationBackward {
  const void* grad_output;  // (R, c) in `element`
  const void* rows;         // (R, c) in `element`, or null
  const void* bias;         // (N, c) in `element`, or null
  const int64_t* offsets;   // (N + 1)
  void* grad_rows;          // (R, c) in `element`, or null
  void* grad_bias;          // (N, c) in `element`
  void* workspace;
  int64_t num_rows;     // R < 2^31
  int64_t hidden_size;  // c
  Element element;
  Activation activation;
  int32_t num_experts;
};

}  // namespace moge::cuda

extern "C" {
int moge_cuda_route_forward(const moge::cuda::RouteForward* args, void* stream);
int moge_cuda_route_backward(const moge::cuda::RouteBackward* args, void* stream);
int moge_cuda_group_norm_forward(const moge::cuda::GroupNormForward* args, void* stream);
int moge_cuda_group_norm_backward(const moge::cuda::GroupNormBackward* args, void* stream);
int moge_cuda_sort_choices(const moge::cuda::SortChoices* args, void* stream);
int moge_cuda_gather_rows(const moge::cuda::GatherRows* args, void* stream);
int moge_cuda_combine_rows(const moge::cuda::CombineRows* args, void* stream);
int moge_cuda_combine_weight_grad(const moge::cuda::CombineWeightGrad* args, void* stream);
int moge_cuda_bias_activation(const moge::cuda::BiasActivation* args, void* stream);
int moge_cuda_bias_activation_backward(const moge::cuda::BiasActivationBackward* args,
                                       void* stream);

// Bytes of workspace; the other launchers need none.
int64_t moge_cuda_route_workspace_bytes(int64_t num_tokens, int32_t num_experts);
int64_t moge_cuda_group_norm_workspace_bytes(int64_t num_tokens);
int64_t moge_cuda_sort_choices_workspace_bytes(int64_t num_choices, int32_t num_experts);
int64_t moge_cuda_bias_activation_backward_workspace_bytes(int64_t num_rows, int32_t num_experts,
                                                           int64_t hidden_size);

// Why the last launcher of this thread failed; empty before any did. Never null.
const char* moge_cuda_last_error();
}
