// Results of the router's CPU ops, made and read without the way through torch's dispatcher that
// at::empty and item() take: an op is called for 16 tokens, too.
#pragma once

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>

namespace moge {

// A contiguous tensor, not yet written.
inline at::Tensor empty_cpu(at::IntArrayRef sizes, at::ScalarType dtype) {
  return at::Tensor(at::detail::empty_cpu(sizes, dtype, /*pin_memory=*/false, std::nullopt));
}

// A tensor of one number, float32 or float64, and the number in one.
inline at::Tensor scalar_tensor(double value, at::ScalarType dtype) {
  at::Tensor tensor = empty_cpu({}, dtype);
  if (dtype == at::kDouble) {
    *tensor.mutable_data_ptr<double>() = value;
  } else {
    *tensor.mutable_data_ptr<float>() = float(value);
  }
  return tensor;
}
inline double number_in(const at::Tensor& scalar) {
  return scalar.scalar_type() == at::kDouble ? *scalar.const_data_ptr<double>()
                                             : *scalar.const_data_ptr<float>();
}

}  // namespace moge
