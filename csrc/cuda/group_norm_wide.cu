// Launchers of moge::group_norm, forward and backward, with a mask or unit energy.

#include "cuda/group_norm_wide.cuh"
#include "cuda/launcher.h"

namespace moge::cuda {
namespace {

template <int V, int W>
int forward(const GroupNormForward& args, void* stream) {
  const Filter filter = make_filter(args.groups, args.num_experts);
  const SliceLayout slices = make_slices<V>(filter, args.num_experts);
  const size_t shared_bytes = 4 * (size_t(kWarps) * slices.pitch + tap_floats(filter));
  const int blocks = count_blocks(args.num_tokens);
  const Partials parts = make_partials(args.workspace, blocks, 0);
  const auto kernel = group_norm_wide_forward_kernel<V, W>;
  if (const int code = allow_shared(kernel, shared_bytes)) return code;
  SIMT_LAUNCH((group_norm_wide_forward_kernel<V, W>), blocks, kThreads, shared_bytes,
              as_stream(stream), args, *args.wide, parts, slices.pitch, slices.margin, filter);
  return check_launch();
}

template <int V, int W>
int backward(const GroupNormBackward& args, void* stream) {
  const Filter filter = make_filter(args.groups, args.num_experts);
  const SliceLayout slices = make_slices<V>(filter, args.num_experts);
  const size_t shared_bytes = 4 * (size_t(kWarps) * slices.pitch + tap_floats(filter));
  const auto kernel = group_norm_wide_backward_kernel<V, W>;
  if (const int code = allow_shared(kernel, shared_bytes)) return code;
  SIMT_LAUNCH((group_norm_wide_backward_kernel<V, W>), count_blocks(args.num_tokens), kThreads,
              shared_bytes, as_stream(stream), args, *args.wide, slices.pitch, slices.margin,
              filter);
  return check_launch();
}

}  // namespace

int launch_wide_norm(const GroupNormForward& args, void* stream) {
  return with_any_row(args.element, args.num_experts, {args.scores}, [&](auto row) {
    using Row = decltype(row);
    return forward<Row::V, Row::W>(args, stream);
  });
}

int launch_wide_norm_backward(const GroupNormBackward& given, void* stream) {
  GroupNormBackward args = given;
  if (args.wide->mean != nullptr) {
    const int code = divide_by_counted(*args.wide, args.num_tokens, args.grad_loss, stream);
    if (code) return code;
    args.grad_loss = args.wide->mean;
  }
  return with_any_row(args.element, args.num_experts, {args.scores, args.grad_scores},
                      [&](auto row) {
                        using Row = decltype(row);
                        return backward<Row::V, Row::W>(args, stream);
                      });
}

}  // namespace moge::cuda
