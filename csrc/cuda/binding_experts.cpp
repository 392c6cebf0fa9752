// Joins the ops around the experts' products to their CUDA launchers: dispatch, bias_activation,
// combine, and their gradients.
// Legend: T tokens, k choices of a token, N experts, d hidden size, R = T k rows, c columns.

#include <limits>

#include "binding.h"

namespace moge::cuda {
namespace {

// Rows of `source`, (T, d), in the order of `slots`; scaled by `weights` where they are given.
Tensor gather(const Tensor& source, const OptionalTensor& weights, const Tensor& slots,
              int64_t top_k, const Device& device) {
  const Tensor rows = empty(source, {slots.size(0), source.size(1)}, source.scalar_type());
  GatherRows args{};
  args.source = source.const_data_ptr();
  args.weights = pointer<float>(weights);
  args.slots = pointer<int32_t>(slots);
  args.rows = rows.mutable_data_ptr();
  args.num_tokens = source.size(0);
  args.hidden_size = source.size(1);
  args.element = element_of(source, "x");
  args.top_k = int32_t(top_k);
  launch(moge_cuda_gather_rows, args, device);
  return rows;
}

void check_rows(const Tensor& tensor, const char* name) {
  check_device(tensor, name);
  check_value(tensor.dim() == 2 && tensor.size(1) >= 1, name,
              " must have two dimensions, the last of size d, got ", shape_text(tensor.sizes()));
  element_of(tensor, name);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> dispatch(const Tensor& x_in,
                                                            const Tensor& experts_in,
                                                            int64_t num_experts) {
  check_rows(x_in, "x");
  const Device device(x_in);
  check_value(experts_in.dim() == 2 && experts_in.size(1) >= 1,
              "experts must have shape (T, k), k at least 1, got ", shape_text(experts_in.sizes()));
  check_value(num_experts >= 1 && num_experts <= 1024, "num_experts must be from 1 to 1024, got ",
              num_experts);
  const int64_t num_tokens = x_in.size(0), top_k = experts_in.size(1);
  check_value(num_tokens * top_k <= std::numeric_limits<int32_t>::max(),
              "experts must hold at most 2^31 - 1 choices, got ", shape_text(experts_in.sizes()));
  const Tensor x = as_contiguous(x_in);
  const Tensor experts = checked(experts_in, x, {num_tokens, top_k}, ScalarType::Long, "experts");
  const Tensor offsets = empty(x, {num_experts + 1}, ScalarType::Long);
  const Tensor slots = empty(x, {num_tokens * top_k}, ScalarType::Int);
  const Tensor positions = empty(x, {num_tokens, top_k}, ScalarType::Int);
  const Tensor bad_row = empty(x, {}, ScalarType::Long);
  const Workspace workspace(
      x, moge_cuda_sort_choices_workspace_bytes(num_tokens * top_k, int32_t(num_experts)));
  SortChoices args{};
  args.experts = pointer<int64_t>(experts);
  args.offsets = output<int64_t>(offsets);
  args.slots = output<int32_t>(slots);
  args.positions = output<int32_t>(positions);
  args.bad_row = output<int64_t>(bad_row);
  args.workspace = workspace.data;
  args.num_tokens = num_tokens;
  args.num_experts = int32_t(num_experts);
  args.top_k = int32_t(top_k);
  launch(moge_cuda_sort_choices, args, device);
  return {gather(x, std::nullopt, slots, top_k, device), offsets, slots, positions, bad_row};
}

// `slots` and `positions` as dispatch gave them, contiguous; what indexes memory is their shape,
// and their values are trusted: only dispatch makes them.
std::tuple<Tensor, Tensor> check_order(const Tensor& slots, const Tensor& positions,
                                       const Tensor& like) {
  check_value(positions.dim() == 2 && positions.size(1) >= 1,
              "positions must have shape (T, k), k at least 1, got ",
              shape_text(positions.sizes()));
  const int64_t num_tokens = positions.size(0), top_k = positions.size(1);
  return {checked(slots, like, {num_tokens * top_k}, ScalarType::Int, "slots"),
          checked(positions, like, {num_tokens, top_k}, ScalarType::Int, "positions")};
}

Tensor combine(const Tensor& rows_in, const OptionalTensor& weights_in, const Tensor& slots_in,
               const Tensor& positions_in) {
  check_rows(rows_in, "rows");
  const Device device(rows_in);
  const auto [slots, positions] = check_order(slots_in, positions_in, rows_in);
  const int64_t num_tokens = positions.size(0), top_k = positions.size(1), d = rows_in.size(1);
  const Tensor rows =
      checked(rows_in, rows_in, {num_tokens * top_k, d}, rows_in.scalar_type(), "rows");
  const auto weights = checked(weights_in, rows, {num_tokens, top_k}, ScalarType::Float, "weights");
  const Tensor y = empty(rows, {num_tokens, d}, rows.scalar_type());
  CombineRows args{};
  args.rows = rows.const_data_ptr();
  args.weights = pointer<float>(weights);
  args.positions = pointer<int32_t>(positions);
  args.output = y.mutable_data_ptr();
  args.num_tokens = num_tokens;
  args.hidden_size = d;
  args.element = element_of(rows, "rows");
  args.top_k = int32_t(top_k);
  launch(moge_cuda_combine_rows, args, device);
  return y;
}

std::tuple<Tensor, Tensor> combine_backward(const Tensor& grad_y_in, const Tensor& rows_in,
                                            const Tensor& weights_in, const Tensor& slots_in,
                                            const Tensor& positions_in) {
  check_rows(rows_in, "rows");
  const Device device(rows_in);
  const auto [slots, positions] = check_order(slots_in, positions_in, rows_in);
  const int64_t num_tokens = positions.size(0), top_k = positions.size(1), d = rows_in.size(1);
  const auto stored = rows_in.scalar_type();
  const Tensor rows = checked(rows_in, rows_in, {num_tokens * top_k, d}, stored, "rows");
  const Tensor grad_y = checked(grad_y_in, rows, {num_tokens, d}, stored, "grad_y");
  const Tensor weights =
      checked(weights_in, rows, {num_tokens, top_k}, ScalarType::Float, "weights");
  const Tensor grad_weights = empty(rows, {num_tokens, top_k}, ScalarType::Float);
  CombineWeightGrad args{};
  args.grad_output = grad_y.const_data_ptr();
  args.rows = rows.const_data_ptr();
  args.positions = pointer<int32_t>(positions);
  args.grad_weights = output<float>(grad_weights);
  args.num_tokens = num_tokens;
  args.hidden_size = d;
  args.element = element_of(rows, "rows");
  args.top_k = int32_t(top_k);
  launch(moge_cuda_combine_weight_grad, args, device);
  return {gather(grad_y, weights, slots, top_k, device), grad_weights};
}

// The number of experts that `offsets`, as dispatch gave them, speak of; their values are trusted.
int64_t check_offsets(const Tensor& offsets) {
  check_value(offsets.dim() == 1 && offsets.size(0) >= 2 && offsets.size(0) <= 1025,
              "offsets must have shape (N + 1,), N from 1 to 1024, got ",
              shape_text(offsets.sizes()));
  return offsets.size(0) - 1;
}

Activation check_activation(int64_t activation) {
  check_value(activation >= 0 && activation <= 3,
              "activation must be 0 (none), 1 (gelu), 2 (relu) or 3 (silu), got ", activation);
  return Activation(int32_t(activation));
}

Tensor bias_activation(const Tensor& rows_in, const Tensor& bias_in, const Tensor& offsets_in,
                       int64_t activation) {
  check_rows(rows_in, "rows");
  const Device device(rows_in);
  const int64_t num_experts = check_offsets(offsets_in);
  const int64_t num_rows = rows_in.size(0), c = rows_in.size(1);
  const auto stored = rows_in.scalar_type();
  const Tensor rows = checked(rows_in, rows_in, {num_rows, c}, stored, "rows");
  const Tensor bias = checked(bias_in, rows, {num_experts, c}, stored, "bias");
  const Tensor offsets = checked(offsets_in, rows, {num_experts + 1}, ScalarType::Long, "offsets");
  const Tensor result = empty(rows, {num_rows, c}, stored);
  BiasActivation args{};
  args.rows = rows.const_data_ptr();
  args.bias = bias.const_data_ptr();
  args.offsets = pointer<int64_t>(offsets);
  args.output = result.mutable_data_ptr();
  args.num_rows = num_rows;
  args.hidden_size = c;
  args.element = element_of(rows, "rows");
  args.activation = check_activation(activation);
  args.num_experts = int32_t(num_experts);
  launch(moge_cuda_bias_activation, args, device);
  return result;
}

std::tuple<Tensor, Tensor> bias_activation_backward(const Tensor& grad_in,
                                                    const OptionalTensor& rows_in,
                                                    const OptionalTensor& bias_in,
                                                    const Tensor& offsets_in, int64_t activation) {
  check_rows(grad_in, "grad_output");
  const Device device(grad_in);
  const int64_t num_experts = check_offsets(offsets_in);
  const int64_t num_rows = grad_in.size(0), c = grad_in.size(1);
  const auto stored = grad_in.scalar_type();
  const bool linear = check_activation(activation) == Activation::kNone;
  check_value(linear || (rows_in && bias_in), "rows and bias must be given for activation ",
              activation, ", got None");
  const Tensor grad = checked(grad_in, grad_in, {num_rows, c}, stored, "grad_output");
  const auto rows = checked(rows_in, grad, {num_rows, c}, stored, "rows");
  const auto bias = checked(bias_in, grad, {num_experts, c}, stored, "bias");
  const Tensor offsets = checked(offsets_in, grad, {num_experts + 1}, ScalarType::Long, "offsets");
  const Tensor grad_rows = empty(grad, {linear ? 0 : num_rows, c}, stored);
  const Tensor grad_bias = empty(grad, {num_experts, c}, stored);
  const Workspace workspace(
      grad, moge_cuda_bias_activation_backward_workspace_bytes(num_rows, int32_t(num_experts), c));
  BiasActivationBackward args{};
  args.grad_output = grad.const_data_ptr();
  args.offsets = pointer<int64_t>(offsets);
  if (!linear) {
    args.rows = rows->const_data_ptr();
    args.bias = bias->const_data_ptr();
    args.grad_rows = grad_rows.mutable_data_ptr();
  }
  args.grad_bias = grad_bias.mutable_data_ptr();
  args.workspace = workspace.data;
  args.num_rows = num_rows;
  args.hidden_size = c;
  args.element = element_of(grad, "grad_output");
  args.activation = check_activation(activation);
  args.num_experts = int32_t(num_experts);
  launch(moge_cuda_bias_activation_backward, args, device);
  return {grad_rows, grad_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(moge, MOGE_DISPATCH_KEY, library) {
  library.impl("dispatch", TORCH_BOX(&dispatch));
  library.impl("combine", TORCH_BOX(&combine));
  library.impl("combine_backward", TORCH_BOX(&combine_backward));
  library.impl("bias_activation", TORCH_BOX(&bias_activation));
  library.impl("bias_activation_backward", TORCH_BOX(&bias_activation_backward));
}

}  // namespace moge::cuda
