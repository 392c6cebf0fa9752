// Derivatives of the experts' ops: moge::expert_ffn of the CPU, and those around torch's matrix
// products on a GPU: moge::dispatch, moge::bias_activation and moge::combine.

#include <torch/library.h>

#include "autograd.h"

namespace moge {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// As RouteFunction: `kept` receives the activations, which Function need not see.
struct ExpertFunction : torch::autograd::Function<ExpertFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weights,
                        const Tensor& experts, const Tensor& w_in, const OptionalTensor& b_in,
                        const Tensor& w_out, const OptionalTensor& b_out,
                        std::string_view activation, Tensor* kept) {
    Tensor y;
    std::tie(y, *kept) = call_below(expert_ffn_op(), x, weights, experts, w_in, b_in, w_out, b_out,
                                    activation, /*keep_activations=*/true);
    ctx->set_materialize_grads(false);
    ctx->save_for_backward({x, weights, experts, w_in, w_out, b_out.value_or(Tensor()), *kept,
                            b_in.value_or(Tensor())});
    ctx->saved_data["activation"] = std::string(activation);
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    variable_list result(9);
    if (!grads[0].defined()) return result;
    // Once: what is saved under checkpointing is given out once.
    const variable_list saved = ctx->get_saved_variables();
    const OptionalTensor b_out = optional(saved[5]);
    const auto [x, weights, w_in, b_in, w_out, b_out_grad] =
        expert_ffn_backward_op().call(grads[0], saved[0], saved[1], saved[2], saved[3], saved[4],
                                      b_out, saved[6], ctx->saved_data["activation"].toStringRef());
    result[0] = x, result[1] = weights, result[3] = w_in, result[5] = w_out;
    if (!b_out) return result;
    result[4] = b_in, result[6] = b_out_grad;
    // The backward op has b_in in its activations alone, which have no history.
    for (Tensor& grad : result) {
      if (grad.defined()) grad = refuse_second(grad, {&saved[7]}, "moge::expert_ffn_backward");
    }
    return result;
  }
};

std::tuple<Tensor, Tensor> expert_ffn(const Tensor& x, const Tensor& weights, const Tensor& experts,
                                      const Tensor& w_in, const OptionalTensor& b_in,
                                      const Tensor& w_out, const OptionalTensor& b_out,
                                      std::string_view activation, bool keep_activations) {
  if (!differentiated({&x, &weights, &w_in, pointer_to(b_in), &w_out, pointer_to(b_out)},
                      "moge::expert_ffn")) {
    return call_below(expert_ffn_op(), x, weights, experts, w_in, b_in, w_out, b_out, activation,
                      keep_activations);
  }
  Tensor kept;
  const Tensor y =
      ExpertFunction::apply(x, weights, experts, w_in, b_in, w_out, b_out, activation, &kept);
  return {y, kept};
}

ExpertGradients expert_ffn_backward(const Tensor& grad_y, const Tensor& x, const Tensor& weights,
                                    const Tensor& experts, const Tensor& w_in, const Tensor& w_out,
                                    const OptionalTensor& b_out, const Tensor& activations,
                                    std::string_view activation) {
  const ExpertGradients grads = call_below(expert_ffn_backward_op(), grad_y, x, weights, experts,
                                           w_in, w_out, b_out, activations, activation);
  const auto refuse = [&](const Tensor& grad) {
    return refuse_second(grad,
                         {&grad_y, &x, &weights, &w_in, &w_out, pointer_to(b_out), &activations},
                         "moge::expert_ffn_backward");
  };
  return std::apply([&](const auto&... grad) { return ExpertGradients(refuse(grad)...); }, grads);
}

struct DispatchFunction : torch::autograd::Function<DispatchFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& experts,
                        int64_t num_experts, DispatchOutputs* out) {
    *out = call_below(dispatch_op(), x, experts, num_experts);
    const auto& [rows, offsets, slots, positions, bad_row] = *out;
    ctx->save_for_backward({slots, positions});
    return rows;
  }

  // The adjoint of copying a token to each of its rows is the sum over them.
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    return {combine_op().call(grads[0], std::nullopt, saved[0], saved[1]), Tensor(), Tensor(),
            Tensor()};
  }
};

DispatchOutputs dispatch(const Tensor& x, const Tensor& experts, int64_t num_experts) {
  if (!differentiated({&x}, "moge::dispatch")) {
    return call_below(dispatch_op(), x, experts, num_experts);
  }
  DispatchOutputs out;
  const Tensor rows = DispatchFunction::apply(x, experts, num_experts, &out);
  std::get<0>(out) = rows;
  return out;
}

struct CombineFunction : torch::autograd::Function<CombineFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& rows, const Tensor& weights,
                        const Tensor& slots, const Tensor& positions) {
    ctx->save_for_backward({rows, weights, slots, positions});
    return call_below(combine_op(), rows, OptionalTensor(weights), slots, positions);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const auto [rows, weights] =
        combine_backward_op().call(grads[0], saved[0], saved[1], saved[2], saved[3]);
    return {rows, weights, Tensor(), Tensor()};
  }
};

Tensor combine(const Tensor& rows, const OptionalTensor& weights, const Tensor& slots,
               const Tensor& positions) {
  const bool differentiates = differentiated({&rows, pointer_to(weights)}, "moge::combine");
  if (differentiates && weights) return CombineFunction::apply(rows, *weights, slots, positions);
  const Tensor result = call_below(combine_op(), rows, weights, slots, positions);
  // Without weights it is the backward of dispatch.
  return differentiates ? refuse_second(result, {&rows}, "moge::combine without weights") : result;
}

std::tuple<Tensor, Tensor> combine_backward(const Tensor& grad_y, const Tensor& rows,
                                            const Tensor& weights, const Tensor& slots,
                                            const Tensor& positions) {
  const auto [grad_rows, grad_weights] =
      call_below(combine_backward_op(), grad_y, rows, weights, slots, positions);
  const std::initializer_list<const Tensor*> inputs = {&grad_y, &rows, &weights};
  const char* op = "moge::combine_backward";
  return {refuse_second(grad_rows, inputs, op), refuse_second(grad_weights, inputs, op)};
}

struct BiasFunction : torch::autograd::Function<BiasFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& rows, const Tensor& bias,
                        const Tensor& offsets, int64_t activation) {
    const bool linear = activation == 0;  // needs neither for its gradients
    ctx->save_for_backward({linear ? Tensor() : rows, linear ? Tensor() : bias, offsets});
    ctx->saved_data["activation"] = activation;
    return call_below(bias_activation_op(), rows, bias, offsets, activation);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const int64_t activation = ctx->saved_data["activation"].toInt();
    const auto [grad_rows, grad_bias] = bias_activation_backward_op().call(
        grads[0], optional(saved[0]), optional(saved[1]), saved[2], activation);
    return {activation == 0 ? grads[0] : grad_rows, grad_bias, Tensor(), Tensor()};
  }
};

Tensor bias_activation(const Tensor& rows, const Tensor& bias, const Tensor& offsets,
                       int64_t activation) {
  if (!differentiated({&rows, &bias}, "moge::bias_activation")) {
    return call_below(bias_activation_op(), rows, bias, offsets, activation);
  }
  return BiasFunction::apply(rows, bias, offsets, activation);
}

std::tuple<Tensor, Tensor> bias_activation_backward(const Tensor& grad_output,
                                                    const OptionalTensor& rows,
                                                    const OptionalTensor& bias,
                                                    const Tensor& offsets, int64_t activation) {
  const auto [grad_rows, grad_bias] =
      call_below(bias_activation_backward_op(), grad_output, rows, bias, offsets, activation);
  const auto refuse = [&](const Tensor& grad) {
    return refuse_second(grad, {&grad_output, pointer_to(rows), pointer_to(bias)},
                         "moge::bias_activation_backward");
  };
  return {refuse(grad_rows), refuse(grad_bias)};
}

}  // namespace

TORCH_LIBRARY_IMPL(moge, Autograd, library) {
  library.impl("expert_ffn", &expert_ffn);
  library.impl("expert_ffn_backward", &expert_ffn_backward);
  library.impl("dispatch", &dispatch);
  library.impl("combine", &combine);
  library.impl("combine_backward", &combine_backward);
  library.impl("bias_activation", &bias_activation);
  library.impl("bias_activation_backward", &bias_activation_backward);
}

}  // namespace moge
