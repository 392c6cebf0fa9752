// Argument checks of the ops: they keep torch.ops.moge.* memory-safe when called directly. Each
// message says what came and what is wanted. ValueError or TypeError in Python.
#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <optional>
#include <stdexcept>

#include "plan.h"

namespace moge {

inline Dtype dtype_of(const at::Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return Dtype::kFloat32;
    case at::kDouble:
      return Dtype::kFloat64;
    case at::kBFloat16:
      return Dtype::kBFloat16;
    case at::kHalf:
      return Dtype::kFloat16;
    default:
      TORCH_CHECK_TYPE(false, name, " must be float32, float64, bfloat16 or float16, got ",
                       tensor.scalar_type());
  }
}

// The dtype that is computed in: float64 for float64, else float32.
inline at::ScalarType accumulation_dtype(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

inline void check_cpu(const at::Tensor& tensor, const char* name) {
  TORCH_CHECK_VALUE(tensor.device().is_cpu(), name, " must be on the CPU, got ", tensor.device());
}

inline void check_matrix(const at::Tensor& tensor, const char* name) {
  check_cpu(tensor, name);
  TORCH_CHECK_VALUE(tensor.dim() == 2, name, " must have shape (num_tokens, num_experts), got ",
                    tensor.sizes());
  dtype_of(tensor, name);
  TORCH_CHECK_VALUE(tensor.size(1) >= 1 && tensor.size(1) <= 1024, name,
                    " must have 1 to 1024 experts in its last dimension, got shape ",
                    tensor.sizes());
}

inline void check_shape(const at::Tensor& tensor, at::IntArrayRef shape, at::ScalarType dtype,
                        const char* name) {
  check_cpu(tensor, name);
  TORCH_CHECK_VALUE(tensor.sizes() == shape, name, " must have shape ", shape, ", got ",
                    tensor.sizes());
  TORCH_CHECK_TYPE(tensor.scalar_type() == dtype, name, " must be ", dtype, ", got ",
                   tensor.scalar_type());
}

// The mask of the tokens that count as the kernels take it, or null, and how many do.
struct Mask {
  Mask(const std::optional<at::Tensor>& mask, int64_t num_tokens) : num_counted(num_tokens) {
    if (!mask) return;
    check_shape(*mask, {num_tokens}, at::kBool, "mask");
    tensor = mask->contiguous();
    data = reinterpret_cast<const uint8_t*>(tensor.const_data_ptr());
    num_counted = num_tokens - std::count(data, data + num_tokens, uint8_t{0});
  }
  at::Tensor tensor;
  const uint8_t* data = nullptr;
  int64_t num_counted;
};

// What the op's `groups` says; `taps` float64, contiguous, checked here.
inline GroupSettings read_groups(at::IntArrayRef groups, const at::Tensor& taps,
                                 int64_t num_experts) {
  check_cpu(taps, "taps");
  TORCH_CHECK_VALUE(taps.dim() == 1 && taps.numel() >= 1 && taps.is_contiguous(),
                    "taps must be contiguous, of shape (group_size,), got shape ", taps.sizes());
  TORCH_CHECK_TYPE(taps.scalar_type() == at::kDouble, "taps must be float64, got ",
                   taps.scalar_type());
  return GroupSettings(groups.data(), int64_t(groups.size()), taps.numel(), num_experts);
}

// kernels(), with a bad MOGE_CPU_ISA as a ValueError.
inline const KernelSet& chosen_kernels() {
  try {
    return kernels();
  } catch (const std::invalid_argument& error) {
    TORCH_CHECK_VALUE(false, error.what());
  }
}

inline void check_finite_rows(const std::vector<ChunkSums>& sums, int64_t ChunkSums::* row,
                              const char* name) {
  for (const ChunkSums& chunk : sums) {
    TORCH_CHECK_VALUE(chunk.*row < 0, name, " must be finite, got NaN or inf in row ", chunk.*row,
                      " (rows counted from 0); pass nonfinite='propagate' to let such rows through "
                      "as documented");
  }
}

}  // namespace moge
