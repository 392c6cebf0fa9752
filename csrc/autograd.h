// What the derivatives of the ops share: the call beneath autograd, and an error wherever a
// derivative is asked for that an op does not have. Silence there would be a derivative of 0.
#pragma once

#include <torch/csrc/autograd/custom_function.h>

#include <initializer_list>
#include <stdexcept>
#include <string>

#include "signatures.h"

namespace moge {

// Calls an op's kernel beneath autograd. The CUDA kernels are bound through the stable ABI, which
// has standard exceptions only: here they become the types that the CPU's checks raise.
template <class Signature, class... Args>
auto call_below(const c10::TypedOperatorHandle<Signature>& op, Args&&... args) {
  at::AutoDispatchBelowADInplaceOrView guard;
  try {
    return op.call(std::forward<Args>(args)...);
  } catch (const std::invalid_argument& error) {
    C10_THROW_ERROR(ValueError, error.what());
  } catch (const std::domain_error& error) {
    C10_THROW_ERROR(TypeError, error.what());
  }
}

inline bool needs_grad(const at::Tensor& tensor) {
  return at::GradMode::is_enabled() && tensor.requires_grad();
}

inline OptionalTensor optional(const at::Tensor& tensor) {
  return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
}

// Whether one of `inputs`, those that `op` is differentiated by, requires a gradient. Raises where
// one is differentiated in forward mode or by a transform of torch.func, which have no rule here.
bool differentiated(std::initializer_list<const at::Tensor*> inputs, const char* op);

// Raises where the derivative by `taps` is asked for, which no op has.
void check_constant(const at::Tensor& taps, const char* op);

// `result` of a backward op, made to raise if it is differentiated again, by whichever input.
at::Tensor refuse_second(at::Tensor result, std::initializer_list<const at::Tensor*> inputs,
                         const char* op);

inline const at::Tensor* pointer_to(const OptionalTensor& tensor) {
  return tensor ? &*tensor : nullptr;
}

}  // namespace moge
