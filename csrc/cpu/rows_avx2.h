// Rows (rows_scalar.h) in AVX2: one token a register. Included inside an anonymous namespace, after
// vector_avx2.h.

template <>
struct Rows<Avx2Float> : Avx2Float {
  static constexpr int kTokens = 1;
  MOGE_INLINE Reg spread(const float* p, int64_t) { return _mm256_broadcast_ss(p); }
  template <class In>
  MOGE_INLINE Reg load_tokens(const In* p, int64_t pitch) {
    return load_row(p);
  }
  template <class In>
  MOGE_INLINE void store_tokens(In* p, int64_t pitch, Reg a) {
    store_row(p, a);
  }
  // On a torus the first register stands behind the last as well, where the ends meet. A load that
  // crosses two stores, long done, costs less than a permutation, two operations on Zen 3.
  template <int kC, bool kTorus>
  static constexpr int kCells = (kC + kTorus) * kWidth;
  template <int kC, bool kTorus>
  MOGE_INLINE void store_cells(float* p, int c, Reg a) {
    store(p + c * kWidth, a);
    if (kTorus && c == 0) store(p + kC * kWidth, a);
  }
  template <int kC, bool kTorus>
  MOGE_INLINE Reg sides(const float* p, int c) {
    const float* before = p + (kTorus && c == 0 ? kC : c) * kWidth - 1;
    return _mm256_add_ps(_mm256_loadu_ps(before), _mm256_loadu_ps(p + c * kWidth + 1));
  }
  MOGE_INLINE Reg repeat(const float* p) { return _mm256_loadu_ps(p); }
  MOGE_INLINE Reg total(Reg a) {
    a = _mm256_add_ps(a, _mm256_permute2f128_ps(a, a, 0x01));
    a = _mm256_add_ps(a, _mm256_permute_ps(a, 0x4e));
    return _mm256_add_ps(a, _mm256_permute_ps(a, 0xb1));
  }
};
