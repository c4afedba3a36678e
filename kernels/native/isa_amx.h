// AMX tiles of int8 and of bf16 on top of the AVX-512 level.
#pragma once

#include "isa_avx512.h"

namespace trimtab {
namespace {

struct AmxTiles {
  // Inline assembly with a memory operand: GCC 12's _tile_loadconfig lets the stores that fill it be dropped.
  TRIMTAB_INLINE void configure() {
    struct alignas(64) Config {
      uint8_t palette, start_row, reserved[14];
      uint16_t bytes[16];
      uint8_t rows[16];
    } config = {};
    config.palette = 1;
    for (int t = 0; t < 8; ++t) {
      config.bytes[t] = 64;
      config.rows[t] = 16;
    }
    asm volatile("ldtilecfg %0" ::"m"(config));
  }
  TRIMTAB_INLINE void release() { asm volatile("tilerelease" ::: "memory"); }
  template <int T>
  TRIMTAB_INLINE void load(const void* p, size_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride), "i"(T) : "memory");
  }
  template <int T>
  TRIMTAB_INLINE void store(void* p, size_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(stride), "i"(T) : "memory");
  }
  template <int C, int A, int B>
  TRIMTAB_INLINE void dot() {
    asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }
  template <int C, int A, int B>
  TRIMTAB_INLINE void dot_bf16() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }
};

struct Amx : Avx512 {
  static constexpr bool kTiles = true;
  using Tiles = AmxTiles;
};

}  // namespace
}  // namespace trimtab
