// What the kernels need of CUDA, for two compilers: nvcc, and g++ with tools/simt (tests on the
// CPU).
//
// SIMT_SHARED(name, float[8]) declares a shared array, SIMT_SHARED_DYN(float, name) the dynamic one
// (16-byte aligned), SIMT_LAUNCH(kernel, grid, block, shared_bytes, stream, args...) launches. The
// 16-bit floating types are plain bits, since cuda_fp16.h needs the toolkit; they are only ever
// converted, and every sum is float32.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace moge::cuda {
template <class T>
using Identity = T;
}  // namespace moge::cuda

#define SIMT_SHARED(name, ...) __shared__::moge::cuda::Identity<__VA_ARGS__> name
#define SIMT_SHARED_DYN(T, name)                                   \
  extern __shared__ __align__(16) unsigned char simt_dyn_shared[]; \
  T* name = reinterpret_cast<T*>(simt_dyn_shared)
#define SIMT_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  kernel<<<(grid), (block), (shared_bytes), (stream)>>>(__VA_ARGS__)
#else
#include "simt/simt.h"

#include <cmath>
#include <cstring>

#define __grid_constant__
#endif

namespace moge::cuda {

struct alignas(2) Half {
  uint16_t bits;
};
struct alignas(2) BFloat16 {
  uint16_t bits;
};

__device__ __forceinline__ float to_float(float value) { return value; }

// bfloat16 is the upper half of a float32.
__device__ __forceinline__ float to_float(BFloat16 value) {
  return __uint_as_float(uint32_t(value.bits) << 16);
}

#ifdef __CUDACC__

__device__ __forceinline__ float to_float(Half value) {
  return __half2float(__ushort_as_half(value.bits));
}

template <class T>
__device__ __forceinline__ T from_float(float value);
template <>
__device__ __forceinline__ float from_float<float>(float value) {
  return value;
}
template <>
__device__ __forceinline__ Half from_float<Half>(float value) {
  return {__half_as_ushort(__float2half_rn(value))};
}
template <>
__device__ __forceinline__ BFloat16 from_float<BFloat16>(float value) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(value))};
}

// One instruction, relative error below 2^-22; sqrtf is 8 and a branch. Subnormal input counts as
// 0.
__device__ __forceinline__ float approximate_sqrt(float value) {
  float root;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(root) : "f"(value));
  return root;
}
// 1 / sqrt(value); rsqrtf, which scales subnormal numbers, is 4.
__device__ __forceinline__ float approximate_rsqrt(float value) {
  float quotient;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(quotient) : "f"(value));
  return quotient;
}

// One instruction each, relative error below 2^-22; subnormal numbers count as 0.
__device__ __forceinline__ float approximate_exp2(float value) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(value));
  return power;
}
__device__ __forceinline__ float approximate_reciprocal(float value) {
  float quotient;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(quotient) : "f"(value));
  return quotient;
}

// The two values of a word, the lower half first.
__device__ __forceinline__ void to_floats(unsigned word, BFloat16, float& first, float& second) {
  asm("shl.b32 %0, %1, 16;" : "=f"(first) : "r"(word));
  asm("and.b32 %0, %1, 0xffff0000;" : "=f"(second) : "r"(word));
}

// Shuffles among the lanes of a segment of `width`. __shfl_sync moves every number to an integer
// register and back, in PTX.
template <int kDistance>
__device__ __forceinline__ float shuffle_xor(float value) {
  float other;
  asm volatile("shfl.sync.bfly.b32 %0, %1, %2, 31, -1;" : "=f"(other) : "f"(value), "n"(kDistance));
  return other;
}
template <int kWidth>
__device__ __forceinline__ float shuffle_from(float value, int lane) {
  float other;
  asm volatile("shfl.sync.idx.b32 %0, %1, %2, %3, -1;"
               : "=f"(other)
               : "f"(value), "r"(lane), "n"((32 - kWidth) << 8 | 31));
  return other;
}

// The value, which the compiler knows nothing of: what follows from it is computed where it is
// used, not kept in registers from outside the loop.
__device__ __forceinline__ int opaque(int value) {
  asm volatile("" : "+r"(value));
  return value;
}
__device__ __forceinline__ int64_t opaque(int64_t value) {
  asm volatile("" : "+l"(value));
  return value;
}

#else

inline int opaque(int value) { return value; }
inline int64_t opaque(int64_t value) { return value; }

// The same rounding as the device's conversions: to nearest, ties to even; NaN stays NaN.
inline float to_float(Half value) {
  const uint32_t magnitude = value.bits & 0x7fffu, sign = uint32_t(value.bits & 0x8000u) << 16;
  if (magnitude >= 0x7c00u) return __uint_as_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  // 2^112 moves the exponent from bias 15 to bias 127, and scales subnormals exactly.
  const float scaled = __uint_as_float(magnitude << 13) * 0x1p112f;
  return __uint_as_float(sign | __float_as_uint(scaled));
}

template <class T>
inline T from_float(float value);
template <>
inline float from_float<float>(float value) {
  return value;
}
template <>
inline Half from_float<Half>(float value) {
  const uint32_t bits = __float_as_uint(value), sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {uint16_t(sign | 0x7fffu)};
  if (magnitude >= 0x477ff000u) return {uint16_t(sign | 0x7c00u)};  // rounds to 65536 or more
  if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 leaves multiples of 2^-24 in the mantissa
    const uint32_t shifted = __float_as_uint(__uint_as_float(magnitude) + 0.5f);
    return {uint16_t(sign | (shifted - 0x3f000000u))};
  }
  const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
  return {uint16_t(sign | (rounded - 0x38000000u) >> 13)};
}
template <>
inline BFloat16 from_float<BFloat16>(float value) {
  const uint32_t bits = __float_as_uint(value);
  if (value != value) return {0x7fffu};
  return {uint16_t((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}

inline float approximate_sqrt(float value) { return std::sqrt(value); }
inline float approximate_rsqrt(float value) { return 1.0f / std::sqrt(value); }
inline float approximate_exp2(float value) { return std::exp2(value); }
inline float approximate_reciprocal(float value) { return 1.0f / value; }

inline void to_floats(unsigned word, BFloat16, float& first, float& second) {
  first = __uint_as_float(word << 16);
  second = __uint_as_float(word & 0xffff0000u);
}

template <int kDistance>
__forceinline__ float shuffle_xor(float value) {
  return __shfl_xor_sync(0xffffffffu, value, kDistance);
}
template <int kWidth>
__forceinline__ float shuffle_from(float value, int lane) {
  return __shfl_sync(0xffffffffu, value, lane, kWidth);
}

#endif

__device__ __forceinline__ void to_floats(unsigned word, Half, float& first, float& second) {
  first = to_float(Half{uint16_t(word & 0xffffu)});
  second = to_float(Half{uint16_t(word >> 16)});
}

// W values of T that one load or store moves: 16 bytes at most.
template <class T, int W>
struct Pack {
  T values[W];
};

// What moves a pack: floats as such, all others as bits.
template <int Bytes, bool kFloats>
struct Word;
template <>
struct Word<2, false> {
  using Type = unsigned short;
};
template <>
struct Word<4, false> {
  using Type = unsigned;
};
template <>
struct Word<8, false> {
  using Type = uint2;
};
template <>
struct Word<16, false> {
  using Type = uint4;
};
template <>
struct Word<4, true> {
  using Type = float;
};
template <>
struct Word<8, true> {
  using Type = float2;
};
template <>
struct Word<16, true> {
  using Type = float4;
};
template <class T, int W>
using WordOf = typename Word<int(sizeof(T)) * W, std::is_same_v<T, float>>::Type;

template <int W, class T>
__device__ __forceinline__ Pack<T, W> load_pack(const T* address) {
  const auto bits = *reinterpret_cast<const WordOf<T, W>*>(address);
  Pack<T, W> pack;
  memcpy(&pack, &bits, sizeof bits);
  return pack;
}

template <class T, int W>
__device__ __forceinline__ void store_pack(T* address, Pack<T, W> pack) {
  WordOf<T, W> bits;
  memcpy(&bits, &pack, sizeof bits);
  *reinterpret_cast<WordOf<T, W>*>(address) = bits;
}

}  // namespace moge::cuda
