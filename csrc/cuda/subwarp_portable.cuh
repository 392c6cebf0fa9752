// What the sub-warp kernels alone need of CUDA, for two compilers: see portable.cuh.
#pragma once

#include "cuda/portable.cuh"

namespace moge::cuda {

#ifdef __CUDACC__

__device__ __forceinline__ unsigned opaque(unsigned value) {
  asm volatile("" : "+r"(value));
  return value;
}

// The lanes of the warp where a equals b.
__device__ __forceinline__ unsigned lanes_equal(float a, float b) {
  unsigned lanes;
  asm volatile("{.reg .pred same;\n setp.eq.f32 same, %1, %2;\n vote.sync.ballot.b32 %0, same, -1;}"
               : "=r"(lanes)
               : "f"(a), "f"(b));
  return lanes;
}

// `pair`, of two halves that are 0 or NaN, plus 0 times the two values of a word: NaN from the
// first NaN or infinity on.
__device__ __forceinline__ unsigned add_zeros(unsigned pair, unsigned word, BFloat16) {
  unsigned sum;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(word), "r"(0), "r"(pair));
  return sum;
}
__device__ __forceinline__ unsigned add_zeros(unsigned pair, unsigned word, Half) {
  unsigned sum;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(word), "r"(0), "r"(pair));
  return sum;
}

#else

inline unsigned opaque(unsigned value) { return value; }

inline unsigned lanes_equal(float a, float b) { return __ballot_sync(0xffffffffu, a == b); }

template <class T>
inline unsigned add_zeros(unsigned pair, unsigned word, T) {
  const auto is_finite = [](unsigned bits) {
    const float value = to_float(T{uint16_t(bits)});
    return value - value == 0.0f;
  };
  if (!is_finite(word)) pair |= 0x7fffu;
  if (!is_finite(word >> 16)) pair |= 0x7fff0000u;
  return pair;
}

#endif

// Whether a half of what add_zeros made is NaN: the others are 0, or 0 below zero.
__device__ __forceinline__ bool has_nan(unsigned pair) { return (pair & 0x7fff7fffu) != 0; }

}  // namespace moge::cuda
