// moge::route, forward: softmax, top-k and the topographic group norm of a token in one pass, for
// any number of experts, map, stride and group size. The common maps have subwarp_forward.cuh.
//
// One warp a token, 8 warps a block, blocks striding over the tokens. The N logits are read once,
// up to 16 bytes a lane where they are aligned, into the warp's slice of shared memory:
//
//   x + noise                         from there to V registers of a lane, for the selection
//   k times: the largest of them      a warp reduction of an order-preserving unsigned, another
//                                     one for the lowest expert that has it
//   z = exp(x - max x) / sum          in place; 5 shuffles for the maximum, 5 for the sum
//   importance                        z, summed over the tokens of the block
//   norms of the map                  filter.cuh, in the slice
//
// The importance of a lane's own experts is summed in V registers over the tokens of the warp, and
// over the warps at the end. With V > 8 there are no registers left for that: the block then sums
// the 8 slices after every round of 8 tokens, between two block barriers.
//
// Registers are kept at 64 and shared memory at 40 KiB a block, for 32 warps an SM. V = 32 just
// fits: the selection comes first, when nothing else of the token is in registers, and what lives
// on from token to token is in shared memory where it can be.
//
// What limits it: the rate of instructions. At N = 63 and k = 2 a token takes about 700 of a warp
// (sm_80, counted in the PTX), 0.65 ns of an H100's issue slots against 0.09 ns of its memory.
#pragma once

#include "cuda/filter.cuh"
#include "cuda/partials.cuh"

namespace moge::cuda {

// Copies the logits to the slice; true where the lane has a NaN or an infinity. The maximum goes to
// shared memory too: the selection needs all registers.
template <int V, int W, class In>
__device__ __forceinline__ bool stage_logits(const In* logits, float* slice, int n, int lane,
                                             float* maximum) {
  float zero = 0.0f;  // NaN from the first NaN or infinity on
  float most = -infinity();
  stage_row<V, W>(logits, slice, n, lane, [&](float value) {
    most = fmaxf(most, value);
    zero = fmaf(value, 0.0f, zero);
  });
  most = warp_max(most);
  if (lane == 0) *maximum = most;
  return zero != zero;
}

// NaN ranks as -inf in the selection.
__device__ __forceinline__ float rank(float value) { return fmaxf(value, -infinity()); }

// What the selection compares: the logits in `slice`, with the noise where there is any, and NaN in
// the slots beyond n. True where the lane's noise has a NaN or an infinity.
template <int V, int W>
__device__ __forceinline__ bool load_values(const float* slice, const float* noise, int n, int lane,
                                            float (&values)[V]) {
#pragma unroll
  for (int i = 0; i < V; ++i) values[i] = not_a_number();
  if (noise == nullptr) {
    read_row<V, W>(slice, n, lane, [&](int i, float value) { values[i] = rank(value); });
    return false;
  }
  constexpr int R = kAccess<float, W>;
  float zero = 0.0f;
  visit_row<V, W, 4>(noise, n, lane, [&](int i, auto address) {
    const auto added = load_pack<R>(address);
    const auto logits = load_pack<R>(slice + lane * W + slot_offset<W>(i));
#pragma unroll
    for (int j = 0; j < R; ++j) {
      values[i + j] = rank(logits.values[j] + added.values[j]);
      zero = fmaf(added.values[j], 0.0f, zero);
    }
  });
  return zero != zero;
}

// The `count` largest values in descending order, ties to the lower expert; lane j gets expert j.
// A value that was chosen becomes NaN, which never is: slots beyond N must hold it, no other may.
template <int V, int W>
__device__ __forceinline__ int select_top(float (&values)[V], int count, int lane) {
  int choice = 0;
#pragma unroll 1
  for (int j = 0; j < count; ++j) {
    float best = -infinity();
    int offset = -1;
#pragma unroll
    for (int i = V - 1; i >= 0; --i) {  // downwards: the lowest of equal values stays
      if (values[i] >= best) {
        best = values[i];
        offset = slot_offset<W>(i);
      }
    }
    const unsigned key = offset < 0 ? 0u : ordered(best);
    const unsigned top = __reduce_max_sync(kAllLanes, key);
    const unsigned mine = key == top ? unsigned(offset + lane * W) : ~0u;
    const int expert = int(__reduce_min_sync(kAllLanes, mine));
    const int taken = expert - lane * W;
#pragma unroll
    for (int i = 0; i < V; ++i) {
      if (slot_offset<W>(i) == taken) values[i] = not_a_number();
    }
    if (lane == j) choice = expert;
  }
  return choice;
}

// The token of a warp in one round of the block over its tokens.
__device__ __forceinline__ int64_t round_token(int round, int warp) {
  return (int64_t(round) * gridDim.x + blockIdx.x) * kWarps + warp;
}

// docs/method.md "Routing" 2: its experts, 32 at a time, counted in `counts`. Returns the logit
// of the lane's choice; where k > 32, all of them are left in the weights instead.
template <int V, int W>
__device__ __forceinline__ float choose(const RouteForward& args, int round, int lane,
                                        float (&values)[V], const float* logits, unsigned* counts) {
  const int k = args.top_k;
  float logit = 0.0f;
#pragma unroll 1
  for (int first = 0; first < k; first += 32) {
    const int count = k - first < 32 ? k - first : 32;
    const int expert = select_top<V, W>(values, count, lane);
    if (lane >= count) continue;
    const int64_t token = round_token(opaque(round), int(threadIdx.x) / 32);
    const int64_t at = token * k + first + lane;
    args.experts[at] = expert;
    atomicAdd(&counts[expert], packed_count(first + lane));
    logit = logits[expert];
    if (k > 32) args.weights[at] = logit;
  }
  return logit;
}

// Routing 3: the gate weights, from what `choose` left and the token's row statistics.
__device__ __forceinline__ void write_weights(const RouteForward& args, int64_t token, int lane,
                                              float logit, float maximum, float inverse_sum) {
  const int k = args.top_k;
  float* weights = args.weights + token * k;
  if (args.renormalize) {
    maximum = -infinity();
#pragma unroll 1
    for (int j = lane; j < k; j += 32) maximum = fmaxf(maximum, k > 32 ? weights[j] : logit);
    maximum = warp_max(maximum);
  }
  float sum = 0.0f, kept = 0.0f;
#pragma unroll 1
  for (int j = lane; j < k; j += 32) {
    kept = expf((k > 32 ? weights[j] : logit) - maximum);
    sum += kept;
    if (k > 32) weights[j] = kept;
  }
  if (args.renormalize) {
    // inverse_sum - inverse_sum is 0, or NaN for a row that has no softmax
    inverse_sum = 1.0f / warp_sum(sum) + (inverse_sum - inverse_sum);
  }
#pragma unroll 1
  for (int j = lane; j < k; j += 32) weights[j] = (k > 32 ? weights[j] : kept) * inverse_sum;
}

// Replaces the lane's logits in `slice` by exp(x - maximum); 1 / their sum over the row. NaN for a
// row with NaN or inf, or with nothing but -inf.
template <int V, int W>
__device__ __forceinline__ float exponentials(float* slice, int n, int lane, float maximum) {
  float sum = 0.0f;
  update_row<V, W>(slice, n, lane, [&](int, float x) {
    const float e = expf(x - maximum);
    sum += e;
    return e;
  });
  return 1.0f / warp_sum(sum);
}

// Adds the 8 slices of the block, in order, to the sums of experts thread, thread + 256, ...
template <int Q>
__device__ __forceinline__ void add_slices(const float* slices, int pitch, int n,
                                           float (&sums)[Q]) {
#pragma unroll
  for (int q = 0; q < Q; ++q) {
    const int expert = q * kThreads + int(threadIdx.x);
    if (expert >= n) continue;
#pragma unroll 1
    for (int warp = 0; warp < kWarps; ++warp) sums[q] += slices[warp * pitch + expert];
  }
}

// Grid: count_blocks(T). Dynamic shared memory: 8 slices of `pitch` floats (N and the margin, in
// whole 16 bytes; each 16-byte aligned), N counters (packed_count), the taps.
template <int V, int W, class In>
__global__ void __launch_bounds__(kThreads, 4)
    route_forward_kernel(const RouteForward args, const Partials parts, const int pitch,
                         const int margin_offset, const __grid_constant__ Filter filter) {
  constexpr bool kByBlock = V > 8;  // sum the importance from the slices
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

  float by_block[Q] = {}, by_lane[kByBlock ? 1 : V] = {};
  for (int round = 0; round_token(round, 0) < args.num_tokens; ++round) {
    const int64_t token = round_token(round, warp);
    const bool active = token < args.num_tokens;
    __syncwarp();  // the slice is no longer read
    if (active) {
      const In* logits = static_cast<const In*>(args.logits) + token * n;
      const bool bad = stage_logits<V, W>(logits, slice, n, lane, &sums.maximum[warp]);
      note_row(sums.logits, bad, token);
      __syncwarp();
      float values[V];
      const int64_t again = round_token(opaque(round), warp);
      const float* noise = args.noise == nullptr ? nullptr : args.noise + again * args.noise_stride;
      note_row(sums.noise, load_values<V, W>(slice, noise, n, lane, values), again);
      const float logit = choose<V, W>(args, round, lane, values, slice, counts);
      __syncwarp();
      const int64_t row = round_token(opaque(round), warp);
      const float maximum = sums.maximum[warp];
      const float inverse_sum = exponentials<V, W>(slice, n, lane, maximum);
      update_row<V, W>(slice, n, lane, [&](int i, float e) {
        const float z = e * inverse_sum;
        if (!kByBlock) by_lane[kByBlock ? 0 : i] += z;
        return z;
      });
      if (lane == 0) store_pack(args.row_stats + 2 * row, Pack<float, 2>{maximum, inverse_sum});
      write_weights(args, row, lane, logit, maximum, inverse_sum);
    } else if (kByBlock) {
      store_row<V, W>(slice, n, lane, [](int) { return 0.0f; });
    }
    if (kByBlock) {
      __syncthreads();
      add_slices(slices, pitch, n, by_block);
      __syncthreads();
    }
    if (!active) continue;
    __syncwarp();
    if (args.groups != nullptr) {
      float* margin = slice + opaque(margin_offset);
      sums.loss[threadIdx.x] += sum_norms<V>(filter, taps, sums.groups[lane], slice, margin, lane);
    }
  }

  close_warp(sums);
  if (!kByBlock) {
    __syncwarp();
    store_row<V, W>(slice, n, lane, [&](int i) { return by_lane[kByBlock ? 0 : i]; });
  }
  __syncthreads();
  write_sums(sums, parts);
  if (!kByBlock) add_slices(slices, pitch, n, by_block);
  const int64_t row = int64_t(blockIdx.x) * n;
#pragma unroll
  for (int q = 0; q < Q; ++q) {
    const int expert = q * kThreads + int(threadIdx.x);
    if (expert >= n) continue;
    parts.importance[row + expert] = by_block[q];
    parts.load[row + expert] = counts[expert];
  }
}

}  // namespace moge::cuda
