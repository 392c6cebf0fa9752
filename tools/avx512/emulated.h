// AVX-512 by SIMDe (Debian's libsimde-dev), on a processor with AVX2: what the AVX-512 kernels
// include in place of the compiler's intrinsics. Below: those that SIMDe 0.7.4 lacks, lane by lane.
#pragma once

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/avx2.h>
#include <simde/x86/f16c.h>
#include <simde/x86/fma.h>

#include <cstdint>
#include <cstring>

namespace emulated {

template <class To, class From>
inline To bits(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

template <class T, int kLanes>
struct Lanes {
  T lane[kLanes];
};
using Floats = Lanes<float, 16>;
using HalfFloats = Lanes<float, 8>;
using Words = Lanes<uint32_t, 16>;
using HalfWords = Lanes<uint16_t, 16>;

inline simde__m512d cvtps_pd(simde__m256 a) {
  const auto from = bits<HalfFloats>(a);
  Lanes<double, 8> to;
  for (int i = 0; i < 8; ++i) to.lane[i] = from.lane[i];
  return bits<simde__m512d>(to);
}
inline simde__m256 extractf32x8_ps(simde__m512 a, int part) {
  return bits<simde__m256>(bits<Lanes<HalfFloats, 2>>(a).lane[part]);
}
inline simde__m512i cvtepu16_epi32(simde__m256i a) {
  const auto from = bits<HalfWords>(a);
  Words to;
  for (int i = 0; i < 16; ++i) to.lane[i] = from.lane[i];
  return bits<simde__m512i>(to);
}
inline simde__m256i cvtepi32_epi16(simde__m512i a) {
  const auto from = bits<Words>(a);
  HalfWords to;
  for (int i = 0; i < 16; ++i) to.lane[i] = uint16_t(from.lane[i]);
  return bits<simde__m256i>(to);
}
inline simde__m512 cvtph_ps(simde__m256i a) {
  const auto from = bits<Lanes<__m128i, 2>>(a);
  Lanes<__m256, 2> to = {{_mm256_cvtph_ps(from.lane[0]), _mm256_cvtph_ps(from.lane[1])}};
  return bits<simde__m512>(to);
}
inline simde__m256i cvtps_ph(simde__m512 a) {  // to nearest
  const auto from = bits<Lanes<__m256, 2>>(a);
  Lanes<__m128i, 2> to = {{_mm256_cvtps_ph(from.lane[0], 0), _mm256_cvtps_ph(from.lane[1], 0)}};
  return bits<simde__m256i>(to);
}
inline simde__m512 maskz_loadu_ps(unsigned mask, const void* p) {
  Floats to = {};
  for (int i = 0; i < 16; ++i) {
    if (mask >> i & 1) std::memcpy(&to.lane[i], static_cast<const float*>(p) + i, sizeof(float));
  }
  return bits<simde__m512>(to);
}
inline void mask_storeu_ps(void* p, unsigned mask, simde__m512 a) {
  const auto from = bits<Floats>(a);
  for (int i = 0; i < 16; ++i) {
    if (mask >> i & 1) std::memcpy(static_cast<float*>(p) + i, &from.lane[i], sizeof(float));
  }
}
inline simde__m512 shuffle_f32x4(simde__m512 a, simde__m512 b, int parts) {
  using Parts = Lanes<Lanes<float, 4>, 4>;
  const auto low = bits<Parts>(a), high = bits<Parts>(b);
  Parts to;
  for (int q = 0; q < 4; ++q) to.lane[q] = (q < 2 ? low : high).lane[parts >> 2 * q & 3];
  return bits<simde__m512>(to);
}
inline simde__m512 permute_ps(simde__m512 a, int lanes) {
  const auto from = bits<Floats>(a);
  Floats to;
  for (int i = 0; i < 16; ++i) to.lane[i] = from.lane[i / 4 * 4 + (lanes >> 2 * (i % 4) & 3)];
  return bits<simde__m512>(to);
}

}  // namespace emulated

#undef _mm512_cvtps_pd
#undef _mm512_extractf32x8_ps
#undef _mm512_cvtepu16_epi32
#undef _mm512_cvtepi32_epi16
#undef _mm512_cvtph_ps
#undef _mm512_cvtps_ph
#undef _mm512_maskz_loadu_ps
#undef _mm512_mask_storeu_ps
#undef _mm512_shuffle_f32x4
#undef _mm512_permute_ps
#define _mm512_cvtps_pd emulated::cvtps_pd
#define _mm512_extractf32x8_ps emulated::extractf32x8_ps
#define _mm512_cvtepu16_epi32 emulated::cvtepu16_epi32
#define _mm512_cvtepi32_epi16 emulated::cvtepi32_epi16
#define _mm512_cvtph_ps emulated::cvtph_ps
#define _mm512_cvtps_ph(a, rounding) emulated::cvtps_ph(a)
#define _mm512_maskz_loadu_ps emulated::maskz_loadu_ps
#define _mm512_mask_storeu_ps emulated::mask_storeu_ps
#define _mm512_shuffle_f32x4 emulated::shuffle_f32x4
#define _mm512_permute_ps emulated::permute_ps
