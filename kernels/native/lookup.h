// Layers whose weights have two distinct values: the sums of every subset of four inputs are tabulated once, and four
// weights (a nibble that says which inputs have the second value) look up their sum. Inputs of up to 4 bits are one
// digit, 8-bit inputs two.
#pragma once

#include "gemm.h"

namespace trimtab {
namespace {

constexpr int kLookupVectors = 2;  // vectors of bytes (one byte an output channel) in a panel
constexpr int kDigitPairs = 2;     // pairs of steps whose sums of 4-bit digits fit 8 bits: 2 * 2 * 4 * 15 <= 255

template <class S>
TRIMTAB_INLINE typename S::U8 repeat(const uint8_t* table) {
#if defined(__AVX512F__)
  if constexpr (sizeof(typename S::U8) == 64)
    return (typename S::U8)_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
#elif defined(__AVX2__)
  if constexpr (sizeof(typename S::U8) == 32)
    return (typename S::U8)_mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
#endif
  typename S::U8 all;
  for (size_t i = 0; i < sizeof all; i += 16) std::memcpy(reinterpret_cast<char*>(&all) + i, table, 16);
  return all;
}

// [input j of a quad][quad of 16 inputs, subset n]: which of the 16 inputs n takes at j, or 128 for none.
struct Subsets {
  alignas(64) uint8_t index[4][64];
  constexpr Subsets() : index() {
    for (int j = 0; j < 4; ++j) {
      for (int quad = 0; quad < 4; ++quad) {
        for (int n = 0; n < 16; ++n) index[j][16 * quad + n] = static_cast<uint8_t>(n >> j & 1 ? 4 * quad + j : 128);
      }
    }
  }
};
constexpr Subsets kSubsets;

// The subset sums of 16 inputs: [digit][quad][16].
template <class S, int Digits>
TRIMTAB_INLINE void tabulate_16(const uint8_t* from, uint8_t* to) {
  using U8 = typename S::U8;
  const U8 inputs = repeat<S>(from);
#pragma GCC unroll 2
  for (int digit = 0; digit < Digits; ++digit) {
    const U8 q = Digits == 1 ? inputs : (U8)((typename S::U16)inputs >> 4 * digit) & uint8_t{15};
#pragma GCC unroll 4
    for (size_t at = 0; at < 64; at += sizeof(U8), to += sizeof(U8)) {
      U8 sum = {};
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) sum += S::lookup(q, S::template load<U8>(&kSubsets.index[j][at]));
      S::store(to, sum);
    }
  }
}

TRIMTAB_INLINE int32_t sum_of(const uint8_t* from, int inputs) {
  typedef uint16_t Eight __attribute__((vector_size(16)));
  int32_t sum = 0;
  int i = 0;
  while (i + 16 <= inputs) {
    const int end = least(inputs, i + 16 * 128);  // 128 * 2 * 255 < 2^16
    Eight pairs = {};
    for (; i + 16 <= end; i += 16) {
      Eight x;
      std::memcpy(&x, from + i, sizeof x);
      pairs += (x & uint16_t{255}) + (x >> 8);
    }
    for (int lane = 0; lane < 8; ++lane) sum += pairs[lane];
  }
  for (; i < inputs; ++i) sum += from[i];
  return sum;
}

// Sums of bytes, kept as 16-bit words: `whole` adds them as they are, `odd` the upper byte of each word.
template <class S>
struct Words {
  using U16 = typename S::U16;
  U16 whole, odd;
  TRIMTAB_INLINE void add(Words& w, typename S::U8 bytes) {
    w.whole += (U16)bytes;
    w.odd += (U16)bytes >> 8;
  }
  // Byte 4 l + v is channel v * kLanes + l.
  TRIMTAB_INLINE void spill(Words& w, int factor, int32_t* acc) {
    using I = typename S::I;
    const U16 even = w.whole - (w.odd << 8);
    const I low = S::set(0xffff), words[4] = {(I)even & low, (I)w.odd & low, ((I)even >> 16) & low,
                                              ((I)w.odd >> 16) & low};
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      const I sum = S::template load<I>(acc + v * S::kLanes) + words[v] * S::set(factor);
      S::store(acc + v * S::kLanes, sum);
    }
    w.whole = w.odd = U16{};
  }
};

// A pair of steps: sums[p][v][d] += the table of pixel p's digit d, looked up by the nibbles of vector v.
template <class S, int Digits, int P, int V>
TRIMTAB_INLINE void lookup_pair(const uint8_t* (&tables)[P], const char*& nibbles,
                                typename S::U8 (&sums)[P][V][Digits]) {
  using U8 = typename S::U8;
  using U16 = typename S::U16;
  const U16 mask = U16{} + uint16_t{0x0f0f};
  U8 index[2][V];
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v, nibbles += sizeof(U8)) {
    if (v * sizeof(U8) % 64 == 0) __builtin_prefetch(nibbles + kAhead);
    const U16 both = S::template load<U16>(nibbles);
    index[0][v] = (U8)(both & mask);
    index[1][v] = (U8)((both >> 4) & mask);
  }
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 2
      for (int d = 0; d < Digits; ++d) {
        const U8 table = repeat<S>(tables[p] + half * 16 + d * 64);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
          sums[p][v][d] += S::lookup(table, index[half][v]);
          compute_here(sums[p][v][d]);
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) tables[p] += 2 * 16;
}

// P pixels times V vectors of output channels: adds the sums over inputs whose weight has the second value, times its
// difference to the first, to acc[P][V][4 kLanes]. Nibbles: [segment][pair of steps][vector][byte], the lower
// nibble for the pair's first step.
template <class S, int Digits, int P, int V>
static void lookup_block(const uint8_t* const* tables, const ptrdiff_t* segment, const Conv& g, const char* nibbles,
                         int32_t* acc) {
  using U8 = typename S::U8;
  const Codes& codes = g.codes;
  Words<S> words[P][V][Digits] = {};
  const auto spill = [&] {
    for (int p = 0; p < P; ++p) {
      for (int v = 0; v < V; ++v) {
        for (int d = 0; d < Digits; ++d)
          Words<S>::spill(words[p][v][d], codes.factor << 4 * d, acc + (p * V + v) * 4 * S::kLanes);
      }
    }
  };
  int unspilled = 0;
  for (int s = 0; s < g.segments; ++s) {
    const uint8_t* t[P];
    for (int p = 0; p < P; ++p) t[p] = tables[p] + segment[s];
    for (int pair = 0; pair < g.steps;) {
      const int count = Digits == 2 ? kDigitPairs : least(g.steps - pair, codes.depth);
      if (unspilled + count > codes.spill) {
        spill();
        unspilled = 0;
      }
      unspilled += count;
      pair += count;
      U8 sums[P][V][Digits] = {};
      if constexpr (Digits == 2) {
#pragma GCC unroll 2
        for (int i = 0; i < kDigitPairs; ++i) lookup_pair<S, Digits, P, V>(t, nibbles, sums);
        for (int p = 0; p < P; ++p) t[p] += 64;  // past the second digit's tables
      } else {
        for (int i = 0; i < count; ++i) lookup_pair<S, Digits, P, V>(t, nibbles, sums);
      }
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
#pragma GCC unroll 2
          for (int d = 0; d < Digits; ++d) Words<S>::add(words[p][v][d], sums[p][v][d]);
        }
      }
    }
  }
  spill();
}

template <class S>
using LookupBlock = void (*)(const uint8_t* const*, const ptrdiff_t*, const Conv&, const char*, int32_t*);

template <class S, int V>
static LookupBlock<S> lookup_kernel(int digits, int pixels) {
  if (digits == 2) return pixels == 1 ? &lookup_block<S, 2, 1, V> : &lookup_block<S, 2, 2, V>;
  return pixels == 1   ? &lookup_block<S, 1, 1, V>
         : pixels == 2 ? &lookup_block<S, 1, 2, V>
                       : &lookup_block<S, 1, 4, V>;
}

// The haloed input rows of a block as tables. `table` is the bytes of one position's tables of one group.
struct Tabulated {
  uint8_t* tables;  // [position][group][16 inputs][digit][quad][16]
  int32_t* sums;    // [position][group]
  size_t table;
};

// Where fewer than 16 inputs are left, what lies behind them fills the rest of the tables: no weight selects it.
template <class S, int Digits>
static void tabulate(const Conv& g, const uint8_t* from, int positions, const Tabulated& to) {
  const int inputs = g.ic / g.groups;
  uint8_t* tables = to.tables;
  for (int p = 0; p < positions * g.groups; ++p, from += inputs, tables += to.table) {
    for (int i = 0; i < inputs; i += 16) tabulate_16<S, Digits>(from + i, tables + i * 4 * Digits);
    if (g.codes.base != 0) to.sums[p] = sum_of(from, inputs);
  }
}

// The sum of all inputs of the pixel at `position`.
TRIMTAB_INLINE int32_t window_sum(const Conv& g, const int32_t* sums, int position, int group) {
  const int columns = g.groups == 1 ? g.segment_length / g.ic : 1;
  int32_t sum = 0;
  for (int s = 0; s < g.segments; ++s) {
    for (int x = 0; x < columns; ++x) sum += sums[(position + g.segment_offset[s] / g.ic + x) * g.groups + group];
  }
  return sum;
}

template <class S>
static void lookup_panel(const Conv& g, const Store& store, const Block<uint8_t>& block, const Tabulated& in,
                         const ptrdiff_t* segment, int group, int panel) {
  using I = typename S::I;
  constexpr int kVector = 4 * S::kLanes, kWidth = kLookupVectors * kVector, kPixels = 4;
  const int first = panel * kWidth, row = least(kWidth, g.group_width - first), per_group = g.oc / g.groups;
  const int channel = group * g.group_width + first;
  const char* nibbles = static_cast<const char*>(g.weights) + group * g.group_bytes +
                        static_cast<size_t>(first) * g.segments * g.steps;
  const int32_t* start = static_cast<const int32_t*>(g.start) + channel;
  alignas(64) int32_t acc[kPixels * kWidth];
  for (int m = 0; m < block.pixels;) {
    const int left = block.pixels - m, height = left >= 4 && g.codes.digits == 1 ? 4 : left >= 2 ? 2 : 1;
    const uint8_t* tables[kPixels];
    int32_t sums[kPixels];
    for (int p = 0; p < height; ++p) {
      const int position = block.offset[m + p] / g.ic;
      tables[p] = in.tables + (static_cast<size_t>(position) * g.groups + group) * in.table;
      sums[p] = g.codes.base == 0 ? 0 : window_sum(g, in.sums, position, group) * g.codes.base;
    }
    for (int p = 0; p < height; ++p) {
      for (int c = 0; c < row; c += S::kLanes)
        S::store(acc + p * row + c, S::template load<I>(start + c) + S::set(sums[p]));
    }
    const auto kernel = row == kWidth ? lookup_kernel<S, kLookupVectors>(g.codes.digits, height)
                                      : lookup_kernel<S, 1>(g.codes.digits, height);
    kernel(tables, segment, g, nibbles, acc);
    emit<S>(store, acc, row, height, least(row, per_group - first),
            (block.first_pixel + m) * g.oc + group * per_group + first, g.oc, channel);
    m += height;
  }
}

// Scratch: [tables][sums][segments][what for_blocks needs].
template <class S>
static void conv_lookup(const Conv& g, const Store& store, const Operand& in, const Task& task) {
  constexpr int kWidth = kLookupVectors * 4 * S::kLanes;
  const bool by_block = shares_blocks(g, task);
  const int panels = (g.group_width + kWidth - 1) / kWidth;
  const Span mine = by_block ? Span{0, g.groups * panels} : share(g.groups * panels, task.thread, task.threads);
  const size_t table = static_cast<size_t>(g.codes.quads) * g.codes.digits * 16;
  char* const scratch = task.scratch;
  const Tabulated tabulated{reinterpret_cast<uint8_t*>(scratch),
                            reinterpret_cast<int32_t*>(scratch + g.codes.positions * g.groups * table + kSlack), table};
  ptrdiff_t* const segment = reinterpret_cast<ptrdiff_t*>(
      scratch + g.codes.scratch_bytes - (g.segments * sizeof(ptrdiff_t) + 63) / 64 * 64);
  for (int s = 0; s < g.segments; ++s)
    segment[s] = static_cast<ptrdiff_t>(g.segment_offset[s] / g.ic * g.groups * table);
  Task inner = task;
  inner.scratch += g.codes.scratch_bytes;
  const int ow = g.pointwise ? 1 : g.ow, width = g.pointwise ? 1 : g.direct ? g.iw : g.scratch_w;
  for_blocks<uint8_t, uint8_t>(g, in, inner, by_block, static_cast<uint8_t>(in.zero), [&](const Block<uint8_t>& block) {
    const int rows = (block.pixels / ow - 1) * g.stride_h + g.reach_h;
    if (g.codes.digits == 1)
      tabulate<S, 1>(g, block.base, rows * width, tabulated);
    else
      tabulate<S, 2>(g, block.base, rows * width, tabulated);
    for (int p = mine.first; p < mine.last; ++p)
      lookup_panel<S>(g, store, block, tabulated, segment, p / panels, p % panels);
  });
}

}  // namespace
}  // namespace trimtab
