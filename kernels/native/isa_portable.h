// The level that every machine has: 4 lanes, 16-bit pairs.
#pragma once

#include "isa_vector.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace trimtab {
namespace {

struct Portable : Vector<Lanes4> {
  static constexpr int kRows = 4, kVectors = 2;
  static constexpr bool kTiles = false, kNarrow = false, kWinograd = true, kShort = false, kLookup = false;
  static constexpr bool kBf16 = false;

  TRIMTAB_INLINE I dot_pairs(I acc, I a, I b) {
#if defined(__SSE2__)
    return acc + (I)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
    const H x = (H)a, y = (H)b;
    for (int i = 0; i < 4; ++i) acc[i] += x[2 * i] * y[2 * i] + x[2 * i + 1] * y[2 * i + 1];
    return acc;
#endif
  }

  using Float = FloatProducts<Lanes4, Portable>;
  using Int = PairProducts<Lanes4, Portable>;
};

}  // namespace
}  // namespace trimtab
