// Joins moge::route and moge::route_backward to their CPU kernels: checks, allocation, threads.

#include <ATen/Parallel.h>
#include <torch/library.h>

#include "checks.h"
#include "tensors.h"
#include "signatures.h"

namespace moge {
namespace {

Wider wider_settings(const ChoiceSettings& choice, const Mask& mask, double scale) {
  Wider wider;
  wider.scale = scale;
  wider.score_function = choice.score_function;
  wider.mask = mask.data;
  wider.num_groups = int(choice.num_groups);
  wider.top_groups = int(choice.top_groups);
  return wider;
}

RouteOutputs route(const at::Tensor& logits_in, const OptionalTensor& noise_in,
                   const OptionalTensor& taps, at::IntArrayRef groups, at::IntArrayRef choice_in,
                   bool strict, const OptionalTensor& bias_in, const OptionalTensor& mask_in,
                   double weight_scale) {
  check_matrix(logits_in, "logits");
  const at::Tensor logits = logits_in.contiguous();
  const int64_t num_tokens = logits.size(0), num_experts = logits.size(1);
  const ChoiceSettings choice(choice_in.data(), int64_t(choice_in.size()), num_experts);
  const int64_t top_k = choice.top_k;
  const at::ScalarType dtype = accumulation_dtype(logits);
  at::Tensor noise;
  if (noise_in) {
    check_matrix(*noise_in, "noise");
    check_shape(*noise_in, logits.sizes(), noise_in->scalar_type(), "noise");
    noise = noise_in->to(dtype).contiguous();
  }
  at::Tensor bias;
  if (bias_in) {
    check_shape(*bias_in, {num_experts}, bias_in->scalar_type(), "bias");
    dtype_of(*bias_in, "bias");
    bias = bias_in->to(dtype).contiguous();
  }
  const Mask mask(mask_in, num_tokens);
  std::optional<GroupPlan> plan;
  double scale = 0.0;
  if (taps) {
    const GroupSettings settings = read_groups(groups, *taps, num_experts);
    plan.emplace(taps->const_data_ptr<double>(), settings);
    scale = settings.scale(mask.num_counted);
  }

  at::Tensor weights = empty_cpu({num_tokens, top_k}, dtype);
  at::Tensor experts = empty_cpu({num_tokens, top_k}, at::kLong);
  at::Tensor row_stats = empty_cpu({num_tokens, 2}, dtype);
  at::Tensor importance = empty_cpu({num_experts}, dtype);
  at::Tensor load = empty_cpu({num_experts}, at::kLong);
  at::Tensor first_load = empty_cpu({num_experts}, at::kLong);

  const int64_t chunk = chunk_tokens(num_tokens), chunks = (num_tokens + chunk - 1) / chunk;
  std::vector<ChunkSums> sums(chunks);
  std::vector<double> importance_sums(chunks * num_experts);
  std::vector<int64_t> load_sums(chunks * num_experts), first_sums(chunks * num_experts);
  RouteForward args{};
  args.dtype = dtype_of(logits, "logits");
  args.logits = logits.const_data_ptr();
  args.noise = noise.defined() ? noise.const_data_ptr() : nullptr;
  args.num_tokens = num_tokens;
  args.chunk_tokens = chunk;
  args.num_experts = int(num_experts);
  args.top_k = int(top_k);
  args.renormalize = choice.renormalize;
  args.groups = plan ? &plan->groups : nullptr;
  args.weights = weights.mutable_data_ptr();
  args.experts = experts.mutable_data_ptr<int64_t>();
  args.row_stats = row_stats.mutable_data_ptr();
  args.sums = sums.data();
  args.importance = importance_sums.data();
  args.load = load_sums.data();
  args.first_load = first_sums.data();
  args.wider = wider_settings(choice, mask, weight_scale);
  args.wider.bias = bias.defined() ? bias.const_data_ptr() : nullptr;
  args.wider.strict = strict;
  const KernelSet& set = chosen_kernels();
  at::parallel_for(0, chunks, 1,
                   [&](int64_t begin, int64_t end) { set.route_forward(args, begin, end); });
  if (strict) {
    check_finite_rows(sums, &ChunkSums::bad_logits_row, "logits");
    check_finite_rows(sums, &ChunkSums::bad_noise_row, "noise");
  }
  double loss = 0.0;
  for (const ChunkSums& part : sums) loss += part.loss;
  loss *= scale;
  std::vector<double> importance_total(num_experts, 0.0);
  int64_t* load_total = load.mutable_data_ptr<int64_t>();
  int64_t* first_total = first_load.mutable_data_ptr<int64_t>();
  std::fill_n(load_total, num_experts, 0);
  std::fill_n(first_total, num_experts, 0);
  for (int64_t i = 0; i < chunks * num_experts; ++i) {
    importance_total[i % num_experts] += importance_sums[i];
    load_total[i % num_experts] += load_sums[i];
    first_total[i % num_experts] += first_sums[i];
  }
  if (dtype == at::kDouble) {
    std::copy(importance_total.begin(), importance_total.end(),
              importance.mutable_data_ptr<double>());
  } else {
    std::copy(importance_total.begin(), importance_total.end(),
              importance.mutable_data_ptr<float>());
  }
  return {weights, experts, importance, scalar_tensor(loss, dtype), load, first_load, row_stats};
}

at::Tensor route_backward(const OptionalTensor& grad_weights, const OptionalTensor& grad_importance,
                          const OptionalTensor& grad_loss, const at::Tensor& logits_in,
                          const OptionalTensor& taps, const at::Tensor& experts_in,
                          const at::Tensor& weights_in, const at::Tensor& row_stats_in,
                          at::IntArrayRef groups, at::IntArrayRef choice_in,
                          const OptionalTensor& mask_in, double weight_scale) {
  check_matrix(logits_in, "logits");
  const at::Tensor logits = logits_in.contiguous();
  const int64_t num_tokens = logits.size(0), num_experts = logits.size(1);
  const at::ScalarType dtype = accumulation_dtype(logits);
  TORCH_CHECK_VALUE(experts_in.dim() == 2, "experts must have shape (num_tokens, top_k), got ",
                    experts_in.sizes());
  const ChoiceSettings choice(choice_in.data(), int64_t(choice_in.size()), num_experts);
  const int64_t top_k = choice.top_k;
  check_shape(experts_in, {num_tokens, top_k}, at::kLong, "experts");
  check_shape(weights_in, {num_tokens, top_k}, dtype, "weights");
  check_shape(row_stats_in, {num_tokens, 2}, dtype, "row_stats");
  const at::Tensor experts = experts_in.contiguous(), weights = weights_in.contiguous();
  const at::Tensor row_stats = row_stats_in.contiguous();
  at::Tensor upstream_weights, upstream_importance;
  if (grad_weights) {
    check_shape(*grad_weights, {num_tokens, top_k}, dtype, "grad_weights");
    upstream_weights = grad_weights->contiguous();
  }
  if (grad_importance) {
    check_shape(*grad_importance, {num_experts}, dtype, "grad_importance");
    upstream_importance = grad_importance->contiguous();
  }
  const Mask mask(mask_in, num_tokens);
  std::optional<GroupPlan> plan;
  double norm_grad = 0.0;
  if (grad_loss) check_shape(*grad_loss, {}, dtype, "grad_loss");
  if (grad_loss && taps) {  // without taps the loss is the constant 0
    const GroupSettings settings = read_groups(groups, *taps, num_experts);
    plan.emplace(taps->const_data_ptr<double>(), settings);
    norm_grad = number_in(*grad_loss) * settings.scale(mask.num_counted);
  }
  at::Tensor grad_logits = empty_cpu(logits.sizes(), logits.scalar_type());

  const int64_t chunk = chunk_tokens(num_tokens), chunks = (num_tokens + chunk - 1) / chunk;
  std::vector<ChunkSums> sums(chunks);
  RouteBackward args{};
  args.dtype = dtype_of(logits, "logits");
  args.logits = logits.const_data_ptr();
  args.row_stats = row_stats.const_data_ptr();
  args.weights = weights.const_data_ptr();
  args.experts = experts.const_data_ptr<int64_t>();
  args.num_tokens = num_tokens;
  args.chunk_tokens = chunk;
  args.num_experts = int(num_experts);
  args.top_k = int(top_k);
  args.renormalize = choice.renormalize;
  args.groups = plan ? &plan->groups : nullptr;
  args.norm_grad = norm_grad;
  args.grad_weights = upstream_weights.defined() ? upstream_weights.const_data_ptr() : nullptr;
  args.grad_importance =
      upstream_importance.defined() ? upstream_importance.const_data_ptr() : nullptr;
  args.grad_logits = grad_logits.mutable_data_ptr();
  args.wider = wider_settings(choice, mask, weight_scale);
  args.sums = sums.data();
  const KernelSet& set = chosen_kernels();
  at::parallel_for(0, chunks, 1,
                   [&](int64_t begin, int64_t end) { set.route_backward(args, begin, end); });
  for (const ChunkSums& part : sums) {
    TORCH_CHECK_VALUE(part.bad_logits_row < 0, "experts must hold indices from 0 to ",
                      num_experts - 1, ", got another near row ", part.bad_logits_row);
  }
  return grad_logits;
}

}  // namespace

TORCH_LIBRARY_IMPL(moge, CPU, library) {
  library.impl("route", &route);
  library.impl("route_backward", &route_backward);
}

}  // namespace moge
