// Launcher of moge::route, forward.

#include "cuda/launcher.h"
#include "cuda/route_forward.cuh"
#include "cuda/route_reduce.cuh"

namespace moge::cuda {
namespace {

template <int V, int W, class In>
int run(const RouteForward& args, void* stream) {
  const Filter filter = make_filter(args.groups, args.num_experts);
  const SliceLayout slices = make_slices<V>(filter, args.num_experts);
  const size_t shared_bytes =
      4 * (size_t(kWarps) * slices.pitch + args.num_experts + tap_floats(filter));
  const int blocks = count_blocks(args.num_tokens);
  const Partials parts = make_partials(args.workspace, blocks, args.num_experts);
  if (const int code = allow_shared(route_forward_kernel<V, W, In>, shared_bytes)) return code;
  SIMT_LAUNCH((route_forward_kernel<V, W, In>), blocks, kThreads, shared_bytes, as_stream(stream),
              args, parts, slices.pitch, slices.margin, filter);
  return check_launch();
}

int forward(const RouteForward& args, void* stream) {
  if (args.wide != nullptr) return launch_wide_forward(args, stream);
  if (launch_subwarp_forward(args, stream)) return check_launch();
  return with_row(args.element, args.num_experts, {args.logits, args.noise}, [&](auto row) {
    using Row = decltype(row);
    return run<Row::V, Row::W, typename Row::In>(args, stream);
  });
}

int reduce(const RouteForward& args, void* stream) {
  const int columns = (args.num_experts + kColumns - 1) / kColumns;
  const int blocks = count_blocks(args.num_tokens);
  const Partials parts = make_partials(args.workspace, blocks, args.num_experts);
  SIMT_LAUNCH(route_reduce_kernel, columns + 1, kThreads, 0, as_stream(stream), args, parts,
              blocks);
  return check_launch();
}

}  // namespace
}  // namespace moge::cuda

extern "C" {
int moge_cuda_route_forward(const moge::cuda::RouteForward* args, void* stream) {
  using namespace moge::cuda;
  if (args->top_k < 1 || args->top_k > args->num_experts) {
    return fail("top_k must be from 1 to num_experts");
  }
  if (args->noise != nullptr && args->noise_stride != 0 &&
      args->noise_stride != args->num_experts) {
    return fail("noise_stride must be 0 or num_experts");
  }
  if (const int code = forward(*args, stream)) return code;
  if (const int code = reduce(*args, stream)) return code;
  if (args->wide == nullptr || args->wide->mean == nullptr) return 0;
  return divide_by_counted(*args->wide, args->num_tokens, args->group_loss, stream);
}
int64_t moge_cuda_route_workspace_bytes(int64_t num_tokens, int32_t num_experts) {
  return moge::cuda::partial_bytes(moge::cuda::count_blocks(num_tokens), num_experts);
}
}
