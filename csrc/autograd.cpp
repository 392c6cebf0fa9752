#include "autograd.h"

namespace moge {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// torch.func keeps a derivative in a wrapper of its own, which has a dispatch key.
bool inside_transform(const Tensor& tensor) {
  return tensor.key_set().has(c10::DispatchKey::FuncTorchGradWrapper);
}

void check_forward_mode(const Tensor& tensor, const char* op) {
  // Level 0 is the only one there is.
  TORCH_CHECK_NOT_IMPLEMENTED(
      !tensor._fw_grad(0).defined(), op,
      " has no forward-mode derivative (torch.func.jvp, jacfwd, linearize, hessian; "
      "torch.autograd.forward_ad); backend='reference' has it");
}

// The gradient of a backward op: one clear error instead of a wrong or missing derivative.
struct SecondDerivative : torch::autograd::Function<SecondDerivative> {
  static Tensor forward(AutogradContext* ctx, const Tensor& result, const Tensor& input,
                        std::string op) {
    ctx->saved_data["op"] = op;
    return result.view_as(result);
  }
  static variable_list backward(AutogradContext* ctx, variable_list) {
    TORCH_CHECK_NOT_IMPLEMENTED(false, ctx->saved_data["op"].toStringRef(),
                                " has no derivative: second derivatives of the fused ops are not "
                                "implemented; backend='reference' has them");
  }
};

}  // namespace

bool differentiated(std::initializer_list<const Tensor*> inputs, const char* op) {
  bool any = false;
  for (const Tensor* input : inputs) {
    if (input == nullptr) continue;
    check_forward_mode(*input, op);
    if (!needs_grad(*input)) continue;
    TORCH_CHECK_NOT_IMPLEMENTED(!inside_transform(*input), op,
                                " has no derivative under torch.func (grad, vjp, jacrev): take it "
                                "by .backward() or torch.autograd.grad, or pass "
                                "backend='reference', which has it");
    any = true;
  }
  return any;
}

void check_constant(const Tensor& taps, const char* op) {
  TORCH_CHECK_NOT_IMPLEMENTED(!needs_grad(taps) && !taps._fw_grad(0).defined(), op,
                              " has no derivative by taps: detach them, or pass "
                              "backend='reference', which has it");
}

Tensor refuse_second(Tensor result, std::initializer_list<const Tensor*> inputs, const char* op) {
  if (!differentiated(inputs, op)) return result;
  for (const Tensor* input : inputs) {
    if (input == nullptr || !needs_grad(*input)) continue;
    result = SecondDerivative::apply(result, *input, std::string(op));
  }
  return result;
}

}  // namespace moge
