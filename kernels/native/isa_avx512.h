// AVX-512 with VNNI: 16 lanes, vpdpbusd over four uint8 x int8 products. Where the processor has it, vdpbf16ps over two of
// bf16 numbers.
#pragma once

#include <immintrin.h>

#include "isa_avx2.h"

namespace trimtab {
namespace {

// The lower halves of the registers. One vector at a time, so more pixels hide the latency of its products.
struct Avx512Half : Avx2 {
  static constexpr int kRows = 12, kVectors = 1;

  TRIMTAB_INLINE void store_part(float* p, F x, int count) {
    _mm256_mask_storeu_ps(p, static_cast<__mmask8>((1u << count) - 1), (__m256)x);
  }
  TRIMTAB_INLINE void store_u8(uint8_t* p, I x) {
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm256_cvtepi32_epi8((__m256i)x));
  }
  TRIMTAB_INLINE void store_u8(uint8_t* p, I x, I next) {
    store_u8(p, x);
    store_u8(p + kLanes, next);
  }
  TRIMTAB_INLINE void store_u8_part(uint8_t* p, I x, int count) {
    _mm256_mask_cvtepi32_storeu_epi8(p, static_cast<__mmask8>((1u << count) - 1), (__m256i)x);
  }
  TRIMTAB_INLINE I dot_bytes(I acc, I a, I b) {
    return (I)_mm256_dpbusd_epi32((__m256i)acc, (__m256i)a, (__m256i)b);
  }

  using Float = FloatProducts<Lanes8, Avx512Half>;
  using Int = ByteProducts<Lanes8, Avx512Half>;
};

struct Avx512 : Vector<Lanes16> {
  using Half = Avx512Half;
  static constexpr int kRows = 6, kVectors = 4;
  static constexpr bool kTiles = false, kNarrow = false, kWinograd = false, kShort = false, kLookup = true;
  static constexpr bool kBf16 = true;

  // Each gives its second operand where one is not a number: GCC makes a comparison and a blend of the plain forms.
  TRIMTAB_INLINE F clamp(F x, F low, F high) {
    return (F)_mm512_min_ps(_mm512_max_ps((__m512)x, (__m512)low), (__m512)high);
  }
  TRIMTAB_INLINE F activate(F x, F low, F high) {
    return (F)_mm512_min_ps((__m512)high, _mm512_max_ps((__m512)low, (__m512)x));
  }
  TRIMTAB_INLINE I round(F x) { return (I)_mm512_cvtps_epi32((__m512)x); }
  TRIMTAB_INLINE I load_u8(const uint8_t* p) {
    return (I)_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  TRIMTAB_INLINE void store_u8(uint8_t* p, I x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8((__m512i)x));
  }

  TRIMTAB_INLINE void store_u8(uint8_t* p, I x, I next) {
    store_u8(p, x);
    store_u8(p + kLanes, next);
  }

  TRIMTAB_INLINE void store_part(float* p, F x, int count) {
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1), (__m512)x);
  }
  TRIMTAB_INLINE void store_u8_part(uint8_t* p, I x, int count) {
    _mm512_mask_cvtepi32_storeu_epi8(p, static_cast<__mmask16>((1u << count) - 1), (__m512i)x);
  }

  TRIMTAB_INLINE F multiply_add(F acc, F a, F b) { return (F)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)acc); }
  TRIMTAB_INLINE I dot_bytes(I acc, I a, I b) {
    return (I)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)a, (__m512i)b);
  }

  TRIMTAB_INLINE F dot_bf16(F acc, F a, F b) {
    return (F)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b);
  }

  using Float = FloatProducts<Lanes16, Avx512>;
  using Bf16 = Bf16Products<Lanes16, Avx512>;
  using Int = ByteProducts<Lanes16, Avx512>;

  // table[i] for i < 16, in every 16 bytes.
  TRIMTAB_INLINE U8 lookup(U8 table, U8 i) { return (U8)_mm512_shuffle_epi8((__m512i)table, (__m512i)i); }
};

}  // namespace
}  // namespace trimtab
