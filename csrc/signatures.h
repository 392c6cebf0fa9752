// The types of the ops in C++, as their schemas declare them, and how to call them through the
// dispatcher: whatever torch puts before a kernel (autograd, tracing, modes) happens.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <optional>
#include <string_view>
#include <tuple>

namespace moge {

using OptionalTensor = std::optional<at::Tensor>;
// weights, experts, importance, group_loss, load, first_load, row_stats
using RouteOutputs =
    std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

// The lists of ints are those of plan.h.
using RouteSignature = RouteOutputs(const at::Tensor&, const OptionalTensor&, const OptionalTensor&,
                                    at::IntArrayRef, at::IntArrayRef, bool, const OptionalTensor&,
                                    const OptionalTensor&, double);
using RouteBackwardSignature = at::Tensor(const OptionalTensor&, const OptionalTensor&,
                                          const OptionalTensor&, const at::Tensor&,
                                          const OptionalTensor&, const at::Tensor&,
                                          const at::Tensor&, const at::Tensor&, at::IntArrayRef,
                                          at::IntArrayRef, const OptionalTensor&, double);
using NormSignature = at::Tensor(const at::Tensor&, const at::Tensor&, at::IntArrayRef, bool,
                                 const OptionalTensor&);
using NormBackwardSignature = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                         at::IntArrayRef, const OptionalTensor&);
// grad_x, grad_weights, grad_w_in, grad_b_in, grad_w_out, grad_b_out
using ExpertGradients =
    std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
// rows, offsets, slots, positions, bad_row
using DispatchOutputs = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

using ExpertSignature = std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, const at::Tensor&,
                                                           const at::Tensor&, const at::Tensor&,
                                                           const OptionalTensor&, const at::Tensor&,
                                                           const OptionalTensor&, std::string_view,
                                                           bool);
using ExpertBackwardSignature = ExpertGradients(const at::Tensor&, const at::Tensor&,
                                                const at::Tensor&, const at::Tensor&,
                                                const at::Tensor&, const at::Tensor&,
                                                const OptionalTensor&, const at::Tensor&,
                                                std::string_view);
using DispatchSignature = DispatchOutputs(const at::Tensor&, const at::Tensor&, int64_t);
using CombineSignature = at::Tensor(const at::Tensor&, const OptionalTensor&, const at::Tensor&,
                                    const at::Tensor&);
using CombineBackwardSignature = std::tuple<at::Tensor, at::Tensor>(
    const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&);
using BiasSignature = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, int64_t);
using BiasBackwardSignature = std::tuple<at::Tensor, at::Tensor>(const at::Tensor&,
                                                                 const OptionalTensor&,
                                                                 const OptionalTensor&,
                                                                 const at::Tensor&, int64_t);

template <class Signature>
c10::TypedOperatorHandle<Signature> find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

inline const auto& route_op() {
  static const auto op = find_op<RouteSignature>("moge::route");
  return op;
}

inline const auto& group_norm_op() {
  static const auto op = find_op<NormSignature>("moge::group_norm");
  return op;
}

inline const auto& expert_ffn_op() {
  static const auto op = find_op<ExpertSignature>("moge::expert_ffn");
  return op;
}

inline const auto& expert_ffn_backward_op() {
  static const auto op = find_op<ExpertBackwardSignature>("moge::expert_ffn_backward");
  return op;
}

inline const auto& dispatch_op() {
  static const auto op = find_op<DispatchSignature>("moge::dispatch");
  return op;
}

inline const auto& combine_op() {
  static const auto op = find_op<CombineSignature>("moge::combine");
  return op;
}

inline const auto& combine_backward_op() {
  static const auto op = find_op<CombineBackwardSignature>("moge::combine_backward");
  return op;
}

inline const auto& bias_activation_op() {
  static const auto op = find_op<BiasSignature>("moge::bias_activation");
  return op;
}

inline const auto& bias_activation_backward_op() {
  static const auto op = find_op<BiasBackwardSignature>("moge::bias_activation_backward");
  return op;
}

}  // namespace moge
