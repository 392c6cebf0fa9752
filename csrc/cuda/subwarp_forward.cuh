// moge::route, forward, for the common maps: a sub-warp per token (subwarp.cuh), a round of
// kTokens tokens a block, the rounds of a chunk one after the other.
//
//   x                                 16 values a lane, in registers and in the lane's own places
//   e = exp(x - max x)                subwarp.cuh's Exponent; z = e / sum e is not formed:
//   importance                        e / sum, added in a second set of the lane's own places
//   norms                             of e: sum sqrt(a + eps (sum e)^2) / sum e
//   the k largest of x + noise        subwarp_select.cuh, last, when registers are free
//
// What limits it: gpu-check counts 69 to 71 instructions a token at N = 64, k = 2, h = 3, of which
// 10 are spent before and after the two rounds that a chunk has at T = 65536. An H100 issues them
// in 0.07 ns. Its memory takes 0.09 ns for float32, but 0.05 ns for 16-bit logits. What was tried
// is in docs/cuda.md.
#pragma once

#include "cuda/partials.cuh"
#include "cuda/subwarp_filter.cuh"
#include "cuda/subwarp_select.cuh"

namespace moge::cuda {

template <class Map>
struct SubSums {
  LaneStore<Map::kPieces> values;      // what the selection looks through
  LaneStore<Map::kPieces> importance;  // of the lane's tokens
  TokenPicks picks[Map::kTokens];
  unsigned counts[Map::kExperts];  // packed_count
  unsigned logits, noise;          // first bad row of the chunk, or kNoLocal
  // At the end, in place of the values: the loss of a thread, parts of the importance.
  struct Ends {
    float loss[kSubThreads];
    float importance[kSubThreads];
  };
  static_assert(sizeof(Ends) <= sizeof(values), "the ends take the place of the values");
  __device__ __forceinline__ Ends& ends() { return *reinterpret_cast<Ends*>(&values); }
};
constexpr unsigned kNoLocal = ~0u;

// Routing 3: experts and gate weights of the token, from its picks, and their counts.
template <class Map>
__device__ __forceinline__ void write_picks(const RouteForward& args, const TokenPicks& picks,
                                            unsigned* counts, int64_t token, bool active, int sub,
                                            float maximum, float inverse_sum) {
  constexpr int L = Map::kLanes;
  const int k = args.top_k;
  if (args.renormalize && args.noise != nullptr) {  // else the first choice has the row's maximum
    maximum = -infinity();
#pragma unroll 1
    for (int j = sub; j < k; j += L) maximum = fmaxf(maximum, picks.values[j]);
    maximum = lanes_max<L>(maximum);
  }
  float sum = 0.0f;
#pragma unroll Map::kUnroll
  for (int q = 0; q < Map::kPicks; ++q) {
    if (q * L >= k) break;
    // Read by all lanes, so that no branch is needed: those beyond k repeat the last pick.
    const float value = picks.values[min(sub + q * L, k - 1)];
    const float e = approximate_exp2((value - maximum) * kLog2E);
    sum += sub + q * L < k ? e : 0.0f;
  }
  if (args.renormalize) {
    // inverse_sum - inverse_sum is 0, or NaN for a row that has no softmax
    inverse_sum = approximate_reciprocal(lanes_sum<L>(sum)) + (inverse_sum - inverse_sum);
  }
  const int64_t first = token * k + sub;
#pragma unroll Map::kUnroll
  for (int q = 0; q < Map::kPicks; ++q) {
    if (q * L >= k) break;
    if (!active || sub + q * L >= k) continue;
    const float value = picks.values[sub + q * L];
    const int expert = picks.experts[sub + q * L];
    args.weights[first + q * L] = approximate_exp2((value - maximum) * kLog2E) * inverse_sum;
    args.experts[first + q * L] = expert;
    atomicAdd(&counts[expert], packed_count(sub + q * L));
  }
}

// Sum of the norms of the groups of the lane, over the taps' unit; e times `scale` are the scores.
template <class Map>
__device__ __forceinline__ float sum_norms(const SubTaps<Map>& taps, const float (&e)[Map::kSlots],
                                           float scale, int sub) {
  float rows[Map::kOwnRows][Map::kGroupCols], totals[Map::kOwnRows] = {};
  // scale sqrt(a + eps / scale^2), of the filtered squares a of e: one multiplication for all.
  const float whole = approximate_reciprocal(scale);
  filter_rows<Map>(taps, kEpsilon * whole * whole, e, rows);
  filter_columns<Map, false>(taps, rows, sub,
                             [&](int r, int, float sum) { totals[r] += approximate_sqrt(sum); });
  float total = 0.0f;
#pragma unroll
  for (int r = 0; r < Map::kOwnRows; ++r) total += starts_groups<Map>(sub, r) ? totals[r] : 0.0f;
  return scale * total;
}

// Importance and counts of the chunk, from what the lanes kept in their places. Thread (part,
// expert) adds every kParts-th token, in order; the parts are added at last.
template <class Map>
__device__ __forceinline__ void write_columns(SubSums<Map>& sums, const Partials& parts) {
  constexpr unsigned N = Map::kExperts, L = Map::kLanes, R = Map::kSlots;
  constexpr unsigned kParts = N < kSubThreads ? kSubThreads / N : 1;
  const unsigned thread = threadIdx.x;
  const int64_t row = int64_t(blockIdx.x) * N;
  float* partial = sums.ends().importance;
#pragma unroll
  for (unsigned first = 0; first < N; first += kSubThreads) {
    const unsigned expert = first + thread % (N < kSubThreads ? N : kSubThreads);
    const unsigned part = kParts > 1 ? thread / N : 0;
    const float* place = sums.importance.at(expert % R / 4, part * L + expert / R) + expert % 4;
    float sum = 0.0f;
#pragma unroll
    for (unsigned i = 0; i < Map::kTokens / kParts; ++i) sum += place[4 * L * kParts * i];
    if (kParts > 1) {
      partial[thread] = sum;
    } else {
      parts.importance[row + expert] = sum;
      parts.load[row + expert] = sums.counts[expert];
    }
  }
  __syncthreads();
  if (kParts == 1 || thread >= N) return;
  float sum = partial[thread];
#pragma unroll
  for (unsigned part = 1; part < kParts; ++part) sum += partial[part * N + thread];
  parts.importance[row + thread] = sum;
  parts.load[row + thread] = sums.counts[thread];
}

// The first warp: the loss of the chunk in float64 and its first bad rows.
template <class Map>
__device__ __forceinline__ void write_scalars(SubSums<Map>& sums, const Partials& parts,
                                              int64_t first) {
  double loss = 0.0;
#pragma unroll
  for (int warp = 0; warp < kSubWarps; ++warp)
    loss += double(sums.ends().loss[warp * 32 + threadIdx.x]);
  loss = warp_sum(loss);
  if (threadIdx.x != 0) return;
  parts.loss[blockIdx.x] = loss;
  parts.logits[blockIdx.x] = sums.logits == kNoLocal ? kNoRow : first + sums.logits;
  parts.noise[blockIdx.x] = sums.noise == kNoLocal ? kNoRow : first + sums.noise;
}

// Grid: count_blocks(T), a chunk a block.
template <class Map>
__global__ void __launch_bounds__(kSubThreads, 8)
    route_forward_subwarp_kernel(const RouteForward args, const Partials parts,
                                 const int chunk_tokens, const TapSource source) {
  constexpr int L = Map::kLanes, R = Map::kSlots, P = Map::kPieces;
  SIMT_SHARED(sums, SubSums<Map>);
  const SubTaps<Map> taps(source);
  const unsigned thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int sub = L == 1 ? 0 : opaque(int(lane % L)), slot = int(lane / L);
  TokenPicks& picks = sums.picks[thread / L];
#pragma unroll
  for (unsigned expert = thread; expert < Map::kExperts; expert += kSubThreads) {
    sums.counts[expert] = 0;
  }
  if (thread == 0) sums.logits = sums.noise = kNoLocal;
  sums.importance.clear();
  __syncthreads();
  const int64_t first = int64_t(blockIdx.x) * chunk_tokens, left = args.num_tokens - first;
  const int count = left < chunk_tokens ? int(left) : chunk_tokens;
  float loss = 0.0f;
#pragma unroll 1
  for (int local = int(warp) * (32 / L) + slot; local - slot < count; local += Map::kTokens) {
    // Lanes without a token do the last one's work once more, and keep none of it.
    const bool active = local < count;
    const int64_t token = first + (active ? local : count - 1);
    const int64_t place = token * Map::kExperts + sub * R;
    float values[R], tops[P];
    load_values(args.logits, args.element, place, values);
    sums.values.put(values);
    find_tops<Map>(values, tops);
    float best = largest_top<Map>(tops);
    const float maximum = lanes_max<L>(best);
    if (args.bad_rows != nullptr) {
      float zero = 0.0f;  // NaN from the first NaN or infinity on
#pragma unroll
      for (int i = 0; i < R; ++i) zero = fmaf(values[i], 0.0f, zero);
      if (zero != zero) atomicMin(&sums.logits, unsigned(local));
    }
    float top = maximum;
    if (args.noise != nullptr) {
      const float* noise = args.noise + token * args.noise_stride + sub * R;
      const bool bad = add_noise<Map>(sums.values, noise, values, tops);
      if (bad) atomicMin(&sums.noise, unsigned(local));
      best = largest_top<Map>(tops);
      top = lanes_max<L>(best);
    }

    const Exponent exponent(maximum);
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < R; ++i) {
      values[i] = exponent(values[i]);
      sum += values[i];
    }
    const float scale = approximate_reciprocal(lanes_sum<L>(sum));
    const float inverse_sum = scale * approximate_exp2(exponent.excess);
    if (sub == 0 && active) {
      store_pack(args.row_stats + 2 * token, Pack<float, 2>{{maximum, inverse_sum}});
    }
    sums.importance.add(values, active ? scale : 0.0f);
    if constexpr (Map::kGroup > 0) {
      const float norms = sum_norms<Map>(taps, values, scale, sub);
      loss += active ? norms : 0.0f;
    }

    // Computed again, from what the compiler does not know: else it is kept in registers.
    const int again = opaque(local);
    const int64_t row = first + (again < count ? again : count - 1);
    select_picks<Map>(sums.values, picks, tops, best, top, sub, row * Map::kExperts + sub * R,
                      args);
    __syncwarp();
    write_picks<Map>(args, picks, sums.counts, row, again < count, sub, maximum, inverse_sum);
    __syncwarp();
  }

  __syncthreads();
  sums.ends().loss[thread] = loss * SubTaps<Map>::unit(source);
  write_columns<Map>(sums, parts);
  if (warp == 0) write_scalars(sums, parts, first);
}

}  // namespace moge::cuda
