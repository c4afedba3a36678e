// AVX-VNNI: the AVX2 level with vpdpbusd over four uint8 x int8 products in place of pairs of int16.
#pragma once

#include "isa_avx2.h"

namespace trimtab {
namespace {

struct AvxVnni : Avx2 {
  static constexpr bool kNarrow = false, kWinograd = false, kShort = false;

  TRIMTAB_INLINE I dot_bytes(I acc, I a, I b) {
    return (I)_mm256_dpbusd_avx_epi32((__m256i)acc, (__m256i)a, (__m256i)b);
  }

  using Int = ByteProducts<Lanes8, AvxVnni>;
};

TRIMTAB_INLINE void store_clamped(AvxVnni, uint8_t* p, size_t step, const AvxVnni::F* x, const Clamp& c, int count) {
  store_clamped(Avx2{}, p, step, x, c, count);
}
TRIMTAB_INLINE void store_clamped_pairs(AvxVnni, uint8_t* p, size_t step, const AvxVnni::F* x, const Clamp& c, int count) {
  store_clamped_pairs(Avx2{}, p, step, x, c, count);
}

}  // namespace
}  // namespace trimtab
