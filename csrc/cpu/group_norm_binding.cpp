// Joins moge::group_norm and moge::group_norm_backward to their CPU kernels.

#include <ATen/Parallel.h>
#include <torch/library.h>

#include "checks.h"
#include "tensors.h"

namespace moge {
namespace {

GroupNorm arguments(const at::Tensor& scores, const GroupPlan& plan, const Mask& mask) {
  GroupNorm args{};
  args.dtype = dtype_of(scores, "scores");
  args.scores = scores.const_data_ptr();
  args.num_tokens = scores.size(0);
  args.chunk_tokens = chunk_tokens(scores.size(0));
  args.num_experts = int(scores.size(1));
  args.groups = &plan.groups;
  args.mask = mask.data;
  return args;
}

int64_t num_chunks(const GroupNorm& args) {
  return (args.num_tokens + args.chunk_tokens - 1) / args.chunk_tokens;
}

at::Tensor group_norm(const at::Tensor& scores_in, const at::Tensor& taps, at::IntArrayRef groups,
                      bool strict, const std::optional<at::Tensor>& mask_in) {
  check_matrix(scores_in, "scores");
  const at::Tensor scores = scores_in.contiguous();
  const GroupSettings settings = read_groups(groups, taps, scores.size(1));
  const GroupPlan plan(taps.const_data_ptr<double>(), settings);
  const Mask mask(mask_in, scores.size(0));
  GroupNorm args = arguments(scores, plan, mask);
  std::vector<ChunkSums> sums(num_chunks(args));
  args.sums = sums.data();
  const KernelSet& set = chosen_kernels();
  at::parallel_for(0, num_chunks(args), 1,
                   [&](int64_t begin, int64_t end) { set.group_norm_forward(args, begin, end); });
  if (strict) check_finite_rows(sums, &ChunkSums::bad_logits_row, "scores");
  double loss = 0.0;
  for (const ChunkSums& part : sums) loss += part.loss;
  loss *= settings.scale(mask.num_counted);
  return scalar_tensor(loss, accumulation_dtype(scores));
}

at::Tensor group_norm_backward(const at::Tensor& grad_loss, const at::Tensor& scores_in,
                               const at::Tensor& taps, at::IntArrayRef groups,
                               const std::optional<at::Tensor>& mask_in) {
  check_matrix(scores_in, "scores");
  const at::Tensor scores = scores_in.contiguous();
  check_shape(grad_loss, {}, accumulation_dtype(scores), "grad_loss");
  const GroupSettings settings = read_groups(groups, taps, scores.size(1));
  const GroupPlan plan(taps.const_data_ptr<double>(), settings);
  at::Tensor grad_scores = empty_cpu(scores.sizes(), scores.scalar_type());
  const Mask mask(mask_in, scores.size(0));
  GroupNorm args = arguments(scores, plan, mask);
  args.norm_grad = number_in(grad_loss) * settings.scale(mask.num_counted);
  args.grad_scores = grad_scores.mutable_data_ptr();
  const KernelSet& set = chosen_kernels();
  at::parallel_for(0, num_chunks(args), 1,
                   [&](int64_t begin, int64_t end) { set.group_norm_backward(args, begin, end); });
  return grad_scores;
}

}  // namespace

TORCH_LIBRARY_IMPL(moge, CPU, library) {
  library.impl("group_norm", &group_norm);
  library.impl("group_norm_backward", &group_norm_backward);
}

}  // namespace moge
