// Two floats at a time. From compute capability 10 on one instruction adds or multiplies two that
// lie in neighbouring registers; before, and in the emulator, it is two. Both round alike: what
// says _rn is not fused with anything.
//
// `together` says whether they lie so. Where they don't, they are added one by one: moving them
// first would take as many instructions as that saves. It means nothing for a single float.
#pragma once

#include "cuda/portable.cuh"

namespace moge::cuda {

// One float after the other.
__device__ __forceinline__ float2 add_each(float2 a, float2 b) {
  return {__fadd_rn(a.x, b.x), __fadd_rn(a.y, b.y)};
}
__device__ __forceinline__ float2 multiply_each(float2 a, float2 b) {
  return {__fmul_rn(a.x, b.x), __fmul_rn(a.y, b.y)};
}
__device__ __forceinline__ float2 multiply_add_each(float2 a, float2 b, float2 c) {
  return {fmaf(a.x, b.x, c.x), fmaf(a.y, b.y, c.y)};
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000

// In PTX a pair is made of two registers and taken apart again; in SASS it is the two registers.
// (CUDA 13's intrinsics also move each float to an integer register and back.)
__device__ __forceinline__ float2 add_two(float2 a, float2 b) {
  float2 sum;
  asm("{.reg .b64 a, b;\n mov.b64 a, {%2, %3};\n mov.b64 b, {%4, %5};\n"
      " add.rn.f32x2 a, a, b;\n mov.b64 {%0, %1}, a;}"
      : "=f"(sum.x), "=f"(sum.y)
      : "f"(a.x), "f"(a.y), "f"(b.x), "f"(b.y));
  return sum;
}
__device__ __forceinline__ float2 multiply_two(float2 a, float2 b) {
  float2 product;
  asm("{.reg .b64 a, b;\n mov.b64 a, {%2, %3};\n mov.b64 b, {%4, %5};\n"
      " mul.rn.f32x2 a, a, b;\n mov.b64 {%0, %1}, a;}"
      : "=f"(product.x), "=f"(product.y)
      : "f"(a.x), "f"(a.y), "f"(b.x), "f"(b.y));
  return product;
}
__device__ __forceinline__ float2 multiply_add_two(float2 a, float2 b, float2 c) {
  float2 sum;
  asm("{.reg .b64 a, b, c;\n mov.b64 a, {%2, %3};\n mov.b64 b, {%4, %5};\n"
      " mov.b64 c, {%6, %7};\n fma.rn.f32x2 a, a, b, c;\n mov.b64 {%0, %1}, a;}"
      : "=f"(sum.x), "=f"(sum.y)
      : "f"(a.x), "f"(a.y), "f"(b.x), "f"(b.y), "f"(c.x), "f"(c.y));
  return sum;
}

#else

__device__ __forceinline__ float2 add_two(float2 a, float2 b) { return add_each(a, b); }
__device__ __forceinline__ float2 multiply_two(float2 a, float2 b) { return multiply_each(a, b); }
__device__ __forceinline__ float2 multiply_add_two(float2 a, float2 b, float2 c) {
  return multiply_add_each(a, b, c);
}

#endif

__device__ __forceinline__ float add(float a, float b, bool = true) { return __fadd_rn(a, b); }
__device__ __forceinline__ float2 add(float2 a, float2 b, bool together = true) {
  return together ? add_two(a, b) : add_each(a, b);
}

__device__ __forceinline__ float2 multiply(float2 a, float2 b) { return multiply_two(a, b); }
__device__ __forceinline__ float multiply(float factor, float a, bool = true) {
  return __fmul_rn(factor, a);
}
__device__ __forceinline__ float2 multiply(float factor, float2 a, bool together = true) {
  const float2 both = {factor, factor};
  return together ? multiply_two(both, a) : multiply_each(both, a);
}

__device__ __forceinline__ float2 multiply_add(float2 a, float2 b, float2 c) {
  return multiply_add_two(a, b, c);
}
__device__ __forceinline__ float multiply_add(float factor, float a, float b, bool = true) {
  return fmaf(factor, a, b);
}
__device__ __forceinline__ float2 multiply_add(float factor, float2 a, float2 b,
                                               bool together = true) {
  const float2 both = {factor, factor};
  return together ? multiply_add_two(both, a, b) : multiply_add_each(both, a, b);
}

__device__ __forceinline__ float2 approximate_exp2(float2 values) {
  return {approximate_exp2(values.x), approximate_exp2(values.y)};
}
__device__ __forceinline__ float2 approximate_sqrt(float2 values) {
  return {approximate_sqrt(values.x), approximate_sqrt(values.y)};
}
__device__ __forceinline__ float2 approximate_rsqrt(float2 values) {
  return {approximate_rsqrt(values.x), approximate_rsqrt(values.y)};
}

template <int R>
__device__ __forceinline__ float2 pair_at(const float (&values)[R], int first) {
  return {values[first], values[first + 1]};
}
template <int R>
__device__ __forceinline__ void set_at(float (&values)[R], int first, float2 pair) {
  values[first] = pair.x, values[first + 1] = pair.y;
}
template <int R>
__device__ __forceinline__ void set_at(float (&values)[R], int at, float value) {
  values[at] = value;
}

}  // namespace moge::cuda
