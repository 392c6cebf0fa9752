// moge::route, forward, for the common maps: a sub-warp per token (subwarp.cuh), a round of
// kTokens tokens a block, the rounds of a chunk one after the other.
//
//   x                                 16 values a lane, in registers and in the lane's own places
//   k times: the largest of them      the maxima of the lane's pieces of 4 and a few shuffles; the
//                                     lane that has it looks through one piece, and strikes it out
//   e = exp(x - max x)                subwarp.cuh's Exponent; z = e / sum e is not formed:
//   importance                        e / sum, added in registers over the chunk's tokens
//   norms                             of e, times 1 / sum^2 under the root
//
// What limits it: memory on an A100 and an H100 by the count of gpu-check, instructions on a B200.
#pragma once

#include "cuda/partials.cuh"
#include "cuda/subwarp.cuh"

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

__device__ __forceinline__ float largest(const Pack<float, 4>& piece) {
  return fmaxf(fmaxf(piece.values[0], piece.values[1]), fmaxf(piece.values[2], piece.values[3]));
}

// The maxima of the lane's values by pieces.
template <class Map>
__device__ __forceinline__ void find_tops(const float (&values)[Map::kSlots],
                                          float (&tops)[Map::kPieces]) {
#pragma unroll
  for (int p = 0; p < Map::kPieces; ++p) tops[p] = largest(piece_of(values, p));
}

// The same with the noise added; true where the noise has a NaN or an infinity.
template <class Map>
__device__ __forceinline__ bool add_noise(LaneStore<Map::kPieces>& store, const float* noise,
                                          const float (&values)[Map::kSlots],
                                          float (&tops)[Map::kPieces]) {
  float zero = 0.0f, sums[Map::kSlots];
  load_floats(noise, sums);
#pragma unroll
  for (int i = 0; i < Map::kSlots; ++i) {
    zero = fmaf(sums[i], 0.0f, zero);
    sums[i] += values[i];
  }
  store.put(sums);
  find_tops<Map>(sums, tops);
  return zero != zero;
}

// A pick where only -inf, and NaN, which ranks as -inf, are left: the lowest expert that is not
// among the first `count` picks. By all lanes of a token.
template <class Map>
__device__ __forceinline__ void pick_lowest(TokenPicks& picks, int count, int sub,
                                            unsigned first_lane, int64_t first,
                                            const RouteForward& args) {
  const unsigned lanes = ((1u << Map::kLanes) - 1) << first_lane;
  __syncwarp(lanes);  // the earlier picks are seen
  unsigned left = (1u << Map::kSlots) - 1;
#pragma unroll 1
  for (int j = 0; j < count; ++j) {
    const int slot = int(picks.experts[j]) - sub * Map::kSlots;
    if (slot >= 0 && slot < Map::kSlots) left &= ~(1u << slot);
  }
  const unsigned having = __ballot_sync(lanes, left != 0);
  if (having >> first_lane != 0 && __ffs(int(having >> first_lane)) - 1 == sub) {
    const int slot = __ffs(int(left)) - 1;
    const float logit = load_value(args.logits, args.element, first + slot);
    picks.values[count] = logit;
    picks.experts[count] = uint16_t(sub * Map::kSlots + slot);
  }
}

template <class Map>
__device__ __forceinline__ float largest_top(const float (&tops)[Map::kPieces]) {
  float best = tops[0];
#pragma unroll
  for (int p = 1; p < Map::kPieces; ++p) best = fmaxf(best, tops[p]);
  return best;
}

// docs/method.md "Routing" 2: the k largest values in descending order, ties to the lower expert.
// `best` is the largest of the lane's values and `top` that of the token's; `first` is the place of
// the lane's first logit. A value that was chosen becomes NaN.
template <class Map>
__device__ __forceinline__ void select_picks(LaneStore<Map::kPieces>& store, TokenPicks& picks,
                                             float (&tops)[Map::kPieces], float best, float top,
                                             int sub, int64_t first, const RouteForward& args) {
  constexpr int P = Map::kPieces, L = Map::kLanes;
  const unsigned thread = threadIdx.x, first_lane = thread % 32 - unsigned(sub);
  const int k = args.top_k;
#pragma unroll 1
  for (int j = 0;;) {
    // Lanes of lower experts that have it too.
    const unsigned lower =
        L == 1 ? 0 : extract_bits(__ballot_sync(kAllLanes, best == top), first_lane, unsigned(sub));
    if (!(top > -infinity())) {  // for all lanes of the token alike
      pick_lowest<Map>(picks, j, sub, first_lane, first, args);
    } else if (best == top && lower == 0) {
      int piece = P - 1;
#pragma unroll
      for (int p = P - 2; p >= 0; --p) piece = tops[p] == top ? p : piece;
      float* place = store.at(piece, thread);
      auto values = load_pack<4>(place);
      int at = 3;
#pragma unroll
      for (int i = 2; i >= 0; --i) at = values.values[i] == top ? i : at;
      const int slot = piece * 4 + at;
      const float logit =
          args.noise == nullptr ? top : load_value(args.logits, args.element, first + slot);
      picks.values[j] = logit;
      picks.experts[j] = uint16_t(sub * Map::kSlots + slot);
      if (j + 1 < k) {
        place[at] = not_a_number();
        const float rest = largest(load_pack<4>(place));
#pragma unroll
        for (int p = 0; p < P; ++p) tops[p] = piece == p ? rest : tops[p];
      }
    }
    if (++j == k) break;
    best = largest_top<Map>(tops);
    top = lanes_max<L>(best);
  }
}

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

// Sum of the norms of the groups of the lane; e times `scale` are the scores.
template <class Map>
__device__ __forceinline__ float sum_norms(const SubTaps<Map>& taps, const float (&e)[Map::kSlots],
                                           float scale, int sub) {
  float rows[Map::kOwnRows][Map::kGroupCols], totals[Map::kOwnRows] = {};
  filter_rows<Map>(taps, e, rows);
  // scale sqrt(a + eps / scale^2), of the filtered squares a of e: one multiplication for all.
  const float whole = approximate_reciprocal(scale);
  filter_columns<Map, false>(taps, rows, sub, kEpsilon * whole * whole,
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
  sums.ends().loss[thread] = loss;
  write_columns<Map>(sums, parts);
  if (warp == 0) write_scalars(sums, parts, first);
}

}  // namespace moge::cuda
