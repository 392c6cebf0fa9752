// The selection of a token's experts by its sub-warp: docs/method.md "Routing" 2.
//
// The values lie in the lanes' own places (LaneStore), and their maxima by pieces of 4 in
// registers. Every choice is the largest of those maxima and of those of the other lanes; the lane
// that has it finds the piece, then the value in the piece, and strikes it out.
#pragma once

#include "cuda/subwarp.cuh"

namespace moge::cuda {

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

}  // namespace moge::cuda
