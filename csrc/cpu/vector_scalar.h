// One token at a time: the vector type of the baseline, right on any processor. The tail of every
// vector type's interface is described here; vector_avx2.h and vector_avx512.h are the fast ones.
//
// Every operation is one that IEEE 754 rounds in one way alone: so all vector types give the same
// bits, on the processors of every vendor. Approximate instructions (rsqrt, rcp, their 14-bit
// forms) and the C library's functions are none of these, fma and sqrt aside, and
// tests/csrc/test_vendor_instructions.py refuses them.
//
// Included inside an anonymous namespace, after every standard header (see kernels_*.cpp).

#define MOGE_INLINE static inline __attribute__((always_inline))

// bfloat16 as stored: the upper half of a float.
struct BFloat16 {
  uint16_t bits;
};

// float16 as stored: IEEE binary16.
struct Float16 {
  uint16_t bits;
};

MOGE_INLINE float to_scalar(float x) { return x; }
MOGE_INLINE double to_scalar(double x) { return x; }
MOGE_INLINE float to_scalar(BFloat16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

MOGE_INLINE float to_scalar(Float16 x) {  // NaN becomes a quiet one, as the instructions do it
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, rest = x.bits & 0x7fff;
  const float subnormal = float(rest) * 0x1p-24f;
  uint32_t bits = (rest << 13) + (112u << 23);
  if (rest < 0x400) __builtin_memcpy(&bits, &subnormal, 4);
  if (rest >= 0x7c00) bits = 0x7f800000 | rest << 13 | (rest > 0x7c00 ? 0x400000 : 0);
  bits |= sign;
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

MOGE_INLINE void from_scalar(float x, float* out) { *out = x; }
MOGE_INLINE void from_scalar(double x, double* out) { *out = x; }
MOGE_INLINE void from_scalar(float x, BFloat16* out) {  // to nearest, ties to even, NaN stays NaN
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  out->bits = x != x ? 0x7fc0 : uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

MOGE_INLINE void from_scalar(float x, Float16* out) {  // to nearest, ties to even
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  const uint32_t size = bits & 0x7fffffff;
  uint32_t half = (size - (112u << 23) + 0xfff + (size >> 13 & 1)) >> 13;
  if (size < 0x38800000) {  // 2^-14: below it half a unit is always 2^-25, as in 1/2 + |x|
    float sum;
    __builtin_memcpy(&sum, &size, 4);
    sum += 0.5f;
    __builtin_memcpy(&half, &sum, 4);
    half -= 0x3f000000;
  }
  if (size >= 0x477ff000) half = 0x7c00;  // 65520 and above
  if (size > 0x7f800000) half = 0x7e00 | (size >> 13 & 0x3ff);
  out->bits = uint16_t(half | (bits >> 16 & 0x8000));
}

MOGE_INLINE float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
MOGE_INLINE double fused(double a, double b, double c) { return __builtin_fma(a, b, c); }
MOGE_INLINE float root(float a) { return __builtin_sqrtf(a); }
MOGE_INLINE double root(double a) { return __builtin_sqrt(a); }

// 2^(i / 8), i = 0 .. 7, as bits, less i << 20: adding (8 n + i) << 20 gives 2^(n + i / 8).
constexpr uint32_t kEighthPowers[8] = {0x3f800000, 0x3f7b95c2, 0x3f7837f0, 0x3f75fed7,
                                       0x3f7504f3, 0x3f75672a, 0x3f7744fd, 0x3f7ac0c7};

// 2^(m / 8) for t = magic + m / 8: the integer m sits in t's low mantissa bits.
MOGE_INLINE float power_of_eighths(float t) {
  uint32_t bits;
  __builtin_memcpy(&bits, &t, 4);
  bits = kEighthPowers[bits & 7] + (bits << 20);
  __builtin_memcpy(&t, &bits, 4);
  return t;
}
// 2^(low bits of t - 1023) for t = magic + n.
MOGE_INLINE double power_of_two(double t) {
  uint64_t bits;
  __builtin_memcpy(&bits, &t, 8);
  bits <<= 52;
  __builtin_memcpy(&t, &bits, 8);
  return t;
}

template <class S>
struct One {
  using Scalar = S;
  using Reg = S;
  using Mask = bool;
  struct Wide {  // a float64 accumulator for each lane
    double sum;
  };
  static constexpr int kWidth = 1;
  static constexpr bool kTransposes = false;  // has rows, blocks and parts of rows: see tile.h
  MOGE_INLINE Reg set(Scalar a) { return a; }
  MOGE_INLINE Reg load(const Scalar* p) { return *p; }
  MOGE_INLINE void store(Scalar* p, Reg a) { *p = a; }
  MOGE_INLINE Reg add(Reg a, Reg b) { return a + b; }
  MOGE_INLINE Reg sub(Reg a, Reg b) { return a - b; }
  MOGE_INLINE Reg mul(Reg a, Reg b) { return a * b; }
  MOGE_INLINE Reg div(Reg a, Reg b) { return a / b; }
  MOGE_INLINE Reg fma(Reg a, Reg b, Reg c) { return fused(a, b, c); }  // a b + c, rounded once
  MOGE_INLINE Reg sqrt(Reg a) { return root(a); }
  MOGE_INLINE Reg max(Reg a, Reg b) { return a > b ? a : b; }  // b where either is NaN
  MOGE_INLINE Reg min(Reg a, Reg b) { return a < b ? a : b; }
  MOGE_INLINE Mask greater(Reg a, Reg b) { return a > b; }
  MOGE_INLINE Reg select(Mask m, Reg a, Reg b) { return m ? a : b; }
  MOGE_INLINE unsigned nan_bits(Reg a) { return a != a; }              // bit i: lane i is NaN
  MOGE_INLINE Reg eighth_power(Reg t) { return power_of_eighths(t); }  // float only
  MOGE_INLINE Reg pow2(Reg t) { return power_of_two(t); }              // double only
  MOGE_INLINE Wide wide_zero() { return {0.0}; }
  MOGE_INLINE void add_wide(Wide& wide, Reg a) { wide.sum += double(a); }
  MOGE_INLINE void store_wide(double* p, const Wide& wide) { *p = wide.sum; }
};
