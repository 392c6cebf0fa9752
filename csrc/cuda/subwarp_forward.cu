// Launcher of moge::route, forward, for the common maps.

#include "cuda/subwarp_forward.cuh"
#include "cuda/subwarp_launcher.h"

namespace moge::cuda {

bool launch_subwarp_forward(const RouteForward& args, void* stream) {
  return with_sub_map(
      args.num_tokens, args.num_experts, args.top_k, args.groups, {args.logits, args.noise},
      [&](auto map) {
        using Map = decltype(map);
        const int blocks = count_blocks(args.num_tokens);
        const Partials parts = make_partials(args.workspace, blocks, args.num_experts);
        SIMT_LAUNCH(route_forward_subwarp_kernel<Map>, blocks, kSubThreads, 0, as_stream(stream),
                    args, parts, chunk_size(args.num_tokens), tap_source(args.groups));
        return true;
      });
}

}  // namespace moge::cuda
