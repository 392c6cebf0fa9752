// Sixteen floats or eight doubles in a register: the interface of One in vector_scalar.h, in
// AVX-512 (F, BW, DQ, VL). Included inside an anonymous namespace, under the target pragma of
// kernels_avx512.cpp.

struct Avx512Float {
  using Scalar = float;
  using Reg = __m512;
  using Mask = __mmask16;
  struct Wide {
    __m512d low, high;
  };
  static constexpr int kWidth = 16;
  static constexpr bool kTransposes = true;
  MOGE_INLINE Reg set(float a) { return _mm512_set1_ps(a); }
  MOGE_INLINE Reg load(const float* p) { return _mm512_load_ps(p); }
  MOGE_INLINE void store(float* p, Reg a) { _mm512_store_ps(p, a); }
  MOGE_INLINE Reg add(Reg a, Reg b) { return _mm512_add_ps(a, b); }
  MOGE_INLINE Reg sub(Reg a, Reg b) { return _mm512_sub_ps(a, b); }
  MOGE_INLINE Reg mul(Reg a, Reg b) { return _mm512_mul_ps(a, b); }
  MOGE_INLINE Reg div(Reg a, Reg b) { return _mm512_div_ps(a, b); }
  MOGE_INLINE Reg fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
  MOGE_INLINE Reg sqrt(Reg a) { return _mm512_sqrt_ps(a); }
  MOGE_INLINE Reg max(Reg a, Reg b) { return _mm512_max_ps(a, b); }
  MOGE_INLINE Reg min(Reg a, Reg b) { return _mm512_min_ps(a, b); }
  MOGE_INLINE Mask greater(Reg a, Reg b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
  MOGE_INLINE Reg select(Mask m, Reg a, Reg b) { return _mm512_mask_mov_ps(b, m, a); }
  MOGE_INLINE unsigned nan_bits(Reg a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q); }
  MOGE_INLINE Reg eighth_power(Reg t) {
    const __m512i bits = _mm512_castps_si512(t);
    const __m512i table = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i*)kEighthPowers));
    const __m512i from = _mm512_permutexvar_epi32(bits, table);
    return _mm512_castsi512_ps(_mm512_add_epi32(from, _mm512_slli_epi32(bits, 20)));
  }
  MOGE_INLINE Wide wide_zero() { return {_mm512_setzero_pd(), _mm512_setzero_pd()}; }
  MOGE_INLINE void add_wide(Wide& wide, Reg a) {
    wide.low = _mm512_add_pd(wide.low, _mm512_cvtps_pd(_mm512_castps512_ps256(a)));
    wide.high = _mm512_add_pd(wide.high, _mm512_cvtps_pd(_mm512_extractf32x8_ps(a, 1)));
  }
  MOGE_INLINE void store_wide(double* p, const Wide& wide) {
    _mm512_store_pd(p, wide.low);
    _mm512_store_pd(p + 8, wide.high);
  }

  MOGE_INLINE Reg load_row(const float* p) { return _mm512_loadu_ps(p); }
  // Sixteen values of 16 bits as floats, and back; the pointer says of which kind they are.
  MOGE_INLINE Reg widen(const BFloat16*, __m256i halves) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
  }
  MOGE_INLINE Reg widen(const Float16*, __m256i halves) { return _mm512_cvtph_ps(halves); }
  MOGE_INLINE __m256i narrow(const BFloat16*, Reg a) {
    const __m512i bits = _mm512_castps_si512(a);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i half = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    half = _mm512_srli_epi32(half, 16);
    half = _mm512_mask_mov_epi32(half, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q),
                                 _mm512_set1_epi32(0x7fc0));
    return _mm512_cvtepi32_epi16(half);
  }
  MOGE_INLINE __m256i narrow(const Float16*, Reg a) {
    return _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT);
  }
  template <class Half>
  MOGE_INLINE Reg load_row(const Half* p) {
    return widen(p, _mm256_loadu_si256((const __m256i*)p));
  }
  // The four 4 x 4 blocks of 128-bit parts of r[0] .. r[3], each transposed.
  MOGE_INLINE void transpose_parts(Reg* r) {
    const Reg low = _mm512_unpacklo_ps(r[0], r[1]), high = _mm512_unpackhi_ps(r[0], r[1]);
    const Reg low2 = _mm512_unpacklo_ps(r[2], r[3]), high2 = _mm512_unpackhi_ps(r[2], r[3]);
    r[0] = _mm512_shuffle_ps(low, low2, 0x44);
    r[1] = _mm512_shuffle_ps(low, low2, 0xee);
    r[2] = _mm512_shuffle_ps(high, high2, 0x44);
    r[3] = _mm512_shuffle_ps(high, high2, 0xee);
  }
  // Columns j .. j + 15 of 16 rows. 128 bits at a time, so that half of the transposition is done
  // by the loads: part p of r[i] is of row 4 p + i, and what is left stays within the parts.
  MOGE_INLINE void load_block(const float* const* row, int64_t j, Reg* block) {
    for (int c = 0; c < 16; c += 4) {
      Reg* r = block + c;
      for (int i = 0; i < 4; ++i) {
        r[i] = _mm512_castps128_ps512(_mm_loadu_ps(row[i] + j + c));
        r[i] = _mm512_insertf32x4(r[i], _mm_loadu_ps(row[4 + i] + j + c), 1);
        r[i] = _mm512_insertf32x4(r[i], _mm_loadu_ps(row[8 + i] + j + c), 2);
        r[i] = _mm512_insertf32x4(r[i], _mm_loadu_ps(row[12 + i] + j + c), 3);
      }
      transpose_parts(r);
    }
  }
  MOGE_INLINE void store_row(float* p, Reg a) { _mm512_storeu_ps(p, a); }
  template <class Half>
  MOGE_INLINE void store_row(Half* p, Reg a) {
    _mm256_storeu_si256((__m256i*)p, narrow(p, a));
  }
  // The first `count` values of a row, at most a register's; the other lanes are 0.
  MOGE_INLINE Reg load_part(const float* p, int count) {
    return _mm512_maskz_loadu_ps(__mmask16((1u << count) - 1), p);
  }
  MOGE_INLINE void store_part(float* p, Reg a, int count) {
    _mm512_mask_storeu_ps(p, __mmask16((1u << count) - 1), a);
  }
  MOGE_INLINE void transpose(Reg* r) {
    for (int i = 0; i < 16; i += 4) transpose_parts(r + i);
    // r[4 g + j], 128-bit part q, holds column 4 q + j of rows 4 g .. 4 g + 3.
    for (int j = 0; j < 4; ++j) {
      const Reg low = _mm512_shuffle_f32x4(r[j], r[j + 4], 0x88);   // parts 0, 2
      const Reg high = _mm512_shuffle_f32x4(r[j], r[j + 4], 0xdd);  // parts 1, 3
      const Reg low2 = _mm512_shuffle_f32x4(r[j + 8], r[j + 12], 0x88);
      const Reg high2 = _mm512_shuffle_f32x4(r[j + 8], r[j + 12], 0xdd);
      r[j] = _mm512_shuffle_f32x4(low, low2, 0x88);
      r[j + 4] = _mm512_shuffle_f32x4(high, high2, 0x88);
      r[j + 8] = _mm512_shuffle_f32x4(low, low2, 0xdd);
      r[j + 12] = _mm512_shuffle_f32x4(high, high2, 0xdd);
    }
  }
};

struct Avx512Double {
  using Scalar = double;
  using Reg = __m512d;
  using Mask = __mmask8;
  struct Wide {
    __m512d sum;
  };
  static constexpr int kWidth = 8;
  static constexpr bool kTransposes = false;
  MOGE_INLINE Reg set(double a) { return _mm512_set1_pd(a); }
  MOGE_INLINE Reg load(const double* p) { return _mm512_load_pd(p); }
  MOGE_INLINE void store(double* p, Reg a) { _mm512_store_pd(p, a); }
  MOGE_INLINE Reg add(Reg a, Reg b) { return _mm512_add_pd(a, b); }
  MOGE_INLINE Reg sub(Reg a, Reg b) { return _mm512_sub_pd(a, b); }
  MOGE_INLINE Reg mul(Reg a, Reg b) { return _mm512_mul_pd(a, b); }
  MOGE_INLINE Reg div(Reg a, Reg b) { return _mm512_div_pd(a, b); }
  MOGE_INLINE Reg fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_pd(a, b, c); }
  MOGE_INLINE Reg sqrt(Reg a) { return _mm512_sqrt_pd(a); }
  MOGE_INLINE Reg max(Reg a, Reg b) { return _mm512_max_pd(a, b); }
  MOGE_INLINE Reg min(Reg a, Reg b) { return _mm512_min_pd(a, b); }
  MOGE_INLINE Mask greater(Reg a, Reg b) { return _mm512_cmp_pd_mask(a, b, _CMP_GT_OQ); }
  MOGE_INLINE Reg select(Mask m, Reg a, Reg b) { return _mm512_mask_mov_pd(b, m, a); }
  MOGE_INLINE unsigned nan_bits(Reg a) { return _mm512_cmp_pd_mask(a, a, _CMP_UNORD_Q); }
  MOGE_INLINE Reg pow2(Reg t) {
    return _mm512_castsi512_pd(_mm512_slli_epi64(_mm512_castpd_si512(t), 52));
  }
  MOGE_INLINE Wide wide_zero() { return {_mm512_setzero_pd()}; }
  MOGE_INLINE void add_wide(Wide& wide, Reg a) { wide.sum = add(wide.sum, a); }
  MOGE_INLINE void store_wide(double* p, const Wide& wide) { store(p, wide.sum); }
};
