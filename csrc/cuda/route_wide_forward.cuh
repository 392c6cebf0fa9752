// moge::route, forward, with what "Wider routing" of docs/method.md adds: other score functions, a
// bias, ranges of experts, a mask, a scale, unit energy. Everything that route_forward.cuh computes
// for the rest, in the same order of steps, and the same partial sums.
//
// One warp a token. The sums of importance stay in V registers for any V (kWideBlocks).
// A range of experts is ranked by the warp, one range after the other: with many of them, that is
// what takes the time.
#pragma once

#include "cuda/route_forward.cuh"
#include "cuda/wide_scores.cuh"

namespace moge::cuda {

struct RowState {
  float maximum;  // of the logits
  bool counts;    // whether the token is none of padding
  bool dropped;   // padding that is routed as a row of zeros
  bool dead;      // no scores: NaN or +inf, or a softmax of nothing but -inf
};

// Copies the logits to the slice and tells what the row is.
template <int V, int W>
__device__ __forceinline__ RowState stage_wide(const RouteForward& args, const Wide& wide,
                                               BlockSums& sums, int64_t token, float* slice,
                                               int lane) {
  const int n = args.num_experts;
  float most = -infinity(), zero = 0.0f;
  bool unusable = false;
  with_typed(args.logits, args.element, token * n, [&](const auto* logits) {
    stage_row<V, W>(logits, slice, n, lane, [&](float x) {
      most = fmaxf(most, x);
      zero = fmaf(x, 0.0f, zero);
      unusable |= !(x < infinity());
    });
  });
  RowState row;
  row.maximum = warp_max(most);
  row.counts = wide.mask == nullptr || wide.mask[token] != 0;
  const bool bad = __any_sync(kAllLanes, zero != zero);
  unusable = __any_sync(kAllLanes, unusable);
  const bool empty = row.maximum == -infinity();
  row.dropped = !row.counts && (wide.strict ? bad : unusable || empty);
  row.dead = !row.dropped && (unusable || (empty && wide.function == kSoftmax));
  if (row.dropped) {
    row.maximum = 0.0f;
    store_row<V, W>(slice, n, lane, [](int) { return 0.0f; });
  }
  if (row.counts) note_row(sums.logits, bad, token);
  __syncwarp();
  return row;
}

// What top-k compares, with NaN in the slots beyond n and -inf for other NaN.
template <int V, int W>
__device__ __forceinline__ void load_keys(const RouteForward& args, const Wide& wide,
                                          BlockSums& sums, const RowState& row, int64_t token,
                                          const float* slice, int lane, float (&values)[V]) {
  const int n = args.num_experts;
#pragma unroll
  for (int i = 0; i < V; ++i) values[i] = not_a_number();
  read_row<V, W>(slice, n, lane, [&](int i, float x) { values[i] = x; });
  if (args.noise != nullptr) {
    const float* noise = args.noise + token * args.noise_stride;
    float zero = 0.0f;
    read_row<V, W>(noise, n, lane, [&](int, float y) { zero = fmaf(y, 0.0f, zero); });
    const bool bad = __any_sync(kAllLanes, zero != zero);
    if (row.counts) note_row(sums.noise, bad, token);
    if (row.counts || !bad) {
      read_row<V, W>(noise, n, lane, [&](int i, float y) { values[i] += y; });
    }
  }
  const bool limited = wide.top_groups < wide.num_groups;
  if (wide.function != kSoftmax) {
#pragma unroll
    for (int i = 0; i < V; ++i) values[i] = score_of(values[i], wide.function).value;
  } else if (wide.bias != nullptr || limited) {
    float most = -infinity(), sum = 0.0f;
#pragma unroll
    for (int i = 0; i < V; ++i) most = fmaxf(most, values[i]);
    most = warp_max(most);
    read_row<V, W>(slice, n, lane, [&](int i, float) {
      values[i] = expf(values[i] - most);
      sum += values[i];
    });
    const float inverse = 1.0f / warp_sum(sum);
#pragma unroll
    for (int i = 0; i < V; ++i) values[i] *= inverse;
  }
  if (wide.bias != nullptr) {
    read_row<V, W>(wide.bias, n, lane, [&](int i, float b) { values[i] += b; });
  }
  read_row<V, W>(slice, n, lane, [&](int i, float) { values[i] = rank(values[i]); });
}

// NaN for the values of all ranges but the best: never chosen. `ranks`: num_groups floats of the
// warp's shared memory.
template <int V, int W>
__device__ __forceinline__ void close_ranges(const Wide& wide, int n, int top_k, int lane,
                                             float* ranks, float (&values)[V]) {
  const int width = n / wide.num_groups, best = top_k / wide.top_groups;
#pragma unroll 1
  for (int group = 0; group < wide.num_groups; ++group) {
    unsigned taken = 0;
    float total = 0.0f;
#pragma unroll 1
    for (int j = 0; j < best; ++j) {
      float most = -infinity();
      int slot = -1;
#pragma unroll
      for (int i = V - 1; i >= 0; --i) {
        const int expert = slot_offset<W>(i) + lane * W;
        if (expert / width == group && (taken >> i & 1u) == 0 && values[i] >= most) {
          most = values[i];
          slot = i;
        }
      }
      const unsigned key = slot < 0 ? 0u : ordered(most);
      const unsigned top = __reduce_max_sync(kAllLanes, key);
      const unsigned owner = __reduce_min_sync(kAllLanes, key == top ? unsigned(lane) : ~0u);
      const float value = __shfl_sync(kAllLanes, most, int(owner));
      total = j == 0 ? value : total + value;
      if (unsigned(lane) == owner && slot >= 0) taken |= 1u << slot;
    }
    if (lane == 0) ranks[group] = rank(total);
  }
  __syncwarp();
#pragma unroll 1
  for (int j = 0; j < wide.top_groups; ++j) {
    float most = -infinity();
    int first = -1;
#pragma unroll 1
    for (int group = lane; group < wide.num_groups; group += 32) {
      if (ranks[group] > most || (first < 0 && ranks[group] >= most)) {
        most = ranks[group];
        first = group;
      }
    }
    const unsigned key = first < 0 ? 0u : ordered(most);
    const unsigned top = __reduce_max_sync(kAllLanes, key);
    const int chosen = int(__reduce_min_sync(kAllLanes, key == top ? unsigned(first) : ~0u));
    __syncwarp();
    if (lane == 0) ranks[chosen] = not_a_number();  // chosen
    __syncwarp();
  }
#pragma unroll
  for (int i = 0; i < V; ++i) {
    const int expert = slot_offset<W>(i) + lane * W;
    if (expert < n && ranks[expert / width] == ranks[expert / width]) values[i] = not_a_number();
  }
  __syncwarp();
}

// The chosen experts, counted where the token counts. Returns the logit of choice `lane`; those of
// choices beyond 32 go to where their weights will be.
template <int V, int W>
__device__ __forceinline__ float choose_wide(const RouteForward& args, const RowState& row,
                                             int64_t token, int lane, float (&values)[V],
                                             const float* slice, unsigned* counts) {
  const int k = args.top_k;
  float logit = 0.0f;
#pragma unroll 1
  for (int first = 0; first < k; first += 32) {
    const int count = k - first < 32 ? k - first : 32;
    const int expert = select_top<V, W>(values, count, lane);
    if (lane >= count) continue;
    const int64_t at = token * k + first + lane;
    args.experts[at] = expert;
    if (row.counts) atomicAdd(&counts[expert], packed_count(first + lane));
    if (first == 0) {
      logit = slice[expert];
    } else {
      args.weights[at] = slice[expert];
    }
  }
  return logit;
}

// `chosen`: the result of choose_wide.
__device__ __forceinline__ void write_wide_weights(const RouteForward& args, const Wide& wide,
                                                   const RowState& row, int64_t token, int lane,
                                                   float inverse_sum, float chosen) {
  const int k = args.top_k;
  const bool softmax = wide.function == kSoftmax;
  float* weights = args.weights + token * k;
  float maximum = row.maximum;
  if (args.renormalize && softmax) {
    maximum = lane < k ? chosen : -infinity();
#pragma unroll 1
    for (int j = lane + 32; j < k; j += 32) maximum = fmaxf(maximum, weights[j]);
    maximum = warp_max(maximum);
  }
  const auto score = [&](float x) {
    return softmax ? expf(x - maximum) : score_of(x, wide.function).value;
  };
  chosen = score(chosen);
  float sum = lane < k ? chosen : 0.0f;
#pragma unroll 1
  for (int j = lane + 32; j < k; j += 32) {
    weights[j] = score(weights[j]);
    sum += weights[j];
  }
  float factor = float(wide.scale);
  if (args.renormalize) {
    factor /= softmax ? warp_sum(sum) : warp_sum(sum) + kSumEpsilon;
  } else if (softmax) {
    factor *= inverse_sum;
  }
  if (row.dead) factor = not_a_number();
  if (lane < k) weights[lane] = chosen * factor;
#pragma unroll 1
  for (int j = lane + 32; j < k; j += 32) weights[j] *= factor;
}

// The logits in `slice` become scores; returns 1 / their sum, as row_stats holds it.
template <int V, int W>
__device__ __forceinline__ float wide_scores(const Wide& wide, const RowState& row, float* slice,
                                             int n, int lane) {
  const bool softmax = wide.function == kSoftmax;
  float part = 0.0f;
  update_row<V, W>(slice, n, lane, [&](int, float x) {
    const float z = softmax ? expf(x - row.maximum) : score_of(x, wide.function).value;
    part += z;
    return z;
  });
  const float sum = warp_sum(part);
  const float inverse = row.dead ? not_a_number() : 1.0f / (softmax ? sum : sum + kSumEpsilon);
  const float factor = softmax ? inverse : row.dead ? not_a_number() : 1.0f;
  update_row<V, W>(slice, n, lane, [&](int, float z) { return z * factor; });
  return inverse;
}

// Grid: count_blocks(T). Dynamic shared memory: 8 slices of `pitch` floats (N, the margin and, from
// ranks_offset on, num_groups), N counters (packed_count), the taps.
template <int V, int W>
__global__ void __launch_bounds__(kThreads, kWideBlocks<V>)
    route_wide_forward_kernel(const RouteForward args, const __grid_constant__ Wide wide,
                              const Partials parts, const int pitch, const int margin_offset,
                              const int ranks_offset, const __grid_constant__ Filter filter) {
  constexpr int Q = (32 * V + kThreads - 1) / kThreads;
  SIMT_SHARED_DYN(float, slices);
  SIMT_SHARED(sums, BlockSums);
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32, n = args.num_experts;
  float* slice = slices + warp * pitch;
  unsigned* counts = reinterpret_cast<unsigned*>(slices + kWarps * pitch);
  float* taps = reinterpret_cast<float*>(counts + n);
  for (int expert = int(threadIdx.x); expert < n; expert += kThreads) counts[expert] = 0;
  stage_taps(filter, taps);
  clear_sums(sums);
  if (warp == 0 && args.groups != nullptr) sums.groups[lane] = group_mask<V>(filter, lane);
  __syncthreads();

  float importance[V] = {};
  for (int64_t token = round_token(0, warp); token < args.num_tokens;
       token += int64_t(gridDim.x) * kWarps) {
    __syncwarp();  // the slice is no longer read
    const RowState row = stage_wide<V, W>(args, wide, sums, token, slice, lane);
    float values[V];
    load_keys<V, W>(args, wide, sums, row, token, slice, lane, values);
    if (wide.top_groups < wide.num_groups) {
      close_ranges<V, W>(wide, n, args.top_k, lane, slice + ranks_offset, values);
    }
    const float chosen = choose_wide<V, W>(args, row, token, lane, values, slice, counts);
    __syncwarp();
    const float inverse_sum = wide_scores<V, W>(wide, row, slice, n, lane);
    const float share = wide.function == kSoftmax ? 1.0f : inverse_sum;
    read_row<V, W>(slice, n, lane, [&](int i, float z) {
      if (row.counts) importance[i] = fmaf(z, share, importance[i]);
    });
    if (lane == 0) {
      const float maximum = row.dropped ? not_a_number() : row.maximum;
      store_pack(args.row_stats + 2 * token, Pack<float, 2>{maximum, inverse_sum});
    }
    write_wide_weights(args, wide, row, token, lane, inverse_sum, chosen);
    if (args.groups == nullptr || !row.counts) continue;
    scale_to_unit<V, W>(wide, slice, n, lane);
    __syncwarp();
    sums.loss[threadIdx.x] +=
        sum_norms<V>(filter, taps, sums.groups[lane], slice, slice + margin_offset, lane);
  }

  close_warp(sums);
  __syncwarp();
  store_row<V, W>(slice, n, lane, [&](int i) { return importance[i]; });
  __syncthreads();
  write_sums(sums, parts);
  float totals[Q] = {};
  add_slices(slices, pitch, n, totals);
  const int64_t first = int64_t(blockIdx.x) * n;
#pragma unroll
  for (int q = 0; q < Q; ++q) {
    const int expert = q * kThreads + int(threadIdx.x);
    if (expert >= n) continue;
    parts.importance[first + expert] = totals[q];
    parts.load[first + expert] = counts[expert];
  }
}

}  // namespace moge::cuda
