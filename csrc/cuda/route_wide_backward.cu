// Launcher of moge::route, backward, with what "Wider routing" adds.

#include "cuda/launcher.h"
#include "cuda/partials.cuh"
#include "cuda/route_wide_backward.cuh"

namespace moge::cuda {
namespace {

template <int V, int W>
int backward(const RouteBackward& args, void* stream) {
  const Filter filter = make_filter(args.groups, args.num_experts);
  const SliceLayout slices = make_slices<V>(filter, args.num_experts);
  const size_t shared_bytes = 4 * (size_t(kWarps) * slices.pitch + tap_floats(filter));
  if (const int code = allow_shared(route_wide_backward_kernel<V, W>, shared_bytes)) return code;
  SIMT_LAUNCH((route_wide_backward_kernel<V, W>), count_blocks(args.num_tokens), kThreads,
              shared_bytes, as_stream(stream), args, *args.wide, slices.pitch, slices.margin,
              filter);
  return check_launch();
}

}  // namespace

int launch_wide_backward(const RouteBackward& given, void* stream) {
  RouteBackward args = given;
  if (args.wide->mean != nullptr && args.grad_loss != nullptr) {
    const int code = divide_by_counted(*args.wide, args.num_tokens, args.grad_loss, stream);
    if (code) return code;
    args.grad_loss = args.wide->mean;
  }
  return with_any_row(args.element, args.num_experts,
                      {args.logits, args.grad_logits, args.grad_importance}, [&](auto row) {
                        using Row = decltype(row);
                        return backward<Row::V, Row::W>(args, stream);
                      });
}

}  // namespace moge::cuda
