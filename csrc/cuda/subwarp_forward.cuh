// moge::route, forward, for the common maps: a sub-warp per token (subwarp.cuh), a round of
// kTokens tokens a block, the rounds of a chunk one after the other.
//
//   x                                 16 values a lane, in registers and in the lane's own places
//   e = exp(x - max x)                subwarp.cuh's Exponent; z = e / sum e is not formed:
//   importance                        e / sum, added in a second set of the lane's own places
//   norms                             of e: sum sqrt(a + eps (sum e)^2) / sum e
//   the k largest of x + noise        subwarp_select.cuh, last, when registers are free
//
// What limits it: gpu-check counts 61 to 65 instructions a token at N = 64, k = 2, h = 3, of which
// 9 are spent before and after the two rounds that a chunk has at T = 65536; 52 to 56 where two
// floats are added at a time. An H100 issues them in 0.06 ns. Its memory takes 0.09 ns for float32,
// 0.05 ns for 16-bit logits. What was tried is in docs/cuda.md.
#pragma once

#include "cuda/partials.cuh"
#include "cuda/subwarp_filter.cuh"
#include "cuda/subwarp_select.cuh"

namespace moge::cuda {

template <class Map>
struct SubSums {
  unsigned counts[Map::kExperts];      // packed_count
  LaneStore<Map::kPieces> values;      // what the selection looks through
  LaneStore<Map::kPieces> importance;  // of the lane's tokens
  TokenPicks<Map> picks[Map::kTokens];
  unsigned logits, noise;  // first bad row of the chunk, or kNoToken
  // At the end, in place of the values: the loss of a thread, parts of the importance.
  struct Ends {
    float loss[kSubThreads];
    float importance[kSubThreads];
  };
  static_assert(sizeof(Ends) <= sizeof(values), "the ends take the place of the values");
  __device__ __forceinline__ Ends& ends() { return *reinterpret_cast<Ends*>(&values); }
};
constexpr unsigned kNoToken = ~0u;

// Routing 3: experts and gate weights of the token, from its picks, and their counts.
template <class Map>
__device__ __forceinline__ void write_picks(const RouteForward& args, TokenPicks<Map>& picks,
                                            unsigned* counts, unsigned token, bool active, int sub,
                                            float maximum, float inverse_sum) {
  constexpr int L = Map::kLanes;
  const int k = args.top_k;
  if (args.noise != nullptr) {  // else the first choice has the row's maximum
    float largest = -infinity();
#pragma unroll 1
    for (int j = sub; j < k; j += L) {
      const uint64_t at = uint64_t(token) * Map::kExperts + picks.experts[j];
      const float logit = load_value(args.logits, args.element, at);
      picks.values[j] = logit;
      largest = fmaxf(largest, logit);
    }
    largest = lanes_max<L>(largest);
    if (args.renormalize) maximum = largest;
    __syncwarp();
  }
  // The choices of a lane; computed twice where they are too many for registers.
  constexpr bool kKept = Map::kUnroll > 1;
  float powers[kKept ? Map::kPicks : 1], sum = 0.0f;
  // Read by all lanes, so that no branch is needed; what lanes beyond k read does not count.
  const auto power = [&](int q) {
    const int choice = L > kMostPicks ? min(sub, kMostPicks - 1) : sub + q * L;
    return approximate_exp2((picks.values[choice] - maximum) * kLog2E);
  };
#pragma unroll Map::kUnroll
  for (int q = 0; q < Map::kPicks; ++q) {
    if (q > 0 && q * L >= k) break;
    const float e = power(q);
    if (kKept) powers[q] = e;
    const float counted = sub + q * L < k ? e : 0.0f;
    sum = q == 0 ? counted : sum + counted;
  }
  if (args.renormalize) {
    // 0 inverse_sum is 0, or NaN for a row that has no softmax.
    inverse_sum = fmaf(inverse_sum, 0.0f, approximate_reciprocal(lanes_sum<L>(sum)));
  }
  const unsigned first = token * unsigned(k) + unsigned(sub);
  const int own = opaque(active ? sub : kMostPicks);  // or none
#pragma unroll Map::kUnroll
  for (int q = 0; q < Map::kPicks; ++q) {
    if (own + q * L >= k) continue;
    const unsigned expert = picks.experts[sub + q * L], at = first + unsigned(q * L);
    args.weights[at] = (kKept ? powers[q] : power(q)) * inverse_sum;
    args.experts[at] = expert;
    atomicAdd(&counts[expert], packed_count(sub + q * L));
  }
}

// Sum of the norms of the groups of the lane, over `scale` and the taps' unit; e times `scale` are
// the scores.
template <class Map>
__device__ __forceinline__ float sum_norms(const SubTaps<Map>& taps, const float (&e)[Map::kSlots],
                                           float scale, int sub) {
  float rows[Map::kOwnRows][Map::kGroupCols];
  float2 totals[Map::kOwnRows] = {};
  // scale sqrt(a + eps / scale^2), of the filtered squares a of e: one multiplication for all.
  const float whole = approximate_reciprocal(scale);
  filter_rows<Map>(taps, kEpsilon * whole * whole, e, rows);
  filter_columns<Map, false>(taps, rows, sub, [&](int r, int j, auto sum) {
    const auto norm = approximate_sqrt(sum);
    if constexpr (std::is_same_v<decltype(sum), float>) {
      totals[r].x += norm;
    } else {
      totals[r] = j == 0 ? norm : add(totals[r], norm);
    }
  });
  float total = 0.0f;
#pragma unroll
  for (int r = 0; r < Map::kOwnRows; ++r) {
    const float own = starts_groups<Map>(sub, r) ? totals[r].x + totals[r].y : 0.0f;
    total = r == 0 ? own : total + own;
  }
  return total;
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
    float sum = place[0];
#pragma unroll
    for (unsigned i = 1; i < Map::kTokens / kParts; ++i) sum += place[4 * L * kParts * i];
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
__device__ __forceinline__ void write_scalars(SubSums<Map>& sums, const Partials& parts) {
  double loss = 0.0;
#pragma unroll
  for (int warp = 0; warp < kSubWarps; ++warp)
    loss += double(sums.ends().loss[warp * 32 + threadIdx.x]);
  loss = warp_sum(loss);
  if (threadIdx.x != 0) return;
  parts.loss[blockIdx.x] = loss;
  parts.logits[blockIdx.x] = sums.logits == kNoToken ? kNoRow : int64_t(sums.logits);
  parts.noise[blockIdx.x] = sums.noise == kNoToken ? kNoRow : int64_t(sums.noise);
}

// Grid: count_blocks(T), a chunk a block.
template <class Map>
__global__ void __launch_bounds__(kSubThreads, 8)
    route_forward_subwarp_kernel(const RouteForward args, const Partials parts,
                                 const int chunk_tokens, const TapSource source) {
  constexpr int L = Map::kLanes, R = Map::kSlots, P = Map::kPieces;
  SIMT_SHARED(sums, SubSums<Map>);
  const SubTaps<Map> taps(source);
  const unsigned thread = threadIdx.x;
  const int sub = opaque_lane<Map>(thread % L);
  const unsigned own_picks = opaque(thread / L * unsigned(sizeof(TokenPicks<Map>)));
  auto& picks =
      *reinterpret_cast<TokenPicks<Map>*>(reinterpret_cast<char*>(sums.picks) + own_picks);
  const LaneMasks masks(sub);
  unsigned* const first_bad = &sums.logits;
#pragma unroll
  for (unsigned first = 0; first < Map::kExperts; first += kSubThreads) {
    if (first + thread < Map::kExperts) sums.counts[first + thread] = 0;
  }
#pragma unroll
  for (int q = 0; q < Map::kPicks; ++q) {
    if (L <= kMostPicks || sub < kMostPicks) picks.values[sub + q * L] = 0.0f;  // read by all
  }
  if (thread == 0) sums.logits = sums.noise = kNoToken;
  sums.importance.clear();
  __syncthreads();
  float loss = 0.0f;
#pragma unroll 1
  for (Units<Map> units(args.num_tokens, chunk_tokens, sub); units.any(); units.advance()) {
    // Lanes without a token keep nothing of their work.
    const bool active = units.active();
    const unsigned unit = units.at(), token = unit / L;
    float values[R], tops[P];
    load_values(args.logits, args.element, unit, values, args.bad_rows != nullptr,
                [first_bad, token] { atomicMin(first_bad, token); });
    sums.values.put(values);
    find_tops<Map>(values, tops);
    float best = largest_top<Map>(tops);
    const float maximum = lanes_max<L>(best);
    float top = maximum;
    if (args.noise != nullptr) {
      const float* noise =
          args.noise + token * args.noise_stride + unsigned(opaque_lane<Map>(sub)) * R;
      const bool bad = add_noise<Map>(sums.values, noise, values, tops);
      if (bad) atomicMin(&sums.noise, token);
      best = largest_top<Map>(tops);
      top = lanes_max<L>(best);
    }

    const Exponent exponent(maximum);
    float2 sum = {};
#pragma unroll
    for (int i = 0; i < R; i += 2) {
      const float2 pair = exponent(pair_at(values, i));
      set_at(values, i, pair);
      sum = i == 0 ? pair : add(sum, pair);
    }
    const float scale = approximate_reciprocal(lanes_sum<L>(sum.x + sum.y));
    const float inverse_sum = scale * approximate_exp2(exponent.excess);
    if (sub == 0 && active) {
      store_pack(at_bytes(args.row_stats, token, 8), Pack<float, 2>{{maximum, inverse_sum}});
    }
    const float counted = active ? scale : 0.0f;
    sums.importance.add(values, counted);
    if constexpr (Map::kGroup > 0) {
      loss = fmaf(counted, sum_norms<Map>(taps, values, scale, sub), loss);
    }

    select_picks<Map>(sums.values, picks, tops, best, top, masks, sub, token, args);
    __syncwarp();
    write_picks<Map>(args, picks, sums.counts, token, active, sub, maximum, inverse_sum);
    __syncwarp();
  }

  __syncthreads();
  sums.ends().loss[thread] = loss * SubTaps<Map>::unit(source);
  write_columns<Map>(sums, parts);
  if (thread < 32) write_scalars(sums, parts);
}

}  // namespace moge::cuda
