// From the lists and tensors of the router's ops to what the launchers take: plan.h, launch.h.
#pragma once

#include "binding.h"
#include "plan.h"

namespace moge::cuda {

using Ints = std::vector<int64_t>;  // the lists of plan.h

// The op's `groups`; `taps` float64, contiguous, on the device of `like`.
struct GroupArguments {
  GroupArguments(const Ints& values, const Tensor& taps, const Tensor& like)
      : settings(values.data(), int64_t(values.size()), checked_size(taps, like), like.size(1)) {
    map.taps = static_cast<const double*>(taps.const_data_ptr());
    map.group_size = int32_t(settings.group_size);
    map.rows = int32_t(settings.rows);
    map.cols = int32_t(settings.cols);
    map.stride = int32_t(settings.stride);
    map.group_rows = int32_t(settings.group_rows);
    map.group_cols = int32_t(settings.group_cols);
    map.torus = settings.torus;
  }
  GroupSettings settings;
  GroupMap map{};

 private:
  static int64_t checked_size(const Tensor& taps, const Tensor& like) {
    check_same_device(taps, like, "taps");
    check_value(taps.dim() == 1 && taps.numel() >= 1 && taps.is_contiguous(),
                "taps must be contiguous, of shape (group_size,), got shape ",
                shape_text(taps.sizes()));
    check_type(taps.scalar_type() == ScalarType::Double, "taps must be float64, got ",
               taps.scalar_type());
    return taps.numel();
  }
};

// What `wide` of the launchers points to, and the tensors that it points to.
class WideArguments {
 public:
  WideArguments(const OptionalTensor& mask, const GroupSettings* groups, const Tensor& like) {
    wide_.scale = 1;
    wide_.num_groups = wide_.top_groups = 1;
    if (mask) {
      mask_ = checked(*mask, like, {like.size(0)}, ScalarType::Bool, "mask");
      wide_.mask = static_cast<const uint8_t*>(mask_->const_data_ptr());
    }
    is_mean_ = mask && groups != nullptr && groups->reduction == Reduction::kTokenMean;
    wide_.unit_energy = groups != nullptr && groups->unit_energy;
  }
  void choose(const ChoiceSettings& choice, double scale) {
    wide_.scale = scale;
    wide_.function = int32_t(choice.score_function);
    wide_.num_groups = int32_t(choice.num_groups);
    wide_.top_groups = int32_t(choice.top_groups);
  }
  void select(const OptionalTensor& bias, bool strict, const Tensor& like) {
    if (bias) {
      check_shape(*bias, like, {like.size(1)}, "bias");
      bias_ = torch::stable::to(as_contiguous(*bias), ScalarType::Float);
      wide_.bias = pointer<float>(bias_);
    }
    wide_.strict = strict;
  }
  // Where a mean goes: the group loss, or for its gradient scratch.
  void mean_into(const Tensor& value) {
    if (is_mean_) wide_.mean = output<float>(value);
  }
  void take_scratch(const Tensor& like) {
    if (!is_mean_) return;
    scratch_ = empty(like, {}, ScalarType::Float);
    mean_into(*scratch_);
  }
  // Of one token where the loss is divided by their number on the device.
  double loss_scale(const GroupSettings& groups, int64_t num_tokens) const {
    return groups.scale(is_mean_ ? 1 : num_tokens);
  }
  const Wide* get() const {
    const bool wider = wide_.bias || wide_.mask || wide_.scale != 1 || wide_.function != 0 ||
                       wide_.top_groups < wide_.num_groups || wide_.unit_energy;
    return wider ? &wide_ : nullptr;
  }

 private:
  OptionalTensor mask_, bias_, scratch_;
  Wide wide_{};
  bool is_mean_;
};

inline const GroupSettings* settings_of(const std::optional<GroupArguments>& groups) {
  return groups ? &groups->settings : nullptr;
}

}  // namespace moge::cuda
