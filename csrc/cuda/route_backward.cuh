// moge::route, backward: the gradient of a token's logits, written once.
//
// One warp a token, as in the forward pass. The logits are read once and the scores recomputed from
// them and the saved row statistics. With d of filter.cuh, the gradient of the sum of norms being
// z d, and the upstream gradients gw of the weights, gi of the importance, gl of the loss:
//
//   dL/dz = gl scale z d + gi                    docs/method.md "Gradients"
//   dL/dx = z (dL/dz - sum dL/dz z)              softmax backward, one warp sum
//         + w_i (gw_i - s) at the k experts, s = sum_i gw_i w_i
//
// Renormalised weights are a softmax of the kept logits, which the last line differentiates even
// where their scores underflow. Weights that are scores add gw_i z_i at the k experts and - z s
// everywhere: s joins the warp sum, and the last line has s = 0.
//
// z stays in V registers; the slice of shared memory holds z, then d, then the gradient, to which
// the lanes of the k choices add. What limits it is what limits the forward pass: instructions, of
// which the four passes of the filter are the most.
#pragma once

#include "cuda/filter.cuh"
#include "cuda/launch.h"

namespace moge::cuda {

// s of the narrative.
__device__ __forceinline__ float weight_dot(const RouteBackward& args, int64_t token, int lane) {
  float dot = 0.0f;
#pragma unroll 1
  for (int j = lane; j < args.top_k; j += 32) {
    const int64_t at = token * args.top_k + j;
    dot = fmaf(args.weights[at], args.grad_weights[at], dot);
  }
  return warp_sum(dot);
}

// Adds w_i (gw_i - mean) at the experts of the token, which differ: no two lanes share an address.
// A lane's first choice, for k <= 32 its only one, stays in registers between the mean and its use.
__device__ __forceinline__ void add_weight_gradients(const RouteBackward& args, int64_t token,
                                                     int lane, float* slice) {
  const int64_t first = token * args.top_k, end = first + args.top_k, own = first + lane;
  const float weight = own < end ? args.weights[own] : 0.0f;
  const float upstream = own < end ? args.grad_weights[own] : 0.0f;
  float mean = 0.0f;
  if (args.renormalize) {
    float dot = weight * upstream;
#pragma unroll 1
    for (int64_t at = own + 32; at < end; at += 32) {
      dot = fmaf(args.weights[at], args.grad_weights[at], dot);
    }
    mean = warp_sum(dot);
  }
  const auto add = [&](int64_t at, float w, float g) {
    const int64_t expert = args.experts[at];
    if (uint64_t(expert) < uint64_t(args.num_experts)) slice[expert] += w * (g - mean);
  };
  if (own < end) add(own, weight, upstream);
#pragma unroll 1
  for (int64_t at = own + 32; at < end; at += 32) add(at, args.weights[at], args.grad_weights[at]);
}

// Leaves in `slice` the gradient through the scores.
template <int V, int W, class In>
__device__ __forceinline__ void score_gradients(const RouteBackward& args, const Filter& filter,
                                                int64_t token, int lane, unsigned groups,
                                                float norm_grad, const float* grad_importance,
                                                const float* taps, float* slice, float* margin) {
  const int n = args.num_experts;
  const auto stats = load_pack<2>(args.row_stats + 2 * token);
  float scores[V];
#pragma unroll
  for (int i = 0; i < V; ++i) scores[i] = 0.0f;
  read_row<V, W>(static_cast<const In*>(args.logits) + token * n, n, lane,
                 [&](int i, float x) { scores[i] = expf(x - stats.values[0]) * stats.values[1]; });
  const bool with_norm = args.groups != nullptr && args.grad_loss != nullptr;
  if (with_norm) {
    store_row<V, W>(slice, n, lane, [&](int i) { return scores[i]; });
    __syncwarp();
    norm_slopes<V>(filter, taps, groups, slice, margin, lane);
    update_row<V, W>(slice, n, lane, [&](int i, float d) { return norm_grad * scores[i] * d; });
  } else {
    store_row<V, W>(slice, n, lane, [](int) { return 0.0f; });
  }
  if (args.grad_importance != nullptr) {
    zip_row<V, W>(slice, grad_importance, n, lane, [](int, float g, float gi) { return g + gi; });
  }
  float part = 0.0f;
  read_row<V, W>(slice, n, lane, [&](int i, float g) { part = fmaf(g, scores[i], part); });
  float dot = warp_sum(part);
  if (args.grad_weights != nullptr && !args.renormalize) {
    dot += weight_dot(args, opaque(token), lane);
  }
  update_row<V, W>(slice, n, lane, [&](int i, float g) { return scores[i] * (g - dot); });
}

// Grid: count_blocks(T). Dynamic shared memory: 8 slices as in the forward pass, then N floats and
// the taps.
template <int V, int W, class In>
__global__ void __launch_bounds__(kThreads, 4)
    route_backward_kernel(const RouteBackward args, const int pitch, const int margin_offset,
                          const __grid_constant__ Filter filter) {
  SIMT_SHARED_DYN(float, slices);
  SIMT_SHARED(masks, unsigned[32]);
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32, n = args.num_experts;
  float* slice = slices + warp * pitch;
  float* margin = slice + margin_offset;
  float* grad_importance = slices + kWarps * pitch;
  float* taps = grad_importance + n;
  stage_taps(filter, taps);
  if (args.grad_importance != nullptr) {
    for (int expert = int(threadIdx.x); expert < n; expert += kThreads) {
      grad_importance[expert] = args.grad_importance[expert];
    }
  }
  const bool with_norm = args.groups != nullptr && args.grad_loss != nullptr;
  if (warp == 0 && with_norm) masks[lane] = group_mask<V>(filter, lane);
  __syncthreads();
  const float norm_grad = with_norm ? float(*args.grad_loss * args.loss_scale) : 0.0f;
  const bool raw_weights = args.grad_weights != nullptr && !args.renormalize;

  for (int64_t token = int64_t(blockIdx.x) * kWarps + warp; token < args.num_tokens;
       token += int64_t(gridDim.x) * kWarps) {
    // No barrier: of the slice a lane last read, and first writes, its own places.
    if (with_norm || args.grad_importance != nullptr || raw_weights) {
      score_gradients<V, W, In>(args, filter, token, lane, with_norm ? masks[lane] : 0u, norm_grad,
                                grad_importance, taps, slice, margin);
    } else {
      store_row<V, W>(slice, n, lane, [](int) { return 0.0f; });
    }
    __syncwarp();
    if (args.grad_weights != nullptr) {
      add_weight_gradients(args, opaque(token), lane, slice);
      __syncwarp();
    }
    unstage_row<V, W>(slice, static_cast<In*>(args.grad_logits) + opaque(token) * n, n, lane);
  }
}

}  // namespace moge::cuda
