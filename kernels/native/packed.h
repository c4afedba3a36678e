// Layers whose weights are what takes time to read: weights of at most 16 (or 4) distinct values are stored as 4-bit
// (or 2-bit) codes and looked up in a table as they are read.
#pragma once

#include "gemm.h"

namespace trimtab {
namespace {

constexpr int kCodeInputs = 16;  // inputs of a chunk: four steps of four
constexpr int kCodeVectors = 2;  // vectors of output channels in a panel

// Products of four inputs with four weights, added up in 16 bits where the level is fastest so.
template <class S, bool Short = S::kShort>
struct Quads {
  using Products = typename S::Int;
  TRIMTAB_INLINE typename S::I widen(typename S::I part) { return part; }
};
template <class S>
struct Quads<S, true> {
  using Products = typename S::IntShort;
  TRIMTAB_INLINE typename S::I widen(typename S::I part) { return Products::widen(typename S::I{}, part); }
};

// P rows of inputs times one panel of output channels; totals[P][kCodeVectors * kLanes].
// Codes: [chunk][step][vector], bytes holding the codes of successive vectors from the lowest bits up.
template <class S, int Bits, int Terms, int P>
static void packed_rows(const uint8_t* a, size_t stride, const Codes& codes, int chunks, const char* packed,
                        int32_t* totals) {
  using I = typename S::I;
  using U8 = typename S::U8;
  using U16 = typename S::U16;
  using Products = typename Quads<S>::Products;
  constexpr int kPerNibble = 4 / Bits, kLoads = 8 * Bits / 8;
  U8 table[Terms][kPerNibble];
  for (int t = 0; t < Terms; ++t) {
    for (int n = 0; n < kPerNibble; ++n) {
      for (size_t i = 0; i < sizeof(U8); i += 16)
        std::memcpy(reinterpret_cast<char*>(&table[t][n]) + i, codes.table[t][n], 16);
    }
  }
  const U16 nibble = U16{} + uint16_t{0x0f0f};
  I total[P][kCodeVectors] = {};
  for (int chunk = 0; chunk < chunks;) {
    I part[P][kCodeVectors][Terms] = {};
    const int end = least(chunks, chunk + codes.depth);
    for (; chunk < end; ++chunk, a += kCodeInputs) {
#pragma GCC unroll 8
      for (int load = 0; load < kLoads; ++load, packed += sizeof(U8)) {
        if (load * sizeof(U8) % 64 == 0) __builtin_prefetch(packed + kAhead);
        const U16 both = S::template load<U16>(packed);
        const U16 halves[2] = {both & nibble, (both >> 4) & nibble};
#pragma GCC unroll 8
        for (int i = 0; i < 2 * kPerNibble; ++i) {
          const int at = load * 2 * kPerNibble + i, step = at / kCodeVectors, v = at % kCodeVectors;
#pragma GCC unroll 4
          for (int t = 0; t < Terms; ++t) {
            const U8 w = S::lookup(table[t][i % kPerNibble], (U8)halves[i / kPerNibble]);
#pragma GCC unroll 4
            for (int p = 0; p < P; ++p) {
              const I inputs = Products::broadcast(a + p * stride + step * 4);
              part[p][v][t] = Products::dot(part[p][v][t], inputs, (I)w);
              compute_here(part[p][v][t]);
            }
          }
        }
      }
    }
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
      for (int v = 0; v < kCodeVectors; ++v) {
        if (Terms == 2) total[p][v] += Quads<S>::widen(part[p][v][0]) << 4;
        total[p][v] += Quads<S>::widen(part[p][v][Terms - 1]);
      }
    }
  }
  std::memcpy(totals, total, sizeof total);
}

using PackedRows = void (*)(const uint8_t*, size_t, const Codes&, int, const char*, int32_t*);

template <class S, int Bits>
static PackedRows packed_kernel(int terms, int pixels) {
  if constexpr (S::kShort) {
    if (terms == 2) return pixels == 1 ? &packed_rows<S, Bits, 2, 1> : &packed_rows<S, Bits, 2, 2>;
  }
  return pixels == 1   ? &packed_rows<S, Bits, 1, 1>
         : pixels == 2 ? &packed_rows<S, Bits, 1, 2>
                       : &packed_rows<S, Bits, 1, 4>;
}

// All inputs of every pixel of a block, next to each other, with zeros up to whole chunks.
TRIMTAB_INLINE void gather_inputs(const Conv& g, const Block<uint8_t>& block, int group, uint8_t* to) {
  const size_t used = static_cast<size_t>(g.segments) * g.segment_length, padded = g.codes.inputs;
  for (int m = 0; m < block.pixels; ++m, to += padded) {
    const uint8_t* from = block.base + block.offset[m] + group * (g.ic / g.groups);
    for (int s = 0; s < g.segments; ++s)
      std::memcpy(to + s * g.segment_length, from + g.segment_offset[s], g.segment_length);
    std::memset(to + used, 0, padded - used);
  }
}

template <class S>
static void packed_panel(const Conv& g, const Store& store, const uint8_t* rows, int pixels, size_t first_pixel,
                         int group, int panel) {
  using I = typename S::I;
  constexpr int kWidth = kCodeVectors * S::kLanes;
  const Codes& codes = g.codes;
  const int channel = group * g.group_width + panel * kWidth, per_group = g.oc / g.groups;
  const size_t bytes = static_cast<size_t>(codes.inputs) * kWidth * codes.bits / 8;
  const char* packed = static_cast<const char*>(g.weights) + group * g.group_bytes + panel * bytes;
  const int32_t* start = static_cast<const int32_t*>(g.start) + channel;
  alignas(64) int32_t acc[4 * kWidth];
  for (int m = 0; m < pixels;) {
    const int left = pixels - m, height = left >= 4 && codes.terms == 1 ? 4 : left >= 2 ? 2 : 1;
    const auto kernel = codes.bits == 4 ? packed_kernel<S, 4>(codes.terms, height)
                                        : packed_kernel<S, 2>(codes.terms, height);
    kernel(rows + static_cast<size_t>(m) * codes.inputs, codes.inputs, codes, codes.inputs / kCodeInputs, packed, acc);
    for (int i = 0; i < height * kWidth; i += S::kLanes) {
      const I total = S::template load<I>(acc + i) * S::set(codes.factor);
      S::store(acc + i, total + S::template load<I>(start + i % kWidth));
    }
    emit<S>(store, acc, kWidth, height, least(kWidth, per_group - panel * kWidth),
            (first_pixel + m) * g.oc + group * per_group + panel * kWidth, g.oc, channel);
    m += height;
  }
}

// Scratch: [gathered inputs][what for_blocks needs].
template <class S>
static void conv_packed(const Conv& g, const Store& store, const Operand& in, const Task& task) {
  const bool by_block = shares_blocks(g, task);
  const int panels = g.group_width / (kCodeVectors * S::kLanes);
  const Span mine = by_block ? Span{0, g.groups * panels} : share(g.groups * panels, task.thread, task.threads);
  uint8_t* const rows = reinterpret_cast<uint8_t*>(task.scratch);
  Task inner = task;
  inner.scratch += g.codes.scratch_bytes;
  for_blocks<uint8_t, uint8_t>(g, in, inner, by_block, static_cast<uint8_t>(in.zero), [&](const Block<uint8_t>& block) {
    int gathered = -1;
    for (int p = mine.first; p < mine.last; ++p) {
      const int group = p / panels;
      if (group != gathered) gather_inputs(g, block, gathered = group, rows);
      packed_panel<S>(g, store, rows, block.pixels, block.first_pixel, group, p % panels);
    }
  });
}

}  // namespace
}  // namespace trimtab
