// A sub-warp per token, and the map in registers: what the common maps take instead of filter.cuh.
//
// A lane holds R = 16 neighbouring scores of a token (8 where N < 32), which are whole rows of the
// map; L = N / R lanes hold the token, and 32 / L tokens share every instruction of a warp. Rows,
// columns, group size and border are compile-time numbers, so that
//
//   along the rows      the filter runs within a lane's registers
//   down the columns    it reads the rows of the next lanes: h - 1 shuffles a column, whatever R is
//
// A torus takes indices modulo the map. Without one the rows beyond the map come from the lanes
// of its beginning, and what follows from them belongs to no group and is not used; nothing is
// compared in between. A row with a NaN has nothing but NaN, so that no zero weighs one.
//
// Values that a lane must address by a number are kept in shared memory, in places of its own:
// piece j of 4 values of thread t lies at 16 (j pitch + t) bytes, where no two lanes of a warp meet
// in a bank whatever j each of them takes.
#pragma once

#include "cuda/launch.h"
#include "cuda/warp.cuh"

namespace moge::cuda {

constexpr int kSubThreads = 128;  // of a block
constexpr int kSubWarps = kSubThreads / 32;
constexpr int kMostPicks = 8;  // choices of a token
constexpr int kMostTaps = 5;
constexpr float kLog2E = 1.44269504f;

// kGroup is h, or 0 where there is no group norm.
template <int kRows_, int kCols_, int kGroup_, bool kTorus_>
struct SubMap {
  static constexpr int kRows = kRows_, kCols = kCols_, kGroup = kGroup_;
  static constexpr bool kTorus = kTorus_;
  static constexpr int kExperts = kRows * kCols;
  static constexpr int kSlots = kExperts < 32 ? 8 : 16;              // R
  static constexpr int kLanes = kExperts / kSlots;                   // L
  static constexpr int kOwnRows = kSlots / kCols;                    // of a lane
  static constexpr int kPieces = kSlots / 4;                         // of 16 bytes of float32
  static constexpr int kTokens = kSubThreads / kLanes;               // of a block at a time
  static constexpr int kPicks = (kMostPicks + kLanes - 1) / kLanes;  // of a lane
  static constexpr int kUnroll = kPicks <= 2 ? kPicks : 1;           // of the loop over them
  static constexpr int kGroupRows = kTorus ? kRows : kRows - kGroup + 1;
  static constexpr int kGroupCols = kTorus ? kCols : kCols - kGroup + 1;
  // A filter of its own, not a larger one's with zeros behind, and with a middle tap.
  static constexpr bool kOverMiddle = !kTorus && kGroup % 2 == 1;
};

// The choices of a token: each with its logit, or with what is added to the gradient of that.
struct TokenPicks {
  float values[kMostPicks];
  uint16_t experts[kMostPicks];
};

template <int R>
__device__ __forceinline__ Pack<float, 4> piece_of(const float (&values)[R], int piece) {
  return {{values[4 * piece], values[4 * piece + 1], values[4 * piece + 2], values[4 * piece + 3]}};
}

// 4 kPieces floats a thread. The pitch also keeps apart the threads that sum_columns reads at once.
template <int kPieces>
struct alignas(16) LaneStore {
  float pieces[kPieces][4 * kSubThreads + 32 / kPieces];

  __device__ __forceinline__ float* at(int piece, int thread) { return &pieces[piece][4 * thread]; }
  // The calling thread's values.
  __device__ __forceinline__ void put(const float (&values)[4 * kPieces]) {
#pragma unroll
    for (int p = 0; p < kPieces; ++p) store_pack(at(p, int(threadIdx.x)), piece_of(values, p));
  }
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int p = 0; p < kPieces; ++p) store_pack(at(p, int(threadIdx.x)), Pack<float, 4>{});
  }
  __device__ __forceinline__ void add(const float (&values)[4 * kPieces], float factor) {
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
      auto piece = load_pack<4>(at(p, int(threadIdx.x)));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        piece.values[i] = fmaf(values[4 * p + i], factor, piece.values[i]);
      }
      store_pack(at(p, int(threadIdx.x)), piece);
    }
  }
  __device__ __forceinline__ void get(float (&values)[4 * kPieces]) {
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
      const auto piece = load_pack<4>(at(p, int(threadIdx.x)));
#pragma unroll
      for (int i = 0; i < 4; ++i) values[4 * p + i] = piece.values[i];
    }
  }
};

template <int L>
__device__ __forceinline__ float lanes_max(float value) {
  if constexpr (L > 8) value = fmaxf(value, shuffle_xor<8>(value));
  if constexpr (L > 4) value = fmaxf(value, shuffle_xor<4>(value));
  if constexpr (L > 2) value = fmaxf(value, shuffle_xor<2>(value));
  if constexpr (L > 1) value = fmaxf(value, shuffle_xor<1>(value));
  return value;
}
template <int L>
__device__ __forceinline__ float lanes_sum(float value) {
  if constexpr (L > 8) value += shuffle_xor<8>(value);
  if constexpr (L > 4) value += shuffle_xor<4>(value);
  if constexpr (L > 2) value += shuffle_xor<2>(value);
  if constexpr (L > 1) value += shuffle_xor<1>(value);
  return value;
}

// R values from `address` on, which is 16-byte aligned.
template <int R>
__device__ __forceinline__ void load_floats(const float* address, float (&values)[R]) {
#pragma unroll
  for (int i = 0; i < R; i += 4) {
    const auto pack = load_pack<4>(address + i);
#pragma unroll
    for (int j = 0; j < 4; ++j) values[i + j] = pack.values[j];
  }
}

// R values that start at the element `first` of `rows`, 16-byte aligned. One kernel for all
// element types: the branch is the same for all, and the rest is compiled once.
template <int R>
__device__ __forceinline__ void load_values(const void* rows, Element element, int64_t first,
                                            float (&values)[R]) {
  const auto read_pairs = [&](auto* typed) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(typed)>>;
    const auto* words = reinterpret_cast<const unsigned*>(typed + first);
#pragma unroll
    for (int i = 0; i < R; i += 8) {
      const auto pack = load_pack<4>(words + i / 2);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        to_floats(pack.values[j], T{}, values[i + 2 * j], values[i + 2 * j + 1]);
      }
    }
  };
  if (element == Element::kFloat32) {
    load_floats(static_cast<const float*>(rows) + first, values);
  } else if (element == Element::kBFloat16) {
    read_pairs(static_cast<const BFloat16*>(rows));
  } else {
    read_pairs(static_cast<const Half*>(rows));
  }
}
template <int R>
__device__ __forceinline__ void store_values(void* rows, Element element, int64_t first,
                                             const float (&values)[R]) {
  const auto write = [&](auto* typed) {
    using T = std::remove_pointer_t<decltype(typed)>;
    constexpr int A = 16 / int(sizeof(T));
#pragma unroll
    for (int i = 0; i < R; i += A) {
      Pack<T, A> pack;
#pragma unroll
      for (int j = 0; j < A; ++j) pack.values[j] = from_float<T>(values[i + j]);
      store_pack(typed + first + i, pack);
    }
  };
  if (element == Element::kFloat32) {
    write(static_cast<float*>(rows));
  } else if (element == Element::kBFloat16) {
    write(static_cast<BFloat16*>(rows));
  } else {
    write(static_cast<Half*>(rows));
  }
}

__device__ __forceinline__ float load_value(const void* rows, Element element, int64_t at) {
  if (element == Element::kFloat32) return static_cast<const float*>(rows)[at];
  if (element == Element::kBFloat16) return to_float(static_cast<const BFloat16*>(rows)[at]);
  return to_float(static_cast<const Half*>(rows)[at]);
}

// exp(x - maximum) as 2^(factor x - shifted), one multiply-add and one instruction. The rounding
// of `shifted` is in every term of the row, `excess` of the exponent, and cancels in a quotient;
// the difference itself is rounded once. Beyond 5e8, where `excess` would pass 32 and the square of
// a term overflow, differences are 0 or at least 32, and the base of the power is all the same.
struct Exponent {
  float factor, shifted, excess;

  __device__ __forceinline__ explicit Exponent(float maximum) {
    factor = fabsf(maximum) > 5e8f ? 1.0f : kLog2E;
    shifted = maximum * factor;
    excess = fmaf(maximum, factor, -shifted);
  }
  __device__ __forceinline__ float operator()(float x) const {
    return approximate_exp2(fmaf(x, factor, -shifted));
  }
};

}  // namespace moge::cuda
