// Rows<V>: eight lanes a token, which hold eight columns of its map, kTokens tokens a register
// beside each other. It has the arithmetic of a vector type, and what moves values between lanes;
// rows_avx2.h and rows_avx512.h are the fast ones. float alone.
//
// Sums over the lanes of a token have one order everywhere, ((0 + 4) + (2 + 6)) + ((1 + 5) + (3 +
// 7)), so that all give the same bits.
//
// Included inside an anonymous namespace, after vector_scalar.h (see kernels_*.cpp).

#if !defined(MOGE_UNROLL)  // kernels_baseline.cpp: it has no registers to keep a row in
#define MOGE_UNROLL _Pragma("GCC unroll 16")
#endif

// A step that is a function of its own, for the registers of its loop. gcc 12.2 dropped the calls
// of row_adjoint with an importance, whose only effect is stores of whole registers, as if it had
// none; -fno-ipa-modref, -fno-ipa-pure-const or -fno-strict-aliasing each kept them. noipa keeps
// the compiler from looking inside; tests/ops/test_row_maps.py sees a call that is missing.
#if defined(__clang__)
#define MOGE_STEP static __attribute__((noinline))
#else
#define MOGE_STEP static __attribute__((noipa))
#endif

constexpr int kRow = 8;  // lanes of a token

template <class V>
constexpr bool kFloat = sizeof(typename V::Scalar) == sizeof(float);

template <class V>
struct Rows;

template <>
struct Rows<One<float>> {
  using L = One<float>;
  using Scalar = float;
  struct Reg {
    float lane[kRow];
  };
  struct Mask {
    bool lane[kRow];
  };
  static constexpr int kTokens = 1, kWidth = kRow;
  template <class Lane>
  MOGE_INLINE Reg each(Lane&& lane) {
    Reg result;
    for (int i = 0; i < kRow; ++i) result.lane[i] = lane(i);
    return result;
  }
  MOGE_INLINE Reg set(float a) {
    return each([&](int) { return a; });
  }
  MOGE_INLINE Reg load(const float* p) {
    return each([&](int i) { return p[i]; });
  }
  MOGE_INLINE void store(float* p, const Reg& a) {
    for (int i = 0; i < kRow; ++i) p[i] = a.lane[i];
  }
  MOGE_INLINE Reg add(const Reg& a, const Reg& b) {
    return each([&](int i) { return a.lane[i] + b.lane[i]; });
  }
  MOGE_INLINE Reg sub(const Reg& a, const Reg& b) {
    return each([&](int i) { return a.lane[i] - b.lane[i]; });
  }
  MOGE_INLINE Reg mul(const Reg& a, const Reg& b) {
    return each([&](int i) { return a.lane[i] * b.lane[i]; });
  }
  MOGE_INLINE Reg div(const Reg& a, const Reg& b) {
    return each([&](int i) { return a.lane[i] / b.lane[i]; });
  }
  MOGE_INLINE Reg fma(const Reg& a, const Reg& b, const Reg& c) {
    return each([&](int i) { return L::fma(a.lane[i], b.lane[i], c.lane[i]); });
  }
  MOGE_INLINE Reg sqrt(const Reg& a) {
    return each([&](int i) { return L::sqrt(a.lane[i]); });
  }
  MOGE_INLINE Reg max(const Reg& a, const Reg& b) {
    return each([&](int i) { return L::max(a.lane[i], b.lane[i]); });
  }
  MOGE_INLINE Mask greater(const Reg& a, const Reg& b) {
    Mask result;
    for (int i = 0; i < kRow; ++i) result.lane[i] = a.lane[i] > b.lane[i];
    return result;
  }
  MOGE_INLINE Reg select(const Mask& m, const Reg& a, const Reg& b) {
    return each([&](int i) { return m.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  MOGE_INLINE Reg eighth_power(const Reg& t) {
    return each([&](int i) { return L::eighth_power(t.lane[i]); });
  }

  // p[t * step] in every lane of token t.
  MOGE_INLINE Reg spread(const float* p, int64_t) { return set(*p); }
  // Eight values of every token, from p + t * pitch, and back.
  template <class In>
  MOGE_INLINE Reg load_tokens(const In* p, int64_t pitch) {
    return each([&](int i) { return to_scalar(p[i]); });
  }
  template <class In>
  MOGE_INLINE void store_tokens(In* p, int64_t pitch, const Reg& a) {
    for (int i = 0; i < kRow; ++i) from_scalar(a.lane[i], &p[i]);
  }
  // A row of the map in memory, kC registers in kCells<kC, kTorus> numbers: puts register c there,
  // and takes from there, for every column of it, the sum of the columns before and after; around
  // the ends on a torus. At the ends of another map that is something finite, if the numbers before
  // and after the row are.
  template <int kC, bool kTorus>
  static constexpr int kCells = kC * kWidth;
  template <int kC, bool kTorus>
  MOGE_INLINE void store_cells(float* p, int c, const Reg& a) {
    store(p + c * kWidth, a);
  }
  template <int kC, bool kTorus>
  MOGE_INLINE Reg sides(const float* p, int c) {
    constexpr int kCols = kC * kRow;
    return each([&](int i) {
      const int column = c * kRow + i;
      return p[(column + kCols - 1) % kCols] + p[(column + 1) % kCols];
    });
  }
  // p[0] .. p[7] in the lanes of every token.
  MOGE_INLINE Reg repeat(const float* p) { return load(p); }
  // The sum over the lanes of a token, in each of them.
  MOGE_INLINE Reg total(const Reg& a) {
    const float* x = a.lane;
    return set(((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7])));
  }
};
