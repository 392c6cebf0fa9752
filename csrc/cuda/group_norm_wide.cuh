// moge::group_norm, forward and backward, of tokens that count and of scores of unit energy. As
// group_norm.cuh, whose partial sums it leaves.
#pragma once

#include "cuda/partials.cuh"
#include "cuda/route_wide_backward.cuh"

namespace moge::cuda {

// Grid: count_blocks(T). Dynamic shared memory: 8 slices of `pitch` floats, then the taps.
template <int V, int W>
__global__ void __launch_bounds__(kThreads, kWideBlocks<V>)
    group_norm_wide_forward_kernel(const GroupNormForward args, const __grid_constant__ Wide wide,
                                   const Partials parts, const int pitch, const int margin_offset,
                                   const __grid_constant__ Filter filter) {
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
    if (wide.mask != nullptr && wide.mask[token] == 0) continue;
    __syncwarp();       // the slice is no longer read
    float zero = 0.0f;  // NaN from the first NaN or infinity on
    with_typed(args.scores, args.element, token * n, [&](const auto* scores) {
      stage_row<V, W>(scores, slice, n, lane, [&](float value) { zero = fmaf(value, 0.0f, zero); });
    });
    note_row(sums.logits, zero != zero, token);
    scale_to_unit<V, W>(wide, slice, n, lane);
    __syncwarp();
    sums.loss[threadIdx.x] +=
        sum_norms<V>(filter, taps, sums.groups[lane], slice, slice + margin_offset, lane);
  }
  close_warp(sums);
  __syncthreads();
  write_sums(sums, parts);
}

// Grid: count_blocks(T). Dynamic shared memory: 8 slices of `pitch` floats, then the taps.
template <int V, int W>
__global__ void __launch_bounds__(kThreads, kWideBlocks<V>)
    group_norm_wide_backward_kernel(const GroupNormBackward args, const __grid_constant__ Wide wide,
                                    const int pitch, const int margin_offset,
                                    const __grid_constant__ Filter filter) {
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
    __syncwarp();  // the slice is no longer read
    if (wide.mask != nullptr && wide.mask[token] == 0) {
      store_row<V, W>(slice, n, lane, [](int) { return 0.0f; });
    } else {
      float scores[V];
#pragma unroll
      for (int i = 0; i < V; ++i) scores[i] = 0.0f;
      with_typed(args.scores, args.element, token * n, [&](const auto* row) {
        read_row<V, W>(row, n, lane, [&](int i, float value) { scores[i] = value; });
      });
      wide_norm_gradient<V, W>(wide, filter, taps, masks[lane], norm_grad, scores, slice,
                               slice + margin_offset, n, lane);
    }
    __syncwarp();
    with_typed(args.grad_scores, args.element, token * n,
               [&](auto* row) { unstage_row<V, W>(slice, row, n, lane); });
  }
}

}  // namespace moge::cuda
