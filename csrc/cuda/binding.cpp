// Joins moge::route and moge::group_norm, forward and backward, to their CUDA launchers; and the
// module moge_bench._cuda, whose import registers them and which names the build.

#ifndef MOGE_EMULATED
#include <Python.h>

#include "moge_cuda_facts.h"  // written by setup.py
#endif

#include "binding.h"
#include "binding_plan.h"

namespace moge::cuda {
namespace {

// Where a strict call learns of NaN and infinities: two words on the device, read back once.
class StrictCheck {
 public:
  StrictCheck(bool strict, const Tensor& like, const Device& device) {
    if (!strict) return;
    check_value(!device.capturing(),
                "nonfinite='error' waits for the GPU, which a stream that is being captured into a "
                "CUDA graph cannot do; pass nonfinite='propagate'");
    rows_ = empty(like, {2}, ScalarType::Long);
  }
  BadRows* rows() const { return rows_ ? output<BadRows>(*rows_) : nullptr; }

  void finish(const char* first, const char* second) const {
    if (!rows_) return;
    const Tensor host =
        torch::stable::to(*rows_, torch::stable::Device(torch::headeronly::DeviceType::CPU));
    const auto* rows = static_cast<const int64_t*>(host.const_data_ptr());
    refuse(rows[0], first);
    refuse(rows[1], second);
  }

 private:
  static void refuse(int64_t row, const char* name) {
    check_value(row < 0, name, " must be finite, got NaN or inf in row ", row,
                " (rows counted from 0); pass nonfinite='propagate' to let such rows through as "
                "documented");
  }
  OptionalTensor rows_;
};

ChoiceSettings read_choice(const Ints& values, int64_t num_experts) {
  return ChoiceSettings(values.data(), int64_t(values.size()), num_experts);
}

// Noise as the kernels read it. One row for all tokens, as `expand` makes it, is not copied.
Tensor read_noise(const Tensor& noise, const Tensor& logits) {
  check_shape(noise, logits, {logits.size(0), logits.size(1)}, "noise");
  const bool one_row = noise.stride(0) == 0 && noise.stride(1) == 1;
  if (one_row && noise.scalar_type() == ScalarType::Float) return noise;
  return torch::stable::to(as_contiguous(noise), ScalarType::Float);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> route(
    const Tensor& logits_in, const OptionalTensor& noise_in, const OptionalTensor& taps,
    const Ints& groups_in, const Ints& choice_in, bool strict, const OptionalTensor& bias,
    const OptionalTensor& mask, double weight_scale) {
  check_matrix(logits_in, "logits");
  const Device device(logits_in);
  const Tensor logits = as_contiguous(logits_in);
  const int64_t num_tokens = logits.size(0), num_experts = logits.size(1);
  const ChoiceSettings choice = read_choice(choice_in, num_experts);
  OptionalTensor noise;
  if (noise_in) noise = read_noise(*noise_in, logits);
  std::optional<GroupArguments> groups;
  if (taps) groups.emplace(groups_in, *taps, logits);

  const Tensor weights = empty(logits, {num_tokens, choice.top_k}, ScalarType::Float);
  const Tensor experts = empty(logits, {num_tokens, choice.top_k}, ScalarType::Long);
  const Tensor row_stats = empty(logits, {num_tokens, 2}, ScalarType::Float);
  const Tensor importance = empty(logits, {num_experts}, ScalarType::Float);
  const Tensor load = empty(logits, {num_experts}, ScalarType::Long);
  const Tensor first_load = empty(logits, {num_experts}, ScalarType::Long);
  const Tensor group_loss = empty(logits, {}, ScalarType::Float);
  const StrictCheck check(strict, logits, device);
  const Workspace workspace(logits,
                            moge_cuda_route_workspace_bytes(num_tokens, int32_t(num_experts)));
  RouteForward args{};
  args.logits = logits.const_data_ptr();
  args.noise = pointer<float>(noise);
  // Not its own stride: a single row is contiguous whatever that is.
  args.noise_stride = noise && noise->stride(0) != 0 ? num_experts : 0;
  args.groups = groups ? &groups->map : nullptr;
  args.weights = output<float>(weights);
  args.experts = output<int64_t>(experts);
  args.row_stats = output<float>(row_stats);
  args.importance = output<float>(importance);
  args.load = output<int64_t>(load);
  args.first_load = output<int64_t>(first_load);
  args.group_loss = output<float>(group_loss);
  args.bad_rows = check.rows();
  args.workspace = workspace.data;
  args.num_tokens = num_tokens;
  WideArguments wide(mask, settings_of(groups), logits);
  wide.choose(choice, weight_scale);
  wide.select(bias, strict, logits);
  wide.mean_into(group_loss);
  args.loss_scale = groups ? wide.loss_scale(groups->settings, num_tokens) : 0.0;
  args.wide = wide.get();
  args.element = element_of(logits, "logits");
  args.num_experts = int32_t(num_experts);
  args.top_k = int32_t(choice.top_k);
  args.renormalize = choice.renormalize;
  launch(moge_cuda_route_forward, args, device);
  check.finish("logits", "noise");
  return {weights, experts, importance, group_loss, load, first_load, row_stats};
}

Tensor route_backward(const OptionalTensor& grad_weights_in,
                      const OptionalTensor& grad_importance_in, const OptionalTensor& grad_loss_in,
                      const Tensor& logits_in, const OptionalTensor& taps, const Tensor& experts_in,
                      const Tensor& weights_in, const Tensor& row_stats_in, const Ints& groups_in,
                      const Ints& choice_in, const OptionalTensor& mask, double weight_scale) {
  check_matrix(logits_in, "logits");
  const Device device(logits_in);
  const Tensor logits = as_contiguous(logits_in);
  const int64_t num_tokens = logits.size(0), num_experts = logits.size(1);
  const ChoiceSettings choice = read_choice(choice_in, num_experts);
  const Shape choices = {num_tokens, choice.top_k};
  const auto floats = ScalarType::Float;
  const Tensor experts = checked(experts_in, logits, choices, ScalarType::Long, "experts");
  const Tensor weights = checked(weights_in, logits, choices, floats, "weights");
  const Tensor row_stats = checked(row_stats_in, logits, {num_tokens, 2}, floats, "row_stats");
  check_aligned(row_stats, 8, "row_stats");
  const auto grad_weights = checked(grad_weights_in, logits, choices, floats, "grad_weights");
  const auto grad_importance =
      checked(grad_importance_in, logits, {num_experts}, floats, "grad_importance");
  const auto grad_loss = checked(grad_loss_in, logits, {}, floats, "grad_loss");
  std::optional<GroupArguments> groups;  // without taps the loss is the constant 0
  if (grad_loss && taps) groups.emplace(groups_in, *taps, logits);
  const Tensor grad_logits = empty(logits, {num_tokens, num_experts}, logits.scalar_type());
  RouteBackward args{};
  args.logits = logits.const_data_ptr();
  args.row_stats = pointer<float>(row_stats);
  args.weights = pointer<float>(weights);
  args.experts = pointer<int64_t>(experts);
  args.grad_weights = pointer<float>(grad_weights);
  args.grad_importance = pointer<float>(grad_importance);
  args.grad_loss = pointer<float>(grad_loss);
  args.groups = groups ? &groups->map : nullptr;
  args.grad_logits = grad_logits.mutable_data_ptr();
  args.num_tokens = num_tokens;
  WideArguments wide(mask, settings_of(groups), logits);
  wide.choose(choice, weight_scale);
  wide.take_scratch(logits);
  args.loss_scale = groups ? wide.loss_scale(groups->settings, num_tokens) : 0.0;
  args.wide = wide.get();
  args.element = element_of(logits, "logits");
  args.num_experts = int32_t(num_experts);
  args.top_k = int32_t(choice.top_k);
  args.renormalize = choice.renormalize;
  launch(moge_cuda_route_backward, args, device);
  return grad_logits;
}

Tensor group_norm(const Tensor& scores_in, const Tensor& taps, const Ints& groups_in, bool strict,
                  const OptionalTensor& mask) {
  check_matrix(scores_in, "scores");
  const Device device(scores_in);
  const Tensor scores = as_contiguous(scores_in);
  const GroupArguments groups(groups_in, taps, scores);
  const Tensor group_loss = empty(scores, {}, ScalarType::Float);
  const StrictCheck check(strict, scores, device);
  const Workspace workspace(scores, moge_cuda_group_norm_workspace_bytes(scores.size(0)));
  GroupNormForward args{};
  args.scores = scores.const_data_ptr();
  args.groups = &groups.map;
  args.group_loss = output<float>(group_loss);
  args.bad_rows = check.rows();
  args.workspace = workspace.data;
  args.num_tokens = scores.size(0);
  WideArguments wide(mask, &groups.settings, scores);
  wide.mean_into(group_loss);
  args.loss_scale = wide.loss_scale(groups.settings, scores.size(0));
  args.wide = wide.get();
  args.element = element_of(scores, "scores");
  args.num_experts = int32_t(scores.size(1));
  launch(moge_cuda_group_norm_forward, args, device);
  check.finish("scores", "noise");
  return group_loss;
}

Tensor group_norm_backward(const Tensor& grad_loss_in, const Tensor& scores_in, const Tensor& taps,
                           const Ints& groups_in, const OptionalTensor& mask) {
  check_matrix(scores_in, "scores");
  const Device device(scores_in);
  const Tensor scores = as_contiguous(scores_in);
  const Tensor grad_loss = checked(grad_loss_in, scores, {}, ScalarType::Float, "grad_loss");
  const GroupArguments groups(groups_in, taps, scores);
  const Tensor grad_scores = empty(scores, {scores.size(0), scores.size(1)}, scores.scalar_type());
  GroupNormBackward args{};
  args.scores = scores.const_data_ptr();
  args.grad_loss = pointer<float>(grad_loss);
  args.groups = &groups.map;
  args.grad_scores = grad_scores.mutable_data_ptr();
  args.num_tokens = scores.size(0);
  WideArguments wide(mask, &groups.settings, scores);
  wide.take_scratch(scores);
  args.loss_scale = wide.loss_scale(groups.settings, scores.size(0));
  args.wide = wide.get();
  args.element = element_of(scores, "scores");
  args.num_experts = int32_t(scores.size(1));
  launch(moge_cuda_group_norm_backward, args, device);
  return grad_scores;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(moge, MOGE_DISPATCH_KEY, library) {
  library.impl("route", TORCH_BOX(&route));
  library.impl("route_backward", TORCH_BOX(&route_backward));
  library.impl("group_norm", TORCH_BOX(&group_norm));
  library.impl("group_norm_backward", TORCH_BOX(&group_norm_backward));
}

}  // namespace moge::cuda

#ifndef MOGE_EMULATED
PyMODINIT_FUNC PyInit__cuda() {
  static PyModuleDef definition{};
  definition.m_base = PyModuleDef_HEAD_INIT;
  definition.m_name = "_cuda";
  definition.m_doc = "CUDA kernels of the moge ops, which importing this registers.";
  definition.m_size = -1;
  PyObject* module = PyModule_Create(&definition);
  if (module == nullptr) return nullptr;
  PyModule_AddStringConstant(module, "source_hash", MOGE_CUDA_SOURCE_HASH);
  PyModule_AddStringConstant(module, "architectures", MOGE_CUDA_ARCHITECTURES);
  PyModule_AddStringConstant(module, "nvcc", MOGE_CUDA_NVCC);
  // The target version is major and minor in its two highest bytes.
  const std::string abi =
      moge::cuda::text(TORCH_TARGET_VERSION >> 56, '.', TORCH_TARGET_VERSION >> 48 & 0xff);
  PyModule_AddStringConstant(module, "torch_abi", abi.c_str());
  return module;
}
#endif
