// The types of the router's ops in C++, as registration.cpp declares them, and how to call them
// through the dispatcher: whatever torch puts before a kernel (autograd, tracing, modes) happens.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <optional>
#include <string_view>
#include <tuple>

namespace moge {

using OptionalTensor = std::optional<at::Tensor>;
// weights, experts, importance, group_loss, load, row_stats
using RouteOutputs =
    std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

using RouteSignature = RouteOutputs(const at::Tensor&, const OptionalTensor&, const OptionalTensor&,
                                    int64_t, int64_t, int64_t, int64_t, bool, std::string_view,
                                    bool, bool);
using RouteBackwardSignature = at::Tensor(const OptionalTensor&, const OptionalTensor&,
                                          const OptionalTensor&, const at::Tensor&,
                                          const OptionalTensor&, const at::Tensor&,
                                          const at::Tensor&, const at::Tensor&, int64_t, int64_t,
                                          int64_t, bool, std::string_view, bool);
using NormSignature = at::Tensor(const at::Tensor&, const at::Tensor&, int64_t, int64_t, int64_t,
                                 bool, std::string_view, bool);
using NormBackwardSignature = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                         int64_t, int64_t, int64_t, bool, std::string_view);

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

}  // namespace moge
