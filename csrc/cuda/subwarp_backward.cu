// Launcher of moge::route, backward, for the common maps.

#include "cuda/subwarp_backward.cuh"
#include "cuda/subwarp_launcher.h"

namespace moge::cuda {

bool launch_subwarp_backward(const RouteBackward& args, void* stream) {
  return with_sub_map(args.num_tokens, args.num_experts, args.top_k, args.groups,
                      {args.logits, args.grad_logits}, [&](auto map) {
                        using Map = decltype(map);
                        SIMT_LAUNCH(route_backward_subwarp_kernel<Map>,
                                    count_blocks(args.num_tokens), kSubThreads, 0,
                                    as_stream(stream), args, chunk_size(args.num_tokens),
                                    tap_source(args.groups));
                        return true;
                      });
}

}  // namespace moge::cuda
