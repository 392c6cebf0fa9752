// Rows (rows_scalar.h) in AVX-512: two tokens a register. Included inside an anonymous namespace,
// after vector_avx512.h.

template <>
struct Rows<Avx512Float> : Avx512Float {
  static constexpr int kTokens = 2;
  MOGE_INLINE Reg both(__m256 first, __m256 second) {
    return _mm512_insertf32x8(_mm512_castps256_ps512(first), second, 1);
  }
  MOGE_INLINE Reg spread(const float* p, int64_t step) {
    return both(_mm256_broadcast_ss(p), _mm256_broadcast_ss(p + step));
  }
  MOGE_INLINE Reg load_tokens(const float* p, int64_t pitch) {
    return both(_mm256_loadu_ps(p), _mm256_loadu_ps(p + pitch));
  }
  template <class Half>  // BFloat16 or Float16
  MOGE_INLINE Reg load_tokens(const Half* p, int64_t pitch) {
    const __m128i first = _mm_loadu_si128((const __m128i*)(p));
    const __m128i second = _mm_loadu_si128((const __m128i*)(p + pitch));
    return widen(p, _mm256_inserti128_si256(_mm256_castsi128_si256(first), second, 1));
  }
  MOGE_INLINE void store_tokens(float* p, int64_t pitch, Reg a) {
    _mm256_storeu_ps(p, _mm512_castps512_ps256(a));
    _mm256_storeu_ps(p + pitch, _mm512_extractf32x8_ps(a, 1));
  }
  template <class Half>
  MOGE_INLINE void store_tokens(Half* p, int64_t pitch, Reg a) {
    const __m256i halves = narrow(p, a);
    _mm_storeu_si128((__m128i*)(p), _mm256_castsi256_si128(halves));
    _mm_storeu_si128((__m128i*)(p + pitch), _mm256_extracti128_si256(halves, 1));
  }
  // By permutations, one instruction each: in memory the tokens of a register would meet.
  template <int kC, bool kTorus>
  static constexpr int kCells = kC * kWidth;
  template <int kC, bool kTorus>
  MOGE_INLINE void store_cells(float* p, int c, Reg a) {
    store(p + c * kWidth, a);
  }
  template <int kC, bool kTorus>
  MOGE_INLINE Reg sides(const float* p, int c) {
    // Lanes of the register, or 16 more of the row's other one, which for kC = 1 is the same.
    const __m512i before = _mm512_setr_epi32(23, 0, 1, 2, 3, 4, 5, 6, 31, 8, 9, 10, 11, 12, 13, 14);
    const __m512i after = _mm512_setr_epi32(1, 2, 3, 4, 5, 6, 7, 16, 9, 10, 11, 12, 13, 14, 15, 24);
    const Reg own = load(p + c * kWidth), other = load(p + (kC - 1 - c) * kWidth);
    return _mm512_add_ps(_mm512_permutex2var_ps(own, before, other),
                         _mm512_permutex2var_ps(own, after, other));
  }
  MOGE_INLINE Reg repeat(const float* p) { return _mm512_broadcast_f32x8(_mm256_loadu_ps(p)); }
  MOGE_INLINE Reg total(Reg a) {
    a = _mm512_add_ps(a, _mm512_shuffle_f32x4(a, a, 0xb1));
    a = _mm512_add_ps(a, _mm512_permute_ps(a, 0x4e));
    return _mm512_add_ps(a, _mm512_permute_ps(a, 0xb1));
  }
};
