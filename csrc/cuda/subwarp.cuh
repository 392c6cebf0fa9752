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
// of its beginning, and what follows from them belongs to no group: forward leaves it out, backward
// weighs it with 0, which epsilon keeps finite; nothing is compared in between. A row with a NaN
// has nothing but NaN, so that no zero weighs one.
//
// Values that a lane must address by a number are kept in shared memory, in places of its own:
// piece j of 4 values of thread t lies at 16 (j pitch + t) bytes, where no two lanes of a warp meet
// in a bank whatever j each of them takes.
#pragma once

#include "cuda/launch.h"
#include "cuda/pairs.cuh"
#include "cuda/subwarp_portable.cuh"
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

// The choices of a token: each with its logit, or with what is added to the gradient of that. Both
// arrays have one stride, for one address, and equal entries of a warp's tokens lie in different
// banks; but N = 32 has 64 tokens, and both would take its block beyond an eighth of an A100's
// shared memory.
template <class Map>
struct TokenPicks {
  static constexpr bool kSmall = Map::kExperts == 32;
  using Expert = std::conditional_t<kSmall, uint16_t, unsigned>;
  float values[kMostPicks];
  Expert experts[kMostPicks + (kSmall ? 0 : 1)];
};

// The lane's number among those of its token, as `opaque` has it, but for a token of one lane.
template <class Map>
__device__ __forceinline__ int opaque_lane(unsigned lane) {
  return Map::kLanes == 1 ? 0 : opaque(int(lane));
}

// A unit is what a lane holds: unit u is of token u / L, its values u % L R and on. The threads of
// a block take units in a row, kSubThreads at a time. Their numbers, and those of the choices, are
// 32-bit (with_sub_map), so that an address is one instruction.
template <class Map>
struct Units {
  unsigned unit;  // of the lane, in this round
  unsigned last;  // of the lane, in the chunk's last token
  unsigned stop;  // the first unit at which no lane of the warp has a token

  __device__ __forceinline__ Units(int64_t num_tokens, int chunk_tokens, int sub) {
    constexpr unsigned L = Map::kLanes;
    const unsigned first = blockIdx.x * unsigned(chunk_tokens);
    const unsigned end = min(first + unsigned(chunk_tokens), unsigned(num_tokens)) * L;
    unit = first * L + threadIdx.x;
    last = opaque(end - L + unsigned(sub));
    stop = opaque(end + threadIdx.x % 32);
  }
  __device__ __forceinline__ bool any() const { return unit < stop; }  // for a warp's lanes alike
  __device__ __forceinline__ bool active() const { return unit <= last; }
  // The unit that the lane works at: without a token the last token's, once more.
  __device__ __forceinline__ unsigned at() const { return min(unit, last); }
  __device__ __forceinline__ void advance() { unit += kSubThreads; }
};

template <int R>
__device__ __forceinline__ Pack<float, 4> piece_of(const float (&values)[R], int piece) {
  return {{values[4 * piece], values[4 * piece + 1], values[4 * piece + 2], values[4 * piece + 3]}};
}

// 4 kPieces floats a thread. The pitch also keeps apart the threads that sum_columns reads at once.
template <int kPieces>
struct alignas(16) LaneStore {
  static constexpr int kPitch = 4 * kSubThreads + 32 / kPieces;
  static_assert(kPitch % 4 == 0, "a piece is 16 bytes");
  float pieces[kPieces][kPitch];

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
      for (int i = 0; i < 4; i += 2) {
        const float2 sum = pair_at(piece.values, i);
        set_at(piece.values, i, multiply_add(factor, pair_at(values, 4 * p + i), sum));
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

// Entry `index` of what takes `bytes` each.
template <class T>
__device__ __forceinline__ T* at_bytes(T* first, unsigned index, unsigned bytes) {
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
  return reinterpret_cast<T*>(reinterpret_cast<Byte*>(first) + uint64_t(index) * bytes);
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

// The R values of a unit. With `check`, found_bad() is called where one is NaN or infinite. One
// kernel for all element types: the branch is the same for all, and the rest is compiled once.
template <int R, class FoundBad>
__device__ __forceinline__ void load_values(const void* rows, Element element, unsigned unit,
                                            float (&values)[R], bool check, FoundBad found_bad) {
  const auto read_pairs = [&](auto* typed) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(typed)>>;
    const auto* words = reinterpret_cast<const unsigned*>(at_bytes(typed, unit, R * sizeof(T)));
    Pack<unsigned, 4> packs[R / 8];
#pragma unroll
    for (int i = 0; i < R / 8; ++i) packs[i] = load_pack<4>(words + 4 * i);
    if (check) {
      unsigned zeros = 0;
#pragma unroll
      for (int i = 0; i < R / 2; ++i) zeros = add_zeros(zeros, packs[i / 4].values[i % 4], T{});
      if (has_nan(zeros)) found_bad();
    }
#pragma unroll
    for (int i = 0; i < R / 2; ++i) {
      to_floats(packs[i / 4].values[i % 4], T{}, values[2 * i], values[2 * i + 1]);
    }
  };
  if (element == Element::kBFloat16) {
    read_pairs(static_cast<const BFloat16*>(rows));
  } else if (element == Element::kFloat32) {
    load_floats(at_bytes(static_cast<const float*>(rows), unit, R * sizeof(float)), values);
    if (check) {
      float2 zeros = {};  // NaN from the first NaN or infinity on
#pragma unroll
      for (int i = 0; i < R; i += 2) zeros = multiply_add(0.0f, pair_at(values, i), zeros);
      const float zero = zeros.x + zeros.y;
      if (zero != zero) found_bad();
    }
  } else {
    read_pairs(static_cast<const Half*>(rows));
  }
}
template <int R>
__device__ __forceinline__ void load_values(const void* rows, Element element, unsigned unit,
                                            float (&values)[R]) {
  load_values(rows, element, unit, values, false, [] {});
}
template <int R>
__device__ __forceinline__ void store_values(void* rows, Element element, unsigned unit,
                                             const float (&values)[R]) {
  const auto write = [&](auto* typed) {
    using T = std::remove_pointer_t<decltype(typed)>;
    constexpr int A = 16 / int(sizeof(T));
#pragma unroll
    for (int i = 0; i < R; i += A) {
      Pack<T, A> pack;
#pragma unroll
      for (int j = 0; j < A; ++j) pack.values[j] = from_float<T>(values[i + j]);
      store_pack(at_bytes(typed, unit, R * sizeof(T)) + i, pack);
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

__device__ __forceinline__ float load_value(const void* rows, Element element, uint64_t at) {
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
  __device__ __forceinline__ float2 operator()(float2 x) const {
    return approximate_exp2(multiply_add(factor, x, float2{-shifted, -shifted}));
  }
};

}  // namespace moge::cuda
