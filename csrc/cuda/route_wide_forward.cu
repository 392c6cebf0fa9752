// Launcher of moge::route, forward, with what "Wider routing" adds; and the mean over tokens that
// count.

#include "cuda/count_tokens.cuh"
#include "cuda/launcher.h"
#include "cuda/partials.cuh"
#include "cuda/route_wide_forward.cuh"

namespace moge::cuda {

namespace {

template <int V, int W>
int forward(const RouteForward& args, void* stream) {
  const Filter filter = make_filter(args.groups, args.num_experts);
  SliceLayout slices = make_slices<V>(filter, args.num_experts);
  const int ranks = slices.pitch;
  slices.pitch += (args.wide->num_groups + 3) / 4 * 4;
  const size_t shared_bytes =
      4 * (size_t(kWarps) * slices.pitch + args.num_experts + tap_floats(filter));
  const int blocks = count_blocks(args.num_tokens);
  const Partials parts = make_partials(args.workspace, blocks, args.num_experts);
  if (const int code = allow_shared(route_wide_forward_kernel<V, W>, shared_bytes)) return code;
  SIMT_LAUNCH((route_wide_forward_kernel<V, W>), blocks, kThreads, shared_bytes, as_stream(stream),
              args, *args.wide, parts, slices.pitch, slices.margin, ranks, filter);
  return check_launch();
}

}  // namespace

int divide_by_counted(const Wide& wide, int64_t num_tokens, const float* value, void* stream) {
  SIMT_LAUNCH(count_tokens_kernel, 1, kThreads, 0, as_stream(stream), wide.mask, num_tokens, value,
              wide.mean);
  return check_launch();
}

int launch_wide_forward(const RouteForward& args, void* stream) {
  const Wide& wide = *args.wide;
  if (wide.num_groups < 1 || args.num_experts % wide.num_groups != 0) {
    return fail("num_groups must divide num_experts");
  }
  if (wide.top_groups < 1 || wide.top_groups > wide.num_groups ||
      args.top_k % wide.top_groups != 0 ||
      args.top_k / wide.top_groups > args.num_experts / wide.num_groups) {
    return fail("top_groups must divide top_k and hold that many experts");
  }
  return with_any_row(args.element, args.num_experts, {args.logits, args.noise, wide.bias},
                      [&](auto row) {
                        using Row = decltype(row);
                        return forward<Row::V, Row::W>(args, stream);
                      });
}

}  // namespace moge::cuda
