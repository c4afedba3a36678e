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

}  // namespace
}  // namespace trimtab
