// Device functions that the C++ library lacks. Approximate ones (__expf, rsqrtf) are exact to a
// rounding here: the accuracy of the hardware's is not what these tests measure.
#pragma once

#include "simt/runtime.h"

#include <cmath>
#include <type_traits>

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }

inline unsigned __float_as_uint(float x) { return simt::unpack<unsigned>(simt::pack(x)); }
inline float __uint_as_float(unsigned x) { return simt::unpack<float>(simt::pack(x)); }

inline float __expf(float x) { return std::exp(x); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }

// CUDA's min and max take two different arithmetic types, and a number before a NaN.
template <class A, class B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  if constexpr (std::is_floating_point_v<std::common_type_t<A, B>>) return std::fmin(a, b);
  return b < a ? b : a;
}
template <class A, class B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  if constexpr (std::is_floating_point_v<std::common_type_t<A, B>>) return std::fmax(a, b);
  return a < b ? b : a;
}

template <class T>
__forceinline__ T __ldg(const T* address) {
  return *address;
}

[[noreturn]] inline void __trap(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  simt::fail("__trap", {file, line});
}
