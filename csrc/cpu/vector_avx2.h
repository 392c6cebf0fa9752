// Eight floats or four doubles in a register: the interface of One in vector_scalar.h, in AVX2
// with FMA. Included inside an anonymous namespace, under the target pragma of kernels_avx2.cpp.

struct Avx2Float {
  using Scalar = float;
  using Reg = __m256;
  using Mask = __m256;
  struct Wide {
    __m256d low, high;
  };
  static constexpr int kWidth = 8;
  static constexpr bool kTransposes = true;
  MOGE_INLINE Reg set(float a) { return _mm256_set1_ps(a); }
  MOGE_INLINE Reg load(const float* p) { return _mm256_load_ps(p); }
  MOGE_INLINE void store(float* p, Reg a) { _mm256_store_ps(p, a); }
  MOGE_INLINE Reg add(Reg a, Reg b) { return _mm256_add_ps(a, b); }
  MOGE_INLINE Reg sub(Reg a, Reg b) { return _mm256_sub_ps(a, b); }
  MOGE_INLINE Reg mul(Reg a, Reg b) { return _mm256_mul_ps(a, b); }
  MOGE_INLINE Reg div(Reg a, Reg b) { return _mm256_div_ps(a, b); }
  MOGE_INLINE Reg fma(Reg a, Reg b, Reg c) { return _mm256_fmadd_ps(a, b, c); }
  MOGE_INLINE Reg sqrt(Reg a) { return _mm256_sqrt_ps(a); }
  MOGE_INLINE Reg max(Reg a, Reg b) { return _mm256_max_ps(a, b); }
  MOGE_INLINE Reg min(Reg a, Reg b) { return _mm256_min_ps(a, b); }
  MOGE_INLINE Mask greater(Reg a, Reg b) { return _mm256_cmp_ps(a, b, _CMP_GT_OQ); }
  MOGE_INLINE Reg select(Mask m, Reg a, Reg b) { return _mm256_blendv_ps(b, a, m); }
  MOGE_INLINE unsigned nan_bits(Reg a) {
    return unsigned(_mm256_movemask_ps(_mm256_cmp_ps(a, a, _CMP_UNORD_Q)));
  }
  MOGE_INLINE Reg eighth_power(Reg t) {
    const __m256i bits = _mm256_castps_si256(t);
    const __m256i table = _mm256_loadu_si256((const __m256i*)kEighthPowers);
    const __m256i from = _mm256_permutevar8x32_epi32(table, bits);
    return _mm256_castsi256_ps(_mm256_add_epi32(from, _mm256_slli_epi32(bits, 20)));
  }
  MOGE_INLINE Wide wide_zero() { return {_mm256_setzero_pd(), _mm256_setzero_pd()}; }
  MOGE_INLINE void add_wide(Wide& wide, Reg a) {
    wide.low = _mm256_add_pd(wide.low, _mm256_cvtps_pd(_mm256_castps256_ps128(a)));
    wide.high = _mm256_add_pd(wide.high, _mm256_cvtps_pd(_mm256_extractf128_ps(a, 1)));
  }
  MOGE_INLINE void store_wide(double* p, const Wide& wide) {
    _mm256_store_pd(p, wide.low);
    _mm256_store_pd(p + 4, wide.high);
  }

  MOGE_INLINE Reg load_row(const float* p) { return _mm256_loadu_ps(p); }
  MOGE_INLINE Reg load_row(const BFloat16* p) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
  }
  MOGE_INLINE Reg load_row(const Float16* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
  }
  // The two 4 x 4 blocks of 128-bit parts of r[0] .. r[3], each transposed.
  MOGE_INLINE void transpose_parts(Reg* r) {
    const Reg low = _mm256_unpacklo_ps(r[0], r[1]), high = _mm256_unpackhi_ps(r[0], r[1]);
    const Reg low2 = _mm256_unpacklo_ps(r[2], r[3]), high2 = _mm256_unpackhi_ps(r[2], r[3]);
    r[0] = _mm256_shuffle_ps(low, low2, 0x44);
    r[1] = _mm256_shuffle_ps(low, low2, 0xee);
    r[2] = _mm256_shuffle_ps(high, high2, 0x44);
    r[3] = _mm256_shuffle_ps(high, high2, 0xee);
  }
  // Columns j .. j + 7 of 8 rows, as in vector_avx512.h.
  MOGE_INLINE void load_block(const float* const* row, int64_t j, Reg* block) {
    for (int c = 0; c < 8; c += 4) {
      Reg* r = block + c;
      for (int i = 0; i < 4; ++i) {
        r[i] = _mm256_castps128_ps256(_mm_loadu_ps(row[i] + j + c));
        r[i] = _mm256_insertf128_ps(r[i], _mm_loadu_ps(row[4 + i] + j + c), 1);
      }
      transpose_parts(r);
    }
  }
  MOGE_INLINE void store_row(float* p, Reg a) { _mm256_storeu_ps(p, a); }
  MOGE_INLINE void store_row(BFloat16* p, Reg a) {
    const __m256i bits = _mm256_castps_si256(a);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i half = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    half = _mm256_srli_epi32(half, 16);
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    half = _mm256_blendv_epi8(half, _mm256_set1_epi32(0x7fc0), nan);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(half, half), 0x08);
    _mm_storeu_si128((__m128i*)p, _mm256_castsi256_si128(packed));
  }
  MOGE_INLINE void store_row(Float16* p, Reg a) {
    _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
  }
  // The first `count` values of a row, at most a register's; the other lanes are 0.
  MOGE_INLINE __m256i first_lanes(int count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  MOGE_INLINE Reg load_part(const float* p, int count) {
    return _mm256_maskload_ps(p, first_lanes(count));
  }
  MOGE_INLINE void store_part(float* p, Reg a, int count) {
    _mm256_maskstore_ps(p, first_lanes(count), a);
  }
  MOGE_INLINE void transpose(Reg* r) {
    transpose_parts(r);
    transpose_parts(r + 4);
    for (int i = 0; i < 4; ++i) {
      const Reg low = _mm256_permute2f128_ps(r[i], r[i + 4], 0x20);
      r[i + 4] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x31);
      r[i] = low;
    }
  }
};

struct Avx2Double {
  using Scalar = double;
  using Reg = __m256d;
  using Mask = __m256d;
  struct Wide {
    __m256d sum;
  };
  static constexpr int kWidth = 4;
  static constexpr bool kTransposes = false;
  MOGE_INLINE Reg set(double a) { return _mm256_set1_pd(a); }
  MOGE_INLINE Reg load(const double* p) { return _mm256_load_pd(p); }
  MOGE_INLINE void store(double* p, Reg a) { _mm256_store_pd(p, a); }
  MOGE_INLINE Reg add(Reg a, Reg b) { return _mm256_add_pd(a, b); }
  MOGE_INLINE Reg sub(Reg a, Reg b) { return _mm256_sub_pd(a, b); }
  MOGE_INLINE Reg mul(Reg a, Reg b) { return _mm256_mul_pd(a, b); }
  MOGE_INLINE Reg div(Reg a, Reg b) { return _mm256_div_pd(a, b); }
  MOGE_INLINE Reg fma(Reg a, Reg b, Reg c) { return _mm256_fmadd_pd(a, b, c); }
  MOGE_INLINE Reg sqrt(Reg a) { return _mm256_sqrt_pd(a); }
  MOGE_INLINE Reg max(Reg a, Reg b) { return _mm256_max_pd(a, b); }
  MOGE_INLINE Reg min(Reg a, Reg b) { return _mm256_min_pd(a, b); }
  MOGE_INLINE Mask greater(Reg a, Reg b) { return _mm256_cmp_pd(a, b, _CMP_GT_OQ); }
  MOGE_INLINE Reg select(Mask m, Reg a, Reg b) { return _mm256_blendv_pd(b, a, m); }
  MOGE_INLINE unsigned nan_bits(Reg a) {
    return unsigned(_mm256_movemask_pd(_mm256_cmp_pd(a, a, _CMP_UNORD_Q)));
  }
  MOGE_INLINE Reg pow2(Reg t) {
    return _mm256_castsi256_pd(_mm256_slli_epi64(_mm256_castpd_si256(t), 52));
  }
  MOGE_INLINE Wide wide_zero() { return {_mm256_setzero_pd()}; }
  MOGE_INLINE void add_wide(Wide& wide, Reg a) { wide.sum = add(wide.sum, a); }
  MOGE_INLINE void store_wide(double* p, const Wide& wide) { store(p, wide.sum); }
};
