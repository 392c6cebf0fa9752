// Joins moge::expert_ffn and moge::expert_ffn_backward to their CPU kernels: schemas, checks,
// allocation, threads. Scratch is allocated as tensors, so that memory accounts see it.

#include <ATen/Parallel.h>
#include <torch/library.h>

#include <atomic>
#include <limits>

#include "checks.h"
#include "experts.h"

namespace moge {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

Activation activation_of(std::string_view name) {
  if (name == "gelu") return Activation::kGelu;
  if (name == "relu") return Activation::kRelu;
  TORCH_CHECK_VALUE(name == "silu", "activation must be gelu, relu or silu, got ",
                    std::string(name));
  return Activation::kSilu;
}

// The arguments that forward and backward share, checked and contiguous, and their routing sorted.
struct Problem {
  at::Tensor x, weights, experts, w_in, w_out, b_out, slots;
  std::vector<int64_t> offsets;
  Dtype dtype;
  at::ScalarType scalar;
  int64_t num_tokens, top_k, num_experts, hidden, ffn, block, scratch_rows;

  Problem(const at::Tensor& x_in, const at::Tensor& weights_in, const at::Tensor& experts_in,
          const at::Tensor& w_in_in, const at::Tensor& w_out_in, const OptionalTensor& b_out_in) {
    check_cpu(x_in, "x");
    TORCH_CHECK_VALUE(x_in.dim() == 2 && x_in.size(1) >= 1, "x must have shape (T, d), got ",
                      x_in.sizes());
    TORCH_CHECK_VALUE(experts_in.dim() == 2 && experts_in.size(1) >= 1,
                      "experts must have shape (T, k), k at least 1, got ", experts_in.sizes());
    TORCH_CHECK_VALUE(w_in_in.dim() == 3 && w_in_in.size(0) >= 1 && w_in_in.size(1) >= 1,
                      "w_in must have shape (N, f, d), got ", w_in_in.sizes());
    TORCH_CHECK_TYPE(x_in.scalar_type() != at::kHalf,
                     "x must be float32, float64 or bfloat16, got ", x_in.scalar_type());
    dtype = dtype_of(x_in, "x");
    scalar = accumulation_dtype(x_in);
    num_tokens = x_in.size(0), hidden = x_in.size(1), top_k = experts_in.size(1);
    num_experts = w_in_in.size(0), ffn = w_in_in.size(1);
    const at::ScalarType stored = x_in.scalar_type();
    check_shape(experts_in, {num_tokens, top_k}, at::kLong, "experts");
    check_shape(weights_in, {num_tokens, top_k}, scalar, "weights");
    check_shape(w_in_in, {num_experts, ffn, hidden}, stored, "w_in");
    check_shape(w_out_in, {num_experts, hidden, ffn}, stored, "w_out");
    if (b_out_in) check_shape(*b_out_in, {num_experts, hidden}, stored, "b_out");
    constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
    TORCH_CHECK_VALUE(num_tokens * top_k <= kMost && num_experts <= kMost,
                      "experts must hold at most 2^31 - 1 choices, got ", experts_in.sizes());
    x = x_in.contiguous(), weights = weights_in.contiguous(), experts = experts_in.contiguous();
    w_in = w_in_in.contiguous(), w_out = w_out_in.contiguous();
    if (b_out_in) b_out = b_out_in->contiguous();
    sort();
  }

  int64_t num_kept() const { return offsets.back(); }

 private:
  void sort() {
    slots = at::empty({num_tokens * top_k}, experts.options().dtype(at::kInt));
    offsets.resize(num_experts + 1);
    const int64_t* choices = experts.const_data_ptr<int64_t>();
    const int64_t bad = sort_choices(choices, num_tokens * top_k, int(num_experts),
                                     slots.mutable_data_ptr<int32_t>(), offsets.data());
    TORCH_CHECK_VALUE(bad < 0, "experts must hold -1 (dropped) or indices from 0 to ",
                      num_experts - 1, ", got ", choices[bad]);
    block = block_rows(hidden, ffn);
    scratch_rows = max_block_rows(hidden, ffn, offsets.data(), int(num_experts));
  }
};

const void* pointer(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr() : nullptr;
}

// Runs every task once. Threads take the next one when they are done with the last: tasks differ
// in length, and so do threads on a busy machine. There is one worker a thread even where there
// are fewer tasks, so that a product never finds itself outside a parallel region, where BLAS
// would share it among threads and might round otherwise.
template <class Run>
void run_tasks(const Problem& p, const std::vector<ExpertTask>& tasks, bool backward, Run run) {
  const int64_t workers = at::get_num_threads();
  const size_t bytes =
      expert_kernels().scratch_bytes(p.dtype, backward, p.hidden, p.ffn, p.scratch_rows);
  at::Tensor scratch = at::empty({workers, int64_t(bytes)}, at::kByte);
  uint8_t* base = scratch.mutable_data_ptr<uint8_t>();
  std::atomic<size_t> next{0};
  at::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      for (size_t i = next++; i < tasks.size(); i = next++) run(tasks[i], base + worker * bytes);
    }
  });
}

void combine(const Problem& p, at::Tensor& rows, const at::Tensor& extra) {
  if (p.top_k == 1 && p.num_kept() == p.num_tokens) return;  // every row is written already
  const ExpertsCombine args{p.dtype,
                            p.hidden,
                            int(p.top_k),
                            p.experts.const_data_ptr<int64_t>(),
                            rows.mutable_data_ptr(),
                            extra.const_data_ptr()};
  const int64_t grain = std::max<int64_t>(1, 32768 / (p.hidden * p.top_k));
  at::parallel_for(0, p.num_tokens, grain,
                   [&](int64_t begin, int64_t end) { expert_kernels().combine(args, begin, end); });
}

std::tuple<at::Tensor, at::Tensor> expert_ffn(const at::Tensor& x, const at::Tensor& weights,
                                              const at::Tensor& experts, const at::Tensor& w_in,
                                              const OptionalTensor& b_in, const at::Tensor& w_out,
                                              const OptionalTensor& b_out,
                                              std::string_view activation, bool keep) {
  chosen_kernels();  // a bad MOGE_CPU_ISA raises here
  const Activation act = activation_of(activation);
  const Problem p(x, weights, experts, w_in, w_out, b_out);
  TORCH_CHECK_VALUE(b_in.has_value() == b_out.has_value(),
                    "b_in and b_out must be given together or both be None");
  at::Tensor bias;
  if (b_in) {
    check_shape(*b_in, {p.num_experts, p.ffn}, p.x.scalar_type(), "b_in");
    bias = b_in->contiguous();
  }
  at::Tensor y = at::empty({p.num_tokens, p.hidden}, p.x.options());
  at::Tensor extra = at::empty({p.num_tokens, p.top_k - 1, p.hidden}, p.x.options());
  at::Tensor activations = at::empty({keep ? p.num_tokens * p.top_k : 0, p.ffn}, p.x.options());
  // Rows past the last kept one belong to dropped choices: defined, and never read.
  if (keep && p.num_kept() < activations.size(0)) activations.slice(0, p.num_kept()).zero_();
  ExpertsForward args{};
  args.dtype = p.dtype;
  args.activation = act;
  args.hidden = p.hidden, args.ffn = p.ffn, args.block = p.block, args.top_k = int(p.top_k);
  args.gemm_float = float_gemm(), args.gemm_double = double_gemm();
  args.x = pointer(p.x), args.w_in = pointer(p.w_in), args.b_in = pointer(bias);
  args.w_out = pointer(p.w_out), args.b_out = pointer(p.b_out), args.weights = pointer(p.weights);
  args.slots = p.slots.const_data_ptr<int32_t>();
  args.activations = keep ? activations.mutable_data_ptr() : nullptr;
  args.y = y.mutable_data_ptr(), args.extra = extra.mutable_data_ptr();
  const auto tasks = forward_tasks(p.offsets.data(), int(p.num_experts), p.block);
  run_tasks(p, tasks, false, [&](const ExpertTask& task, void* scratch) {
    expert_kernels().forward(args, task, scratch);
  });
  combine(p, y, extra);
  return {y, activations};
}

struct Gradients {
  at::Tensor x, weights, w_in, b_in, w_out, b_out;
};

// Adds up the partial sums of the experts that were cut into segments, and every bias.
void reduce(const Problem& p, const std::vector<ExpertTask>& tasks, const ExpertsBackward& args,
            Gradients& grads) {
  std::vector<std::vector<const ExpertTask*>> segments(p.num_experts);
  for (const ExpertTask& task : tasks) segments[task.expert].push_back(&task);
  const ExpertKernels& kernels = expert_kernels();
  const int64_t size = p.hidden * p.ffn, item = p.x.element_size();
  const int64_t scalar_size = p.dtype == Dtype::kFloat64 ? 8 : 4;
  const auto at_expert = [&](at::Tensor& grad, int64_t expert, int64_t count) {
    return static_cast<char*>(grad.mutable_data_ptr()) + expert * count * item;
  };
  at::parallel_for(0, p.num_experts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t e = begin; e < end; ++e) {
      const int64_t parts = int64_t(segments[e].size());
      std::vector<const void*> w_in, w_out;
      std::vector<const double*> b_in, b_out;
      for (const ExpertTask* task : segments[e]) {
        if (parts > 1) {  // an expert in one segment has no partial sums
          const char* partial = static_cast<const char*>(args.partial);
          w_in.push_back(partial + args.partial_of[task->segment] * 2 * size * scalar_size);
          w_out.push_back(static_cast<const char*>(w_in.back()) + size * scalar_size);
        }
        if (args.bias_sums == nullptr) continue;
        b_in.push_back(args.bias_sums + task->segment * (p.ffn + p.hidden));
        b_out.push_back(b_in.back() + p.ffn);
      }
      if (parts > 1) {
        kernels.reduce(p.dtype, w_in.data(), parts, size, at_expert(grads.w_in, e, size));
        kernels.reduce(p.dtype, w_out.data(), parts, size, at_expert(grads.w_out, e, size));
      }
      if (args.bias_sums == nullptr) continue;
      kernels.reduce_bias(p.dtype, b_in.data(), parts, p.ffn, at_expert(grads.b_in, e, p.ffn));
      kernels.reduce_bias(p.dtype, b_out.data(), parts, p.hidden,
                          at_expert(grads.b_out, e, p.hidden));
    }
  });
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>
expert_ffn_backward(const at::Tensor& grad_y_in, const at::Tensor& x, const at::Tensor& weights,
                    const at::Tensor& experts, const at::Tensor& w_in, const at::Tensor& w_out,
                    const OptionalTensor& b_out, const at::Tensor& activations_in,
                    std::string_view activation) {
  chosen_kernels();
  const Activation act = activation_of(activation);
  const Problem p(x, weights, experts, w_in, w_out, b_out);
  const auto options = p.x.options();
  check_shape(grad_y_in, {p.num_tokens, p.hidden}, p.x.scalar_type(), "grad_y");
  check_shape(activations_in, {p.num_tokens * p.top_k, p.ffn}, p.x.scalar_type(), "activations");
  const at::Tensor grad_y = grad_y_in.contiguous(), activations = activations_in.contiguous();
  Gradients grads;
  grads.x = at::empty_like(p.x);
  // A dropped choice gets a zero: nothing else writes there.
  grads.weights =
      p.num_kept() == p.weights.numel() ? at::empty_like(p.weights) : at::zeros_like(p.weights);
  grads.w_in = at::empty_like(p.w_in), grads.w_out = at::empty_like(p.w_out);
  grads.b_in = at::empty({b_out ? p.num_experts : 0, p.ffn}, options);
  grads.b_out = at::empty({b_out ? p.num_experts : 0, p.hidden}, options);
  at::Tensor extra = at::empty({p.num_tokens, p.top_k - 1, p.hidden}, options);

  const auto tasks = backward_tasks(p.offsets.data(), int(p.num_experts), p.block);
  const int64_t num_segments = int64_t(tasks.size());
  std::vector<int64_t> segments_of(p.num_experts, 0), partial_of(num_segments, -1);
  for (const ExpertTask& task : tasks) ++segments_of[task.expert];
  int64_t num_partial = 0;
  for (const ExpertTask& task : tasks) {
    if (segments_of[task.expert] > 1) partial_of[task.segment] = num_partial++;
  }
  at::Tensor partial = at::empty({num_partial, 2, p.ffn * p.hidden}, options.dtype(p.scalar));
  at::Tensor bias_sums =
      at::empty({b_out ? num_segments : 0, p.ffn + p.hidden}, options.dtype(at::kDouble));
  ExpertsBackward args{};
  args.dtype = p.dtype;
  args.activation = act;
  args.hidden = p.hidden, args.ffn = p.ffn, args.block = p.block, args.top_k = int(p.top_k);
  args.gemm_float = float_gemm(), args.gemm_double = double_gemm();
  args.x = pointer(p.x), args.w_in = pointer(p.w_in), args.w_out = pointer(p.w_out);
  args.b_out = pointer(p.b_out), args.grad_y = pointer(grad_y);
  args.activations = pointer(activations), args.weights = pointer(p.weights);
  args.slots = p.slots.const_data_ptr<int32_t>();
  args.grad_x = grads.x.mutable_data_ptr(), args.extra = extra.mutable_data_ptr();
  args.grad_weights = grads.weights.mutable_data_ptr();
  args.grad_w_in = grads.w_in.mutable_data_ptr(), args.grad_w_out = grads.w_out.mutable_data_ptr();
  args.partial_of = partial_of.data(), args.partial = partial.mutable_data_ptr();
  args.bias_sums = b_out ? bias_sums.mutable_data_ptr<double>() : nullptr;
  run_tasks(p, tasks, true, [&](const ExpertTask& task, void* scratch) {
    expert_kernels().backward(args, task, scratch);
  });
  reduce(p, tasks, args, grads);
  combine(p, grads.x, extra);
  return {grads.x, grads.weights, grads.w_in, grads.b_in, grads.w_out, grads.b_out};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(moge, library) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  library.def(
      "expert_ffn(Tensor x, Tensor weights, Tensor experts, Tensor w_in, Tensor? b_in, "
      "Tensor w_out, Tensor? b_out, str activation, bool keep_activations) -> "
      "(Tensor y, Tensor activations)",
      tags);
  library.def(
      "expert_ffn_backward(Tensor grad_y, Tensor x, Tensor weights, Tensor experts, Tensor w_in, "
      "Tensor w_out, Tensor? b_out, Tensor activations, str activation) -> "
      "(Tensor grad_x, Tensor grad_weights, Tensor grad_w_in, Tensor grad_b_in, "
      "Tensor grad_w_out, Tensor grad_b_out)",
      tags);
}

TORCH_LIBRARY_IMPL(moge, CPU, library) {
  library.impl("expert_ffn", &expert_ffn);
  library.impl("expert_ffn_backward", &expert_ffn_backward);
}

}  // namespace moge
