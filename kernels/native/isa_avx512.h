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

// Four vectors become one of bytes, which masks cut.
struct PackedBySixteen {};

struct Avx512 : Vector<Lanes16> {
  using Stores = PackedBySixteen;
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

// As at the AVX2 level.
TRIMTAB_INLINE __m512i clamped_bytes(const Avx512::F* x, const Clamp& c) {
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  if (c.saturates) {
    const __m512i first = _mm512_packs_epi32(_mm512_cvtps_epi32((__m512)x[0]), _mm512_cvtps_epi32((__m512)x[1]));
    const __m512i second = _mm512_packs_epi32(_mm512_cvtps_epi32((__m512)x[2]), _mm512_cvtps_epi32((__m512)x[3]));
    return _mm512_permutexvar_epi32(order, _mm512_packus_epi16(first, second));
  }
  const __m512i zero = _mm512_set1_epi16(static_cast<int16_t>(c.zero));
  const __m512i low = _mm512_set1_epi16(static_cast<int16_t>(static_cast<int32_t>(c.low) + c.zero));
  const __m512 high = _mm512_set1_ps(c.high);
  const auto pair = [&](Avx512::F a, Avx512::F b) {
    const __m512i words = _mm512_packs_epi32(_mm512_cvtps_epi32(_mm512_min_ps(high, (__m512)a)),
                                             _mm512_cvtps_epi32(_mm512_min_ps(high, (__m512)b)));
    return _mm512_max_epi16(_mm512_adds_epi16(words, zero), low);
  };
  return _mm512_permutexvar_epi32(order, _mm512_packus_epi16(pair(x[0], x[1]), pair(x[2], x[3])));
}

template <class S>
TRIMTAB_INLINE void store_clamped(PackedBySixteen, uint8_t* p, size_t step, const Avx512::F* x, const Clamp& c, int count) {
  const __m512i bytes = clamped_bytes(x, c);
  const __m128i rows[4] = {_mm512_castsi512_si128(bytes), _mm512_extracti32x4_epi32(bytes, 1),
                           _mm512_extracti32x4_epi32(bytes, 2), _mm512_extracti32x4_epi32(bytes, 3)};
  const auto mask = static_cast<__mmask16>((1u << count) - 1);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    if (count == Avx512::kLanes)
      _mm_storeu_si128(reinterpret_cast<__m128i*>(p + i * step), rows[i]);
    else
      _mm_mask_storeu_epi8(p + i * step, mask, rows[i]);
  }
}

template <class S>
TRIMTAB_INLINE void store_clamped_pairs(PackedBySixteen, uint8_t* p, size_t step, const Avx512::F* x, const Clamp& c, int count) {
  const __m512i bytes = clamped_bytes(x, c);
  const __m256i rows[2] = {_mm512_castsi512_si256(bytes), _mm512_extracti64x4_epi64(bytes, 1)};
  const auto mask = static_cast<__mmask32>((uint64_t{1} << (Avx512::kLanes + count)) - 1);
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    if (count == Avx512::kLanes)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + i * step), rows[i]);
    else
      _mm256_mask_storeu_epi8(p + i * step, mask, rows[i]);
  }
}

}  // namespace
}  // namespace trimtab
