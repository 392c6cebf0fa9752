// Derivatives of the router's ops. In C++ because a router call is short: with the same rules
// registered from Python, forward and backward of 16 tokens took 163 us, of which the kernels are
// 10.

#include <torch/library.h>

#include "autograd.h"

namespace moge {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// `out` receives every output. Function sees the differentiable ones alone: each that it sees costs
// it a note of shape and type, and one that is marked as not differentiable an entry in a set too.
struct RouteFunction : torch::autograd::Function<RouteFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& logits,
                               const OptionalTensor& noise, const OptionalTensor& taps,
                               at::IntArrayRef groups, at::IntArrayRef choice, bool strict,
                               const OptionalTensor& bias, const OptionalTensor& mask, double scale,
                               RouteOutputs* out) {
    *out = call_below(route_op(), logits, noise, taps, groups, choice, strict, bias, mask, scale);
    const auto& [weights, experts, importance, loss, load, first_load, row_stats] = *out;
    ctx->set_materialize_grads(false);
    ctx->save_for_backward(
        {logits, taps.value_or(Tensor()), experts, weights, row_stats, mask.value_or(Tensor())});
    ctx->saved_data["groups"] = groups;
    ctx->saved_data["choice"] = choice;
    ctx->saved_data["scale"] = scale;
    return {weights, importance, loss};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    variable_list result(10);
    const Tensor &grad_weights = grads[0], &grad_importance = grads[1], &grad_loss = grads[2];
    if (!grad_weights.defined() && !grad_importance.defined() && !grad_loss.defined()) {
      return result;
    }
    static const auto op = find_op<RouteBackwardSignature>("moge::route_backward");
    const variable_list saved = ctx->get_saved_variables();
    result[0] =
        op.call(optional(grad_weights), optional(grad_importance), optional(grad_loss), saved[0],
                optional(saved[1]), saved[2], saved[3], saved[4],
                ctx->saved_data["groups"].toIntVector(), ctx->saved_data["choice"].toIntVector(),
                optional(saved[5]), ctx->saved_data["scale"].toDouble());
    return result;
  }
};

RouteOutputs route(const Tensor& logits, const OptionalTensor& noise, const OptionalTensor& taps,
                   at::IntArrayRef groups, at::IntArrayRef choice, bool strict,
                   const OptionalTensor& bias, const OptionalTensor& mask, double scale) {
  if (taps) check_constant(*taps, "moge::route");
  if (!differentiated({&logits}, "moge::route")) {
    return call_below(route_op(), logits, noise, taps, groups, choice, strict, bias, mask, scale);
  }
  RouteOutputs out;
  const variable_list differentiable =
      RouteFunction::apply(logits, noise, taps, groups, choice, strict, bias, mask, scale, &out);
  std::get<0>(out) = differentiable[0];
  std::get<2>(out) = differentiable[1];
  std::get<3>(out) = differentiable[2];
  return out;
}

Tensor route_backward(const OptionalTensor& grad_weights, const OptionalTensor& grad_importance,
                      const OptionalTensor& grad_loss, const Tensor& logits,
                      const OptionalTensor& taps, const Tensor& experts, const Tensor& weights,
                      const Tensor& row_stats, at::IntArrayRef groups, at::IntArrayRef choice,
                      const OptionalTensor& mask, double scale) {
  static const auto op = find_op<RouteBackwardSignature>("moge::route_backward");
  const Tensor result = call_below(op, grad_weights, grad_importance, grad_loss, logits, taps,
                                   experts, weights, row_stats, groups, choice, mask, scale);
  return refuse_second(
      result,
      {pointer_to(grad_weights), pointer_to(grad_importance), pointer_to(grad_loss), &logits},
      "moge::route_backward");
}

struct GroupNormFunction : torch::autograd::Function<GroupNormFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& scores, const Tensor& taps,
                        at::IntArrayRef groups, bool strict, const OptionalTensor& mask) {
    ctx->save_for_backward({scores, taps, mask.value_or(Tensor())});
    ctx->saved_data["groups"] = groups;
    return call_below(group_norm_op(), scores, taps, groups, strict, mask);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    static const auto op = find_op<NormBackwardSignature>("moge::group_norm_backward");
    const variable_list saved = ctx->get_saved_variables();
    variable_list result(5);
    result[0] = op.call(grads[0], saved[0], saved[1], ctx->saved_data["groups"].toIntVector(),
                        optional(saved[2]));
    return result;
  }
};

Tensor group_norm(const Tensor& scores, const Tensor& taps, at::IntArrayRef groups, bool strict,
                  const OptionalTensor& mask) {
  check_constant(taps, "moge::group_norm");
  if (!differentiated({&scores}, "moge::group_norm")) {
    return call_below(group_norm_op(), scores, taps, groups, strict, mask);
  }
  return GroupNormFunction::apply(scores, taps, groups, strict, mask);
}

Tensor group_norm_backward(const Tensor& grad_loss, const Tensor& scores, const Tensor& taps,
                           at::IntArrayRef groups, const OptionalTensor& mask) {
  static const auto op = find_op<NormBackwardSignature>("moge::group_norm_backward");
  const Tensor result = call_below(op, grad_loss, scores, taps, groups, mask);
  return refuse_second(result, {&grad_loss, &scores}, "moge::group_norm_backward");
}

}  // namespace

TORCH_LIBRARY_IMPL(moge, Autograd, library) {
  library.impl("route", &route);
  library.impl("route_backward", &route_backward);
  library.impl("group_norm", &group_norm);
  library.impl("group_norm_backward", &group_norm_backward);
}

}  // namespace moge
