// Launcher of moge::route, backward.

#include "cuda/launcher.h"
#include "cuda/partials.cuh"
#include "cuda/route_backward.cuh"

namespace moge::cuda {
namespace {

template <int V, int W, class In>
int run(const RouteBackward& args, void* stream) {
  const Filter filter = make_filter(args.groups, args.num_experts);
  const SliceLayout slices = make_slices<V>(filter, args.num_experts);
  const size_t shared_bytes =
      4 * (size_t(kWarps) * slices.pitch + args.num_experts + tap_floats(filter));
  if (const int code = allow_shared(route_backward_kernel<V, W, In>, shared_bytes)) return code;
  SIMT_LAUNCH((route_backward_kernel<V, W, In>), count_blocks(args.num_tokens), kThreads,
              shared_bytes, as_stream(stream), args, slices.pitch, slices.margin, filter);
  return check_launch();
}

}  // namespace
}  // namespace moge::cuda

extern "C" int moge_cuda_route_backward(const moge::cuda::RouteBackward* args, void* stream) {
  using namespace moge::cuda;
  if (args->num_tokens == 0) return 0;
  if (args->wide != nullptr) return launch_wide_backward(*args, stream);
  if (launch_subwarp_backward(*args, stream)) return check_launch();
  return with_row(args->element, args->num_experts, {args->logits, args->grad_logits},
                  [&](auto row) {
                    using Row = decltype(row);
                    return run<Row::V, Row::W, typename Row::In>(*args, stream);
                  });
}
