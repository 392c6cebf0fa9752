// Launch interface of the CPU kernels: raw pointers and sizes, no torch. The binding files and a
// torch-free driver call the same functions. Legend: T tokens, N experts, k chosen, h group side.
//
// This header defines no inline function: it is included by files compiled for different
// instruction sets, where the linker would keep one copy of it for all of them.
#pragma once

#include <cstdint>

namespace moge {

enum class Dtype { kFloat32, kFloat64, kBFloat16, kFloat16 };

// z of the logits x (docs/method.md "Wider routing"); the order is that of ops/choice.py.
enum class ScoreFunction : int64_t { kSoftmax, kSigmoid, kSqrtSoftplus };

// The groups of docs/method.md on a rows x cols map, separable filter G[u, v] = row[u] col[v].
// On a torus the taps are folded modulo the map, so that no window is larger than the map.
struct Groups {
  int rows, cols, stride;
  bool torus;
  int group_rows, group_cols;      // number of groups down and across the map
  int num_row_taps, num_col_taps;  // h, or less where a torus folds them
  const double *row_taps, *col_taps;
  bool unit_energy = false;  // scores are divided by their norm over the experts first
};

// What "Wider routing" of docs/method.md adds to a router; as it stands here, nothing.
struct Wider {
  double scale = 1;  // of the weights
  ScoreFunction score_function = ScoreFunction::kSoftmax;
  const void* bias = nullptr;     // (N) Scalar: added to the scores that top-k compares
  const uint8_t* mask = nullptr;  // (T): 0 for tokens that do not count
  int num_groups = 1, top_groups = 1;
  bool strict =
      false;  // a masked row is routed as zeros if it is not finite, not only if it is NaN
};

// Per-chunk sums. A chunk is a fixed run of tokens, so that sums do not depend on the threads.
struct ChunkSums {
  double loss;             // sum of all group norms
  int64_t bad_logits_row;  // first row that is not finite, or -1
  int64_t bad_noise_row;
};

// "Scalar" below is double for kFloat64, else float.
struct RouteForward {
  Dtype dtype;
  const void* logits;  // (T, N) in dtype
  const void* noise;   // (T, N) Scalar, or null
  int64_t num_tokens, chunk_tokens;
  int num_experts, top_k;
  bool renormalize;
  const Groups* groups;  // null: no group norm
  void* weights;         // (T, k) Scalar
  int64_t* experts;      // (T, k)
  // (T, 2) Scalar: row maximum, or NaN where a masked row was routed as zeros; 1 / sum of
  // exp(x - maximum), or 1 / (sum of the scores + 1e-20) for another function than softmax.
  void* row_stats;
  ChunkSums* sums;      // (chunks)
  double* importance;   // (chunks, N)
  int64_t* load;        // (chunks, N)
  int64_t* first_load;  // (chunks, N): tokens that chose the expert first
  Wider wider = {};
};

struct RouteBackward {
  Dtype dtype;
  const void* logits;
  const void* row_stats;
  const void* weights;
  const int64_t* experts;
  int64_t num_tokens, chunk_tokens;
  int num_experts, top_k;
  bool renormalize;
  const Groups* groups;         // null: the group norm has no gradient
  double norm_grad;             // dL/dg, the same for every token and group
  const void* grad_weights;     // (T, k) Scalar, or null
  const void* grad_importance;  // (N) Scalar, or null
  void* grad_logits;            // (T, N) in dtype
  ChunkSums* sums;              // bad_logits_row: first row with an expert index outside 0..N-1
  Wider wider = {};
};

struct GroupNorm {
  Dtype dtype;
  const void* scores;  // (T, N) in dtype
  int64_t num_tokens, chunk_tokens;
  int num_experts;
  const Groups* groups;
  ChunkSums* sums;                // forward
  double norm_grad;               // backward: dL/dg
  void* grad_scores;              // backward: (T, N) in dtype
  const uint8_t* mask = nullptr;  // (T): 0 for tokens that do not count
};

// One instruction set's kernels; each works on chunks [begin, end) and may run on any thread.
struct KernelSet {
  const char* name;
  void (*route_forward)(const RouteForward&, int64_t begin, int64_t end);
  void (*route_backward)(const RouteBackward&, int64_t begin, int64_t end);
  void (*group_norm_forward)(const GroupNorm&, int64_t begin, int64_t end);
  void (*group_norm_backward)(const GroupNorm&, int64_t begin, int64_t end);
};

extern const KernelSet kBaselineKernels;
#if defined(__x86_64__)
extern const KernelSet kAvx2Kernels;
extern const KernelSet kAvx512Kernels;
#endif

// The best set this processor runs, or the one that MOGE_CPU_ISA names; decided once.
// Throws std::invalid_argument for a name that is unknown or that this processor cannot run.
const KernelSet& kernels();
const char* compiled_instruction_sets();  // comma-separated

// Tokens in a chunk of a batch of T tokens: a function of T alone, at most kMaxChunks chunks.
constexpr int64_t kMaxChunks = 128;
int64_t chunk_tokens(int64_t num_tokens);

// Indices of the k largest of `count` values, descending; equal values by index, NaN as -inf.
void select_any(const float* values, int count, int k, int32_t* indices);
void select_any(const double* values, int count, int k, int32_t* indices);

// The same among the best `top_groups` of `num_groups` equal consecutive ranges, each ranked by the
// sum of its k / top_groups largest values.
void select_ranges(const float* values, int count, int k, int num_groups, int top_groups,
                   int32_t* indices);
void select_ranges(const double* values, int count, int k, int num_groups, int top_groups,
                   int32_t* indices);

}  // namespace moge
