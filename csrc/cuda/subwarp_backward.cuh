// moge::route, backward, for the common maps: a sub-warp per token (subwarp.cuh). The equations are
// those of route_backward.cuh.
//
// z, d and the gradient stay in registers. The gradient passes through the lane's own places in
// shared memory alone for the k choices: their lanes add w (gw - s) at the place of the expert.
#pragma once

#include "cuda/launch.h"
#include "cuda/partials.cuh"
#include "cuda/subwarp_filter.cuh"

namespace moge::cuda {

constexpr unsigned kNoExpert = 0xffff;  // of a choice out of range

// What the choices of the lane add to the gradient of their experts, w (gw - mean), into `picks`,
// where it waits until there is a gradient. Returns s of route_backward.cuh where the weights are
// scores, and it joins the other sum; else it is the mean, and 0 is returned.
template <class Map>
__device__ __forceinline__ float stage_picks(const RouteBackward& args, unsigned token, int sub,
                                             TokenPicks<Map>& picks) {
  constexpr int L = Map::kLanes, Q = Map::kPicks;
  const int k = args.top_k;
  const unsigned first = token * unsigned(k) + unsigned(sub);
  float weights[Q], added[Q], dot = 0.0f;
#pragma unroll
  for (int q = 0; q < Q; ++q) {
    if (q * L >= k) break;
    if (sub + q * L >= k) continue;
    weights[q] = args.weights[first + unsigned(q * L)];
    added[q] = weights[q] * args.grad_weights[first + unsigned(q * L)];
    dot += added[q];
  }
  dot = lanes_sum<L>(dot);
  const float mean = args.renormalize ? dot : 0.0f;
#pragma unroll
  for (int q = 0; q < Q; ++q) {
    if (q * L >= k) break;
    if (sub + q * L >= k) continue;
    const int64_t expert = args.experts[first + unsigned(q * L)];
    const bool there = uint64_t(expert) < uint64_t(Map::kExperts);
    picks.values[sub + q * L] = fmaf(-weights[q], mean, added[q]);
    picks.experts[sub + q * L] = there ? unsigned(expert) : kNoExpert;
  }
  return args.renormalize ? 0.0f : dot;
}

// Adds them at the places of the experts, which differ: no two lanes share one.
template <class Map>
__device__ __forceinline__ void add_picks(LaneStore<Map::kPieces>& store,
                                          const TokenPicks<Map>& picks, int k, int sub,
                                          unsigned first_thread) {
  constexpr int R = Map::kSlots;
#pragma unroll 1
  for (int j = sub; j < k; j += Map::kLanes) {
    const unsigned expert = picks.experts[j], slot = expert % R;
    if (expert == kNoExpert) continue;
    store.at(slot / 4, first_thread + expert / R)[slot % 4] += picks.values[j];
  }
}

// dL/dz of the group norm, over z: the sum over the groups p of an expert of G / g[p].
template <class Map>
__device__ __forceinline__ void norm_slopes(const SubTaps<Map>& taps, float norm_grad, int sub,
                                            const float (&scores)[Map::kSlots],
                                            float (&slopes)[Map::kSlots]) {
  float rows[Map::kOwnRows][Map::kGroupCols], groups[Map::kOwnRows][Map::kGroupCols];
  filter_rows<Map>(taps, kEpsilon, scores, rows);
  filter_columns<Map, false>(taps, rows, sub, [&](int r, int j, auto sum) {
    const float factor = starts_groups<Map>(sub, r) ? norm_grad : 0.0f;
    set_at(groups[r], j, multiply(factor, approximate_rsqrt(sum)));
  });
  filter_columns<Map, true>(taps, groups, sub,
                            [&](int r, int j, auto sum) { set_at(rows[r], j, sum); });
  scatter_rows<Map>(taps, rows, slopes);
}

template <class Map>
using BlockPicks = TokenPicks<Map>[Map::kTokens];
// grad_importance, a piece of a lane beside that of the next lane.
template <class Map>
using SharedRow = Pack<float, 4>[Map::kPieces][Map::kLanes];

// Grid: count_blocks(T).
template <class Map>
__global__ void __launch_bounds__(kSubThreads, 8)
    route_backward_subwarp_kernel(const RouteBackward args, const int chunk_tokens,
                                  const TapSource source) {
  constexpr int L = Map::kLanes, R = Map::kSlots, P = Map::kPieces;
  SIMT_SHARED(store, LaneStore<P>);
  SIMT_SHARED(grad_importance, SharedRow<Map>);
  SIMT_SHARED(block_picks, BlockPicks<Map>);
  const SubTaps<Map> taps(source);
  const unsigned thread = threadIdx.x;
  const int sub = opaque_lane<Map>(thread % L);
  TokenPicks<Map>& picks = block_picks[thread / L];
  if (args.grad_importance != nullptr) {
    for (unsigned expert = thread; expert < Map::kExperts; expert += kSubThreads) {
      grad_importance[expert % R / 4][expert / R].values[expert % 4] = args.grad_importance[expert];
    }
    __syncthreads();
  }
  float norm_grad = 0.0f;
  const bool with_norm = Map::kGroup > 0 && args.grad_loss != nullptr;
  if (with_norm) {  // G / g is unit^2 / unit times what the taps over the unit make of both
    norm_grad = float(*args.grad_loss * args.loss_scale) * SubTaps<Map>::unit(source);
  }

#pragma unroll 1
  for (Units<Map> units(args.num_tokens, chunk_tokens, sub); units.any(); units.advance()) {
    // Lanes without a token write nothing of their work.
    const unsigned unit = units.at(), token = unit / L;
    float raw_dot = 0.0f;
    if (args.grad_weights != nullptr) raw_dot = stage_picks<Map>(args, token, sub, picks);
    float scores[R], grads[R] = {};
    load_values(args.logits, args.element, unit, scores);
    const auto stats = load_pack<2>(at_bytes(args.row_stats, token, 8));
    const Exponent exponent(stats.values[0]);
    const float scale = stats.values[1] * approximate_exp2(-exponent.excess);
#pragma unroll
    for (int i = 0; i < R; i += 2) {
      set_at(scores, i, multiply(scale, exponent(pair_at(scores, i))));
    }
    if constexpr (Map::kGroup > 0) {
      if (with_norm) {
        store.put(scores);  // in the meantime: there are no registers for them
        norm_slopes<Map>(taps, norm_grad, opaque_lane<Map>(sub), scores, grads);
        store.get(scores);
#pragma unroll
        for (int i = 0; i < R; i += 2) {
          set_at(grads, i, multiply(pair_at(grads, i), pair_at(scores, i)));
        }
      }
    }
    if (args.grad_importance != nullptr) {
#pragma unroll
      for (int p = 0; p < P; ++p) {
        const auto piece = grad_importance[p][sub];
#pragma unroll
        for (int i = 0; i < 4; i += 2) {
          set_at(grads, 4 * p + i, add(pair_at(grads, 4 * p + i), pair_at(piece.values, i)));
        }
      }
    }
    float2 dots = {};
#pragma unroll
    for (int i = 0; i < R; i += 2) {
      dots = multiply_add(pair_at(grads, i), pair_at(scores, i), dots);
    }
    const float dot = lanes_sum<L>(dots.x + dots.y) + raw_dot;
#pragma unroll
    for (int i = 0; i < R; i += 2) {
      set_at(grads, i, multiply(pair_at(scores, i), add(pair_at(grads, i), {-dot, -dot})));
    }
    if (args.grad_weights != nullptr) {
      store.put(grads);
      __syncwarp();
      add_picks<Map>(store, picks, args.top_k, sub, thread - unsigned(sub));
      __syncwarp();
      store.get(grads);
    }
    if (units.active()) store_values(args.grad_logits, args.element, unit, grads);
  }
}

}  // namespace moge::cuda
