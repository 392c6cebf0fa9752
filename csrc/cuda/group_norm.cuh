// moge::group_norm, forward and backward: the topographic group norm of any scores.
//
// One warp a token: the scores are read once, squared and filtered in the warp's slice of shared
// memory (filter.cuh), and summed, or turned into the gradient z d, which is written once. What
// limits it: shared memory, 2 h loads a score forward and 4 h backward.
#pragma once

#include "cuda/filter.cuh"
#include "cuda/partials.cuh"

namespace moge::cuda {

// Grid: count_blocks(T). Dynamic shared memory: 8 slices of `pitch` floats, then the taps.
template <int V, int W, class In>
__global__ void __launch_bounds__(kThreads, 4)
    group_norm_forward_kernel(const GroupNormForward args, const Partials parts, const int pitch,
                              const int margin_offset, const __grid_constant__ Filter filter) {
  SIMT_SHARED_DYN(float, slices);
  SIMT_SHARED(sums, BlockSums);
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32, n = args.num_experts;
  float* slice = slices + warp * pitch;
  float* taps = slices + kWarps * pitch;
  stage_taps(filter, taps);
  clear_sums(sums);
  if (warp == 0) sums.groups[lane] = group_mask<V>(filter, lane);
  __syncthreads();
  for (int64_t token = int64_t(blockIdx.x) * kWarps + warp; token < args.num_tokens;
       token += int64_t(gridDim.x) * kWarps) {
    __syncwarp();       // the slice is no longer read
    float zero = 0.0f;  // NaN from the first NaN or infinity on
    stage_row<V, W>(static_cast<const In*>(args.scores) + token * n, slice, n, lane,
                    [&](float value) { zero = fmaf(value, 0.0f, zero); });
    note_row(sums.logits, zero != zero, token);
    __syncwarp();
    sums.loss[threadIdx.x] +=
        sum_norms<V>(filter, taps, sums.groups[lane], slice, slice + margin_offset, lane);
  }
  close_warp(sums);
  __syncthreads();
  write_sums(sums, parts);
}

// Grid: one block.
__global__ void __launch_bounds__(kThreads)
    group_norm_reduce_kernel(const GroupNormForward args, const Partials parts, const int blocks) {
  reduce_scalars(parts, blocks, args.loss_scale, args.group_loss, args.bad_rows);
}

// Grid: count_blocks(T). Dynamic shared memory: 8 slices of `pitch` floats, then the taps.
template <int V, int W, class In>
__global__ void __launch_bounds__(kThreads, 4)
    group_norm_backward_kernel(const GroupNormBackward args, const int pitch,
                               const int margin_offset, const __grid_constant__ Filter filter) {
  SIMT_SHARED_DYN(float, slices);
  SIMT_SHARED(masks, unsigned[32]);
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32, n = args.num_experts;
  float* slice = slices + warp * pitch;
  float* taps = slices + kWarps * pitch;
  stage_taps(filter, taps);
  if (warp == 0) masks[lane] = group_mask<V>(filter, lane);
  __syncthreads();
  const float norm_grad = float(*args.grad_loss * args.loss_scale);
  for (int64_t token = int64_t(blockIdx.x) * kWarps + warp; token < args.num_tokens;
       token += int64_t(gridDim.x) * kWarps) {
    float scores[V];
#pragma unroll
    for (int i = 0; i < V; ++i) scores[i] = 0.0f;
    read_row<V, W>(static_cast<const In*>(args.scores) + token * n, n, lane,
                   [&](int i, float value) { scores[i] = value; });
    // No barrier: of the slice a lane last read, and first writes, its own places.
    store_row<V, W>(slice, n, lane, [&](int i) { return scores[i]; });
    __syncwarp();
    norm_slopes<V>(filter, taps, masks[lane], slice, slice + margin_offset, lane);
    update_row<V, W>(slice, n, lane, [&](int i, float d) { return norm_grad * scores[i] * d; });
    unstage_row<V, W>(slice, static_cast<In*>(args.grad_scores) + opaque(token) * n, n, lane);
  }
}

}  // namespace moge::cuda
