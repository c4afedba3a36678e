// The primitives of the AVX-VNNI, AVX-512 VNNI and AMX levels in plain code, so that their logic is tested on any machine.
#pragma once

#include "isa_vector.h"

namespace trimtab {
namespace {

template <class Types, int Vectors>
struct EmulatedVnni : Vector<Types> {
  using F = typename Types::F;
  using I = typename Types::I;
  using U8 = typename Types::U8;
  static constexpr int kRows = 6, kVectors = Vectors;
  static constexpr bool kTiles = false, kNarrow = false, kWinograd = false, kShort = false, kLookup = true;
  static constexpr bool kBf16 = Types::kLanes == 16;

  TRIMTAB_INLINE I dot_bytes(I acc, I a, I b) {
    for (int j = 0; j < 4; ++j) acc += ((a >> (8 * j)) & 255) * ((b << (24 - 8 * j)) >> 24);
    return acc;
  }

  // The product of the upper halves first, as in the instruction.
  TRIMTAB_INLINE F dot_bf16(F acc, F a, F b) {
    const I mask = Vector<Types>::set(int32_t{-65536});
    acc += (F)((I)a & mask) * (F)((I)b & mask);
    return acc + (F)((I)a << 16) * (F)((I)b << 16);
  }

  using Float = FloatProducts<Types, EmulatedVnni>;
  using Bf16 = Bf16Products<Types, EmulatedVnni>;
  using Int = ByteProducts<Types, EmulatedVnni>;

  TRIMTAB_INLINE U8 lookup(U8 table, U8 i) {
    U8 found;
    for (size_t j = 0; j < sizeof(U8); ++j) found[j] = i[j] < 128 ? table[j / 16 * 16 + i[j] % 16] : 0;
    return found;
  }
};

using EmulatedAvxVnni = EmulatedVnni<Lanes8, 2>;

struct EmulatedAvx512 : EmulatedVnni<Lanes16, 4> {
  using Half = EmulatedVnni<Lanes8, 1>;
};

struct EmulatedTiles {
  struct State {
    char tile[8][16][64];
  };
  TRIMTAB_INLINE State& state() {
    static thread_local State s;
    return s;
  }
  TRIMTAB_INLINE void configure() {}
  TRIMTAB_INLINE void release() {}
  template <int T>
  TRIMTAB_INLINE void load(const void* p, size_t stride) {
    for (int r = 0; r < 16; ++r) std::memcpy(state().tile[T][r], static_cast<const char*>(p) + r * stride, 64);
  }
  template <int T>
  TRIMTAB_INLINE void store(void* p, size_t stride) {
    for (int r = 0; r < 16; ++r) std::memcpy(static_cast<char*>(p) + r * stride, state().tile[T][r], 64);
  }
  // Tile C += A (16 x 64 uint8) times B (16 x 16 groups of four int8).
  template <int C, int A, int B>
  TRIMTAB_INLINE void dot() {
    for (int m = 0; m < 16; ++m) {
      int32_t acc[16];
      std::memcpy(acc, state().tile[C][m], 64);
      for (int k = 0; k < 64; ++k) {
        const int32_t a = static_cast<uint8_t>(state().tile[A][m][k]);
        for (int n = 0; n < 16; ++n) acc[n] += a * static_cast<int8_t>(state().tile[B][k / 4][4 * n + k % 4]);
      }
      std::memcpy(state().tile[C][m], acc, 64);
    }
  }
  // Tile C += A (16 x 32 bf16) times B (16 x 16 pairs of bf16).
  template <int C, int A, int B>
  TRIMTAB_INLINE void dot_bf16() {
    using V = Lanes16::F;
    for (int m = 0; m < 16; ++m) {
      V acc;
      std::memcpy(&acc, state().tile[C][m], 64);
      for (int k = 0; k < 16; ++k) {
        int32_t pair;
        V right;
        std::memcpy(&pair, state().tile[A][m] + 4 * k, 4);
        std::memcpy(&right, state().tile[B][k], 64);
        acc = EmulatedAvx512::dot_bf16(acc, (V)EmulatedAvx512::set(pair), right);
      }
      std::memcpy(state().tile[C][m], &acc, 64);
    }
  }
};

struct EmulatedAmx : EmulatedAvx512 {
  static constexpr bool kTiles = true;
  using Tiles = EmulatedTiles;
};

}  // namespace
}  // namespace trimtab
