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

  struct Int {
    using A = int16_t;
    using B = int16_t;
    using Acc = int32_t;
    using V = I;
    static constexpr int kDot = 2;
    TRIMTAB_INLINE V weights(const B* b) { return load<V>(b); }
    TRIMTAB_INLINE V broadcast(const A* a) {
      int32_t pair;
      std::memcpy(&pair, a, sizeof pair);
      return set(pair);
    }
    TRIMTAB_INLINE V dot(V acc, V a, V b) {
#if defined(__SSE2__)
      return acc + (V)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
      typedef int16_t Half __attribute__((vector_size(16)));
      const Half x = (Half)a, y = (Half)b;
      for (int i = 0; i < 4; ++i) acc[i] += x[2 * i] * y[2 * i] + x[2 * i + 1] * y[2 * i + 1];
      return acc;
#endif
    }
  };

  struct Float {
    using A = float;
    using B = float;
    using Acc = float;
    using V = F;
    static constexpr int kDot = 1;
    TRIMTAB_INLINE V weights(const B* b) { return load<V>(b); }
    TRIMTAB_INLINE V broadcast(const A* a) { return set(*a); }
    TRIMTAB_INLINE V dot(V acc, V a, V b) { return acc + a * b; }
  };
};

}  // namespace
}  // namespace trimtab
