// moge::route, forward: adds the blocks' partial sums, in a fixed order.
#pragma once

#include "cuda/partials.cuh"

namespace moge::cuda {

// Grid: one block for every kColumns experts, and one for the scalars.
__global__ void __launch_bounds__(kThreads)
    route_reduce_kernel(const RouteForward args, const Partials parts, const int blocks) {
  if (blockIdx.x + 1 < gridDim.x) {
    reduce_columns(parts, blocks, args.num_experts, args.importance, args.load, args.first_load);
  } else {
    reduce_scalars(parts, blocks, args.loss_scale, args.group_loss, args.bad_rows);
  }
}

}  // namespace moge::cuda
