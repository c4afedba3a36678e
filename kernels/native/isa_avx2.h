// AVX2 and FMA: 8 lanes; int16 pairs and vpmaddwd, because vpmaddubsw saturates.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "isa_vector.h"

namespace trimtab {
namespace {

// Four vectors become one of bytes.
struct PackedByEight {};

struct Avx2 : Vector<Lanes8> {
  using Stores = PackedByEight;
  static constexpr int kRows = 6, kVectors = 2;
  static constexpr bool kTiles = false, kNarrow = true, kWinograd = true, kShort = true, kLookup = true;
  static constexpr bool kBf16 = false;

  // Each gives its second operand where one is not a number: GCC makes a comparison and a blend of the plain forms.
  TRIMTAB_INLINE F clamp(F x, F low, F high) {
    return (F)_mm256_min_ps(_mm256_max_ps((__m256)x, (__m256)low), (__m256)high);
  }
  TRIMTAB_INLINE F activate(F x, F low, F high) {
    return (F)_mm256_min_ps((__m256)high, _mm256_max_ps((__m256)low, (__m256)x));
  }
  TRIMTAB_INLINE I round(F x) { return (I)_mm256_cvtps_epi32((__m256)x); }
  TRIMTAB_INLINE I load_u8(const uint8_t* p) {
    return (I)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  }
  TRIMTAB_INLINE void store_u8(uint8_t* p, I x) {
    const __m128i low = _mm256_castsi256_si128((__m256i)x), high = _mm256_extracti128_si256((__m256i)x, 1);
    const __m128i words = _mm_packs_epi32(low, high);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(words, words));
  }

  TRIMTAB_INLINE void store_u8(uint8_t* p, I x, I next) {
    // Packing works within halves: words 0-3 of x, 0-3 of next, 4-7 of x, 4-7 of next.
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32((__m256i)x, (__m256i)next), 0xD8);
    const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
  }

  TRIMTAB_INLINE void store_part(float* p, F x, int count) {
    // By halves: AMD's cores take dozens of steps for a masked store.
    __m128 part = _mm256_castps256_ps128((__m256)x);
    if (count & 4) {
      _mm_storeu_ps(p, part);
      p += 4, part = _mm256_extractf128_ps((__m256)x, 1);
    }
    if (count & 2) {
      std::memcpy(p, &part, 8);
      p += 2, part = _mm_movehl_ps(part, part);
    }
    if (count & 1) std::memcpy(p, &part, 4);
  }
  TRIMTAB_INLINE void store_bytes(uint8_t* p, uint64_t bytes, int count) {
    if (count & 4) {
      std::memcpy(p, &bytes, 4);
      p += 4, bytes >>= 32;
    }
    if (count & 2) {
      std::memcpy(p, &bytes, 2);
      p += 2, bytes >>= 16;
    }
    if (count & 1) std::memcpy(p, &bytes, 1);
  }
  TRIMTAB_INLINE void store_u8_part(uint8_t* p, I x, int count) {
    uint8_t all[8];
    store_u8(all, x);
    uint64_t bytes;
    std::memcpy(&bytes, all, sizeof bytes);
    store_bytes(p, bytes, count);
  }

  TRIMTAB_INLINE F multiply_add(F acc, F a, F b) { return (F)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)acc); }
  TRIMTAB_INLINE I dot_pairs(I acc, I a, I b) { return acc + (I)_mm256_madd_epi16((__m256i)a, (__m256i)b); }

  using Float = FloatProducts<Lanes8, Avx2>;
  using Int = PairProducts<Lanes8, Avx2>;

  // Weights stay int8 in memory and are widened as they are read: half the bytes, for layers that overflow the cache.
  struct IntNarrow : Int {
    using B = int8_t;
    TRIMTAB_INLINE V weights(const B* b) {
      return (V)_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(b)));
    }
  };

  // Sums of pairs in 16 bits, for operands too small to saturate them; `widen` adds four lanes' worth to 32 bits.
  struct IntShort : ByteProducts<Lanes8, Avx2> {
    TRIMTAB_INLINE V dot(V acc, V a, V b) {
      return (V)_mm256_add_epi16((__m256i)acc, _mm256_maddubs_epi16((__m256i)a, (__m256i)b));
    }
    TRIMTAB_INLINE V widen(V sum, V acc) {
      return sum + (V)_mm256_madd_epi16((__m256i)acc, _mm256_set1_epi16(1));
    }
  };

  // From element i of DOT rows: each of 16 lanes takes one element of every row, widened where they are two.
  static constexpr int kInterleaved = 16;
  template <int DOT>
  TRIMTAB_INLINE void interleave(const uint8_t* const* row, size_t i, int32_t* to) {
    const auto bytes = [&](int t) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(row[t] + i)); };
    const __m128i low = _mm_unpacklo_epi8(bytes(0), bytes(1)), high = _mm_unpackhi_epi8(bytes(0), bytes(1));
    if constexpr (DOT == 2) {
      store(to, _mm256_cvtepu8_epi16(low));
      store(to + 8, _mm256_cvtepu8_epi16(high));
    } else {
      const __m128i next_low = _mm_unpacklo_epi8(bytes(2), bytes(3)), next_high = _mm_unpackhi_epi8(bytes(2), bytes(3));
      store(to, _mm_unpacklo_epi16(low, next_low));
      store(to + 4, _mm_unpackhi_epi16(low, next_low));
      store(to + 8, _mm_unpacklo_epi16(high, next_high));
      store(to + 12, _mm_unpackhi_epi16(high, next_high));
    }
  }

  // table[i] for i < 16, in every 16 bytes.
  TRIMTAB_INLINE U8 lookup(U8 table, U8 i) { return (U8)_mm256_shuffle_epi8((__m256i)table, (__m256i)i); }
};

// The upper eight bytes. _mm_storeh_pd would promise an address that a double may have.
TRIMTAB_INLINE void store_high(uint8_t* p, __m128i bytes) {
  const long long high = _mm_extract_epi64(bytes, 1);
  std::memcpy(p, &high, sizeof(high));
}

// Four vectors as bytes, one after the other. What is too small for an int32, or not a number, becomes the least one, so the
// lower bound can wait until two vectors have become one.
TRIMTAB_INLINE __m256i clamped_bytes(const Avx2::F* x, const Clamp& c) {
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  if (c.saturates) {
    const __m256i first = _mm256_packs_epi32(_mm256_cvtps_epi32((__m256)x[0]), _mm256_cvtps_epi32((__m256)x[1]));
    const __m256i second = _mm256_packs_epi32(_mm256_cvtps_epi32((__m256)x[2]), _mm256_cvtps_epi32((__m256)x[3]));
    return _mm256_permutevar8x32_epi32(_mm256_packus_epi16(first, second), order);
  }
  const __m256i zero = _mm256_set1_epi16(static_cast<int16_t>(c.zero));
  const __m256i low = _mm256_set1_epi16(static_cast<int16_t>(static_cast<int32_t>(c.low) + c.zero));
  const __m256 high = _mm256_set1_ps(c.high);
  const auto pair = [&](Avx2::F a, Avx2::F b) {
    const __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(_mm256_min_ps(high, (__m256)a)),
                                             _mm256_cvtps_epi32(_mm256_min_ps(high, (__m256)b)));
    return _mm256_max_epi16(_mm256_adds_epi16(words, zero), low);
  };
  const __m256i mixed = _mm256_packus_epi16(pair(x[0], x[1]), pair(x[2], x[3]));
  return _mm256_permutevar8x32_epi32(mixed, order);
}

template <class S>
TRIMTAB_INLINE void store_clamped(PackedByEight, uint8_t* p, size_t step, const Avx2::F* x, const Clamp& c, int count) {
  const __m256i bytes = clamped_bytes(x, c);
  const __m128i first = _mm256_castsi256_si128(bytes), second = _mm256_extracti128_si256(bytes, 1);
  if (count == Avx2::kLanes) {
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), first);
    store_high(p + step, first);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p + 2 * step), second);
    store_high(p + 3 * step, second);
    return;
  }
  Avx2::store_bytes(p, static_cast<uint64_t>(_mm_cvtsi128_si64(first)), count);
  Avx2::store_bytes(p + step, static_cast<uint64_t>(_mm_extract_epi64(first, 1)), count);
  Avx2::store_bytes(p + 2 * step, static_cast<uint64_t>(_mm_cvtsi128_si64(second)), count);
  Avx2::store_bytes(p + 3 * step, static_cast<uint64_t>(_mm_extract_epi64(second, 1)), count);
}

// Where the second vector is not whole, the last eight bytes overlap the first eight.
template <class S>
TRIMTAB_INLINE void store_clamped_pairs(PackedByEight, uint8_t* p, size_t step, const Avx2::F* x, const Clamp& c, int count) {
  alignas(16) static constexpr uint8_t kFrom[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const __m256i bytes = clamped_bytes(x, c);
  const __m128i rows[2] = {_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1)};
  if (count == Avx2::kLanes) {
    for (int i = 0; i < 2; ++i) _mm_storeu_si128(reinterpret_cast<__m128i*>(p + i * step), rows[i]);
    return;
  }
  const __m128i last = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(kFrom + count));
  for (int i = 0; i < 2; ++i, p += step) {
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), rows[i]);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p + count), _mm_shuffle_epi8(rows[i], last));
  }
}

}  // namespace
}  // namespace trimtab
