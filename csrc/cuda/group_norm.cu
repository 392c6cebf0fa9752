// Launchers of moge::group_norm, forward and backward.

#include "cuda/group_norm.cuh"
#include "cuda/launcher.h"

namespace moge::cuda {
namespace {

template <int V, int W, class In>
int forward(const GroupNormForward& args, void* stream) {
  const Filter filter = make_filter(args.groups, args.num_experts);
  const SliceLayout slices = make_slices<V>(filter, args.num_experts);
  const size_t shared_bytes = 4 * (size_t(kWarps) * slices.pitch + tap_floats(filter));
  const int blocks = count_blocks(args.num_tokens);
  const Partials parts = make_partials(args.workspace, blocks, 0);
  if (const int code = allow_shared(group_norm_forward_kernel<V, W, In>, shared_bytes)) return code;
  SIMT_LAUNCH((group_norm_forward_kernel<V, W, In>), blocks, kThreads, shared_bytes,
              as_stream(stream), args, parts, slices.pitch, slices.margin, filter);
  return check_launch();
}

int reduce(const GroupNormForward& args, void* stream) {
  const int blocks = count_blocks(args.num_tokens);
  const Partials parts = make_partials(args.workspace, blocks, 0);
  SIMT_LAUNCH(group_norm_reduce_kernel, 1, kThreads, 0, as_stream(stream), args, parts, blocks);
  return check_launch();
}

template <int V, int W, class In>
int backward(const GroupNormBackward& args, void* stream) {
  const Filter filter = make_filter(args.groups, args.num_experts);
  const SliceLayout slices = make_slices<V>(filter, args.num_experts);
  const size_t shared_bytes = 4 * (size_t(kWarps) * slices.pitch + tap_floats(filter));
  if (const int code = allow_shared(group_norm_backward_kernel<V, W, In>, shared_bytes))
    return code;
  SIMT_LAUNCH((group_norm_backward_kernel<V, W, In>), count_blocks(args.num_tokens), kThreads,
              shared_bytes, as_stream(stream), args, slices.pitch, slices.margin, filter);
  return check_launch();
}

}  // namespace
}  // namespace moge::cuda

extern "C" {
int moge_cuda_group_norm_forward(const moge::cuda::GroupNormForward* args, void* stream) {
  using namespace moge::cuda;
  const auto run = [&](auto row) {
    using Row = decltype(row);
    return forward<Row::V, Row::W, typename Row::In>(*args, stream);
  };
  const int code = args->wide != nullptr
                       ? launch_wide_norm(*args, stream)
                       : with_row(args->element, args->num_experts, {args->scores}, run);
  if (code) return code;
  if (const int failed = reduce(*args, stream)) return failed;
  if (args->wide == nullptr || args->wide->mean == nullptr) return 0;
  return divide_by_counted(*args->wide, args->num_tokens, args->group_loss, stream);
}
int moge_cuda_group_norm_backward(const moge::cuda::GroupNormBackward* args, void* stream) {
  using namespace moge::cuda;
  if (args->num_tokens == 0) return 0;
  if (args->wide != nullptr) return launch_wide_norm_backward(*args, stream);
  return with_row(args->element, args->num_experts, {args->scores, args->grad_scores},
                  [&](auto row) {
                    using Row = decltype(row);
                    return backward<Row::V, Row::W, typename Row::In>(*args, stream);
                  });
}
int64_t moge_cuda_group_norm_workspace_bytes(int64_t num_tokens) {
  return moge::cuda::partial_bytes(moge::cuda::count_blocks(num_tokens), 0);
}
}
