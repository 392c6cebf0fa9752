// moge::route, backward, with what "Wider routing" of docs/method.md adds. With z = f(x), r = 1 /
// (sum z + 1e-20) and, of the k kept scores, q = 1 / (their sum + 1e-20):
//
//   dL/dz = that of the norms + r (gi - r sum gi z)           for importance
//         + q (scale gw_i - sum_j gw_j w_j) at the k experts  for weights, or scale gw_i
//   dL/dx = f'(x) dL/dz
//
// Softmax has the formulas of route_backward.cuh. With unit energy the norms are of u = c z, c = 1
// / the norm of z: dL/dz = c (du - u sum du u).
#pragma once

#include "cuda/filter.cuh"
#include "cuda/wide_scores.cuh"

namespace moge::cuda {

// Leaves in `slice` the gradient of the scores, which are `scores` in the lane's registers, through
// the norms of their groups.
template <int V, int W>
__device__ __forceinline__ void wide_norm_gradient(const Wide& wide, const Filter& filter,
                                                   const float* taps, unsigned groups,
                                                   float norm_grad, const float (&scores)[V],
                                                   float* slice, float* margin, int n, int lane) {
  store_row<V, W>(slice, n, lane, [&](int i) { return scores[i]; });
  const float factor = scale_to_unit<V, W>(wide, slice, n, lane);
  __syncwarp();
  norm_slopes<V>(filter, taps, groups, slice, margin, lane);
  float part = 0.0f;
  update_row<V, W>(slice, n, lane, [&](int i, float d) {
    const float unit = scores[i] * factor, grad = norm_grad * unit * d;
    part = fmaf(grad, unit, part);
    return grad;
  });
  if (!wide.unit_energy) return;
  const float dot = warp_sum(part);
  update_row<V, W>(slice, n, lane,
                   [&](int i, float grad) { return factor * (grad - scores[i] * factor * dot); });
}

// A choice as add_wide_weights needs it; expert -1: outside 0..N-1, or none of this token's.
struct ChosenScore {
  int expert;
  float upstream;  // gw
  ScorePoint score;
};

__device__ __forceinline__ ChosenScore read_choice(const RouteBackward& args, const Wide& wide,
                                                   int64_t token, int choice) {
  ChosenScore chosen = {-1, 0.0f, {0.0f, 0.0f}};
  if (choice >= args.top_k) return chosen;
  const int64_t at = token * args.top_k + choice, expert = args.experts[at];
  if (uint64_t(expert) >= uint64_t(args.num_experts)) return chosen;
  chosen.expert = int(expert);
  chosen.upstream = args.grad_weights[at];
  with_typed(args.logits, args.element, token * args.num_experts + expert,
             [&](const auto* logit) { chosen.score.value = to_float(*logit); });
  chosen.score = score_of(chosen.score.value, wide.function);
  return chosen;
}

// Adds the gradient of the logits through the k weights of another function than softmax. Choices
// beyond 32 are read twice.
__device__ __forceinline__ void add_wide_weights(const RouteBackward& args, const Wide& wide,
                                                 int64_t token, int lane, float* slice) {
  const int k = args.top_k;
  const ChosenScore own = read_choice(args, wide, token, lane);
  float sum = own.score.value, mean = 0.0f;
  const auto product = [&](const ChosenScore& chosen, int choice) {
    return chosen.expert < 0 ? 0.0f : args.weights[token * k + choice] * chosen.upstream;
  };
  if (args.renormalize) {
    mean = product(own, lane);
#pragma unroll 1
    for (int j = lane + 32; j < k; j += 32) {
      const ChosenScore chosen = read_choice(args, wide, token, j);
      sum += chosen.score.value;
      mean += product(chosen, j);
    }
    sum = warp_sum(sum);
    mean = warp_sum(mean);
  }
  const float inverse = args.renormalize ? 1.0f / (sum + kSumEpsilon) : 1.0f;
  const auto add = [&](const ChosenScore& chosen) {
    if (chosen.expert < 0) return;
    const float grad = inverse * (float(wide.scale) * chosen.upstream - mean);
    slice[chosen.expert] += chosen.score.slope * grad;
  };
  add(own);
#pragma unroll 1
  for (int j = lane + 32; j < k; j += 32) add(read_choice(args, wide, token, j));
}

// The same of softmax: w_i (gw_i - mean), the weights being `scale` times a softmax; or w_i gw_i,
// where the rest of it is in the gradient of the scores.
__device__ __forceinline__ void add_scaled_weights(const RouteBackward& args, const Wide& wide,
                                                   int64_t token, int lane, float dot,
                                                   float* slice) {
  const int64_t first = token * args.top_k, end = first + args.top_k;
  const float mean = args.renormalize ? dot / float(wide.scale) : 0.0f;
#pragma unroll 1
  for (int64_t at = first + lane; at < end; at += 32) {
    const int64_t expert = args.experts[at];
    if (uint64_t(expert) >= uint64_t(args.num_experts)) continue;
    slice[expert] += args.weights[at] * (args.grad_weights[at] - mean);
  }
}

// Leaves in `slice` the gradient of the logits of one token.
template <int V, int W>
__device__ __forceinline__ void wide_gradient(const RouteBackward& args, const Wide& wide,
                                              const Filter& filter, const float* taps,
                                              unsigned groups, float norm_grad, int64_t token,
                                              bool counts, float* slice, float* margin, int lane) {
  const int n = args.num_experts;
  const bool softmax = wide.function == kSoftmax;
  const auto stats = load_pack<2>(args.row_stats + 2 * token);
  const float inverse = stats.values[1];
  float scores[V], slopes[V];
#pragma unroll
  for (int i = 0; i < V; ++i) scores[i] = slopes[i] = 0.0f;
  const float usable = fmaf(inverse, 0.0f, 1.0f);  // NaN for a row without scores
  with_typed(args.logits, args.element, token * n, [&](const auto* logits) {
    read_row<V, W>(logits, n, lane, [&](int i, float x) { scores[i] = x; });
  });
#pragma unroll
  for (int i = 0; i < V; ++i) {
    if (softmax) {
      scores[i] = expf(scores[i] - stats.values[0]) * inverse;
    } else {
      const ScorePoint point = score_of(scores[i], wide.function);
      scores[i] = point.value * usable;
      slopes[i] = point.slope;
    }
  }
  if (counts && args.groups != nullptr && args.grad_loss != nullptr) {
    wide_norm_gradient<V, W>(wide, filter, taps, groups, norm_grad, scores, slice, margin, n, lane);
  } else {
    store_row<V, W>(slice, n, lane, [](int) { return 0.0f; });
  }
  if (counts && args.grad_importance != nullptr) {
    float part = 0.0f;
    if (!softmax) {
      read_row<V, W>(args.grad_importance, n, lane,
                     [&](int i, float gi) { part = fmaf(gi, scores[i], part); });
    }
    const float mean = softmax ? 0.0f : warp_sum(part) * inverse;
    const float factor = softmax ? 1.0f : inverse;
    zip_row<V, W>(slice, args.grad_importance, n, lane,
                  [&](int, float g, float gi) { return fmaf(factor, gi - mean, g); });
  }
  if (!softmax) {
    update_row<V, W>(slice, n, lane, [&](int i, float g) { return slopes[i] * g; });
    __syncwarp();
    if (args.grad_weights != nullptr) add_wide_weights(args, wide, token, lane, slice);
    return;
  }
  float weight_part = 0.0f, part = 0.0f;
#pragma unroll 1
  for (int64_t j = lane; args.grad_weights != nullptr && j < args.top_k; j += 32) {
    const int64_t at = token * args.top_k + j;
    weight_part = fmaf(args.weights[at], args.grad_weights[at], weight_part);
  }
  const float weight_dot = warp_sum(weight_part);
  read_row<V, W>(slice, n, lane, [&](int i, float g) { part = fmaf(g, scores[i], part); });
  const float dot = warp_sum(part) + (args.renormalize ? 0.0f : weight_dot);
  update_row<V, W>(slice, n, lane, [&](int i, float g) { return scores[i] * (g - dot); });
  __syncwarp();
  if (args.grad_weights != nullptr) {
    add_scaled_weights(args, wide, token, lane, weight_dot, slice);
  }
}

// Grid: count_blocks(T). Dynamic shared memory: 8 slices as in the forward pass, then the taps.
template <int V, int W>
__global__ void __launch_bounds__(kThreads, kWideBlocks<V>)
    route_wide_backward_kernel(const RouteBackward args, const __grid_constant__ Wide wide,
                               const int pitch, const int margin_offset,
                               const __grid_constant__ Filter filter) {
  SIMT_SHARED_DYN(float, slices);
  SIMT_SHARED(masks, unsigned[32]);
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32, n = args.num_experts;
  float* slice = slices + warp * pitch;
  float* taps = slices + kWarps * pitch;
  stage_taps(filter, taps);
  const bool with_norm = args.groups != nullptr && args.grad_loss != nullptr;
  if (warp == 0 && with_norm) masks[lane] = group_mask<V>(filter, lane);
  __syncthreads();
  const float norm_grad = with_norm ? float(*args.grad_loss * args.loss_scale) : 0.0f;
  for (int64_t token = int64_t(blockIdx.x) * kWarps + warp; token < args.num_tokens;
       token += int64_t(gridDim.x) * kWarps) {
    __syncwarp();  // the slice is no longer read
    const bool counts = wide.mask == nullptr || wide.mask[token] != 0;
    const float maximum = args.row_stats[2 * token];
    if (!counts && maximum != maximum) {  // padding that was routed as zeros
      store_row<V, W>(slice, n, lane, [](int) { return 0.0f; });
    } else {
      wide_gradient<V, W>(args, wide, filter, taps, with_norm ? masks[lane] : 0u, norm_grad, token,
                          counts, slice, slice + margin_offset, lane);
    }
    __syncwarp();
    with_typed(args.grad_logits, args.element, token * n,
               [&](auto* row) { unstage_row<V, W>(slice, row, n, lane); });
  }
}

}  // namespace moge::cuda
