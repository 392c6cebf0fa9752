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

// All picks of a token of fewer than k values above -inf, where NaN ranks as -inf. By one lane,
// from the logits: the next pick is the first of what ranks below the last one, whatever else is
// known.
template <class Map>
__device__ __forceinline__ void pick_in_order(TokenPicks<Map>& picks, unsigned token,
                                              const RouteForward& args) {
  const uint64_t row = uint64_t(token) * Map::kExperts;
  float last = infinity();
  int last_expert = -1;
#pragma unroll 1
  for (int j = 0; j < args.top_k; ++j) {
    float most = not_a_number();
    int expert = 0;
#pragma unroll 1
    for (int i = 0; i < Map::kExperts; ++i) {
      float value = load_value(args.logits, args.element, row + i);
      if (args.noise != nullptr) value += args.noise[token * args.noise_stride + i];
      value = fmaxf(value, -infinity());
      const bool below = value < last || (value == last && i > last_expert);
      if (below && !(most >= value)) most = value, expert = i;
    }
    picks.values[j] = load_value(args.logits, args.element, row + expert);
    picks.experts[j] = expert;
    last = most, last_expert = expert;
  }
}

template <class Map>
__device__ __forceinline__ float largest_top(const float (&tops)[Map::kPieces]) {
  float best = tops[0];
#pragma unroll
  for (int p = 1; p < Map::kPieces; ++p) best = fmaxf(best, tops[p]);
  return best;
}

// The lanes of a token up to the own one, and the own one: of those that have its largest value the
// first is the own one where `up_to_own` of them is `own`.
struct LaneMasks {
  unsigned own, up_to_own;

  __device__ __forceinline__ explicit LaneMasks(int sub) {
    own = opaque(1u << threadIdx.x % 32);
    up_to_own = opaque((own << 1) - (own >> sub));
  }
  template <int L>
  __device__ __forceinline__ bool first_equal(float best, float top) const {
    if constexpr (L == 1) return best == top;
    return (lanes_equal(best, top) & up_to_own) == own;
  }
  template <int L>
  __device__ __forceinline__ unsigned of_token(int sub) const {
    return ((1u << L) - 1) * (own >> sub);
  }
};

// docs/method.md "Routing" 2: the k largest values in descending order, ties to the lower expert.
// `best` is the largest of the lane's values and `top` that of the token's. A value that was chosen
// becomes NaN. Where only -inf and NaN are left, what is picked here does not count.
template <class Map>
__device__ __forceinline__ void select_picks(LaneStore<Map::kPieces>& store, TokenPicks<Map>& picks,
                                             float (&tops)[Map::kPieces], float best, float top,
                                             const LaneMasks& masks, int sub, unsigned token,
                                             const RouteForward& args) {
  constexpr int P = Map::kPieces, L = Map::kLanes;
  float* const first_place = store.at(0, int(threadIdx.x));
  float *pick = picks.values, *const end = pick + args.top_k;
  auto* expert = picks.experts;
#pragma unroll 1
  for (;;) {
    const bool first = masks.first_equal<L>(best, top);
    float* place;
    int piece, at;  // the first slot of the piece, and the slot in it
    if (first) {
      piece = 4 * (P - 1), at = 3;
#pragma unroll
      for (int p = P - 2; p >= 0; --p) piece = tops[p] == top ? 4 * p : piece;
      place = first_place + piece * (store.kPitch / 4);
      const auto values = load_pack<4>(place);
#pragma unroll
      for (int i = 2; i >= 0; --i) at = values.values[i] == top ? i : at;
      *pick = top;
      *expert = sub * Map::kSlots + piece + at;
    }
    if (++pick == end) break;
    ++expert;
    if (first) {
      place[at] = not_a_number();
      const float rest = largest(load_pack<4>(place));
#pragma unroll
      for (int p = 0; p < P; ++p) tops[p] = piece == 4 * p ? rest : tops[p];
    }
    best = largest_top<Map>(tops);
    top = lanes_max<L>(best);
  }
  if (!(top > -infinity())) {  // for all lanes of the token alike
    __syncwarp(masks.of_token<L>(sub));
    if (sub == 0) pick_in_order<Map>(picks, token, args);
  }
}

}  // namespace moge::cuda
