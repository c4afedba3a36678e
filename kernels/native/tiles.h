// Convolutions on 16 x 64-byte tiles: up to 32 positions times 32 channels in four accumulator tiles. A row of a tile holds
// 64 integers or 32 bf16 numbers: in either case a step is four bytes of each operand.
#pragma once

#include <algorithm>

#include "gemm.h"
#include "peak.h"

namespace trimtab {
namespace {

constexpr int kTileBytes = 64;
constexpr size_t kNearWeights = 24 * 1024;  // bytes: so few stay in the first cache while all pixels pass

// How the pixels of a block follow each other: any sixteen positions, from a multiple of sixteen on, are evenly spaced.
// Rows are `pitch` positions apart, of which the first `width` are pixels. The others lie in the border between rows, or
// beyond: they are computed and not stored.
struct Positions {
  int pitch, width, count;
  ptrdiff_t row, column;  // elements between the inputs of rows, and of positions of a row
};

// Pixels side by side, `column` elements apart.
TRIMTAB_INLINE Positions side_by_side(int pixels, ptrdiff_t column) { return {pixels, pixels, pixels, 0, column}; }

TRIMTAB_INLINE Positions positions_of(const Conv& g, int pixels) {
  if (g.pointwise) return side_by_side(pixels, g.ic);
  const ptrdiff_t column = static_cast<ptrdiff_t>(g.stride_w) * g.ic;
  const ptrdiff_t row = static_cast<ptrdiff_t>(g.stride_h) * g.scratch_w * g.ic;
  const int rows = pixels / g.ow, apart = rounded_up(g.ow, kTileRows);
  // Through the border, where fewer positions are wasted there than at the ends of rows.
  const bool through = row % column == 0 && (rows - 1) * (row / column) + g.ow < static_cast<ptrdiff_t>(rows) * apart;
  const int pitch = through ? static_cast<int>(row / column) : apart;
  return {pitch, g.ow, (rows - 1) * pitch + g.ow, row, column};
}

// Sixteen positions' inputs as the tile loads want them: rows `stride` bytes apart.
template <class A>
struct TileRows {
  const A* base;
  size_t stride;
  const int32_t* segment_offset;
};

// A place among the positions of a block.
struct Place {
  int y, x;

  void advance(const Positions& p, int count) {
    for (x += count; x >= p.pitch; x -= p.pitch) ++y;
  }
  ptrdiff_t input(const Positions& p) const { return y * p.row + x * p.column; }
};

template <class T, class P, int C, int A, int B>
TRIMTAB_INLINE void multiply_tiles() {
  if constexpr (sizeof(typename P::A) == 1)
    T::template dot<C, A, B>();
  else
    T::template dot_bf16<C, A, B>();
}

// Tiles 0-3 accumulate [position half][channel half], 4-5 hold positions, 6-7 weights. M2, N2: both halves are wanted.
template <class T, class P, bool M2, bool N2>
static void tile_block(const TileRows<typename P::A> (&rows)[2], const Conv& g, const char* b,
                       const typename P::Acc* start, typename P::Acc* acc) {
  constexpr size_t kStride = N2 ? 2 * kTileBytes : kTileBytes;
  // Every row starts from the same values.
  T::template load<0>(start, 0);
  if (N2) T::template load<1>(start + 16, 0);
  if (M2) T::template load<2>(start, 0);
  if (M2 && N2) T::template load<3>(start + 16, 0);
  for (int s = 0; s < g.segments; ++s) {
    const char* first = reinterpret_cast<const char*>(rows[0].base + rows[0].segment_offset[s]);
    const char* second = M2 ? reinterpret_cast<const char*>(rows[1].base + rows[1].segment_offset[s]) : nullptr;
    for (int k = 0; k < g.steps; k += kTileSteps, b += kTileRows * kStride) {
      T::template load<4>(first, rows[0].stride);
      T::template load<6>(b, kStride);
      multiply_tiles<T, P, 0, 4, 6>();
      first += kTileBytes;
      if (M2) {
        T::template load<5>(second, rows[1].stride);
        multiply_tiles<T, P, 2, 5, 6>();
        second += kTileBytes;
      }
      if (N2) T::template load<7>(b + kTileBytes, kStride);
      if (N2) multiply_tiles<T, P, 1, 4, 7>();
      if (M2 && N2) multiply_tiles<T, P, 3, 5, 7>();
    }
  }
  T::template store<0>(acc, kStride);
  if (N2) T::template store<1>(acc + 16, kStride);
  acc += kTileRows * kStride / sizeof *acc;
  if (M2) T::template store<2>(acc, kStride);
  if (M2 && N2) T::template store<3>(acc + 16, kStride);
}

// Copies what the filter covers at `count` pixels, piece by piece, into rows of `padded` elements, and repeats the last pixel up
// to whole tiles. Where integers end does not matter, since they meet zero weights; bf16 numbers have to be finite there.
template <class A>
static void gather_rows(const Conv& g, const A* base, const int32_t* offset, int count, size_t padded, A* to) {
  const int pieces = greatest(g.gathered, 1);
  const size_t length = g.segment_length, bytes = length * sizeof(A);
  const auto gather = [&](const auto& copy) {
    for (int i = 0; i < rounded_up(count, kTileRows); ++i, to += padded) {
      const A* const from = base + offset[least(i, count - 1)];
      for (int s = 0; s < pieces; ++s) copy(to + s * length, from + g.segment_offset[s]);
      if (sizeof(A) > 1) std::fill(to + pieces * length, to + padded, A{0});
    }
  };
  // Short ones as one vector: what is written beyond them is written again, or has room.
  constexpr size_t kPiece = 32;
  if (bytes <= kPiece)
    gather([](A* to, const A* from) { std::memcpy(to, from, kPiece); });
  else
    gather([=](A* to, const A* from) { std::memcpy(to, from, bytes); });
}

// Stores `pixels` neighbours of NV vectors of accumulators.
template <class S, int NV, class Acc>
TRIMTAB_INLINE void store_neighbours(const Acc* acc, int pixels, Target<Acc> to) {
  using V = std::conditional_t<std::is_same_v<Acc, float>, typename S::F, typename S::I>;
  constexpr int kRow = NV * S::kLanes;
  if (to.finish == Finish::kMemory)
    return emit<S>(*to.store, acc, kRow, pixels, kRow - S::kLanes + to.last, to.first, to.step, to.channel);
  for (; pixels >= 4; pixels -= 4, acc += 4 * kRow, to.first += 4 * to.step) {
    V four[4][NV];
    std::memcpy(four, acc, sizeof four);
    finish_tile<S, 4, NV>(four, to);
  }
  for (; pixels > 0; --pixels, acc += kRow, to.first += to.step) {
    V one[1][NV];
    std::memcpy(one, acc, sizeof one);
    finish_tile<S, 1, NV>(one, to);
  }
}

// Stores those of sixteen positions that are pixels; `to` is where the block's first one goes.
template <class S, int NV, class Acc>
static void store_positions(const Positions& positions, Place place, const Acc* acc, const Target<Acc>& to) {
  for (int left = kTileRows; left > 0;) {
    if (place.y * positions.pitch + place.x >= positions.count) return;
    const int run = least(left, positions.pitch - place.x), pixels = least(run, positions.width - place.x);
    Target<Acc> here = to;
    here.first += (static_cast<size_t>(place.y) * positions.width + place.x) * to.step;
    if (pixels > 0) store_neighbours<S, NV>(acc, pixels, here);
    acc += run * NV * S::kLanes;
    left -= run;
    place.advance(positions, run);
  }
}

// The inputs of a block's positions, for one group.
template <class A>
struct Inputs {
  Positions positions;
  TileRows<A> first;  // those of the first sixteen
  TileRows<A> last;   // of the last sixteen, where they are copies; else without a base
};

// What of a block is gathered is all pixels, or the last sixteen.
template <class P>
static Inputs<typename P::A> inputs_of(const Conv& g, const Block<typename P::A>& block, int group,
                                       typename P::A* gathered) {
  using A = typename P::A;
  static constexpr int32_t kWhole[1] = {0};
  const A* const base = block.base + group * (g.ic / g.groups);
  const size_t padded = static_cast<size_t>(g.steps) * P::kDot;
  const TileRows<A> copies{gathered, padded * sizeof(A), kWhole};
  if (g.gathered > 0) {
    gather_rows(g, base, block.offset, block.pixels, padded, gathered);
    return {side_by_side(block.pixels, padded), copies, {}};
  }
  const Positions positions = positions_of(g, block.pixels);
  const TileRows<A> rows{base, positions.column * sizeof(A), g.segment_offset};
  // What is stored is read no further than it reaches; scratch has room behind it.
  if (!g.direct || positions.count % kTileRows == 0) return {positions, rows, {}};
  const int first = positions.count / kTileRows * kTileRows;
  gather_rows(g, base, block.offset + first, positions.count - first, padded, gathered);
  return {positions, rows, copies};
}

// A panel of NV vectors of channels, for one or two times sixteen positions.
template <class S, class P, int NV>
static void tile_pass(const Conv& g, const Positions& positions, const Place (&places)[2], bool second,
                      const TileRows<typename P::A> (&rows)[2], const char* b, const typename P::Acc* start,
                      const Target<typename P::Acc>& to) {
  using Acc = typename P::Acc;
  alignas(64) Acc acc[2 * kTileRows * NV * S::kLanes];
  if (second)
    tile_block<typename S::Tiles, P, true, NV == 2>(rows, g, b, start, acc);
  else
    tile_block<typename S::Tiles, P, false, NV == 2>(rows, g, b, start, acc);
  store_positions<S, NV>(positions, places[0], acc, to);
  if (second) store_positions<S, NV>(positions, places[1], acc + kTileRows * NV * S::kLanes, to);
}

// The panels [first, last) of one group, for all pixels of a block.
template <class S, class P>
static void tile_panels(const Conv& g, const Store& store, const Inputs<typename P::A>& inputs, size_t first_pixel,
                        int group, Span panels) {
  using A = typename P::A;
  using Acc = typename P::Acc;
  const Positions& positions = inputs.positions;
  const int vectors = g.group_width / S::kLanes, per_group = g.oc / g.groups;
  Place place{0, 0};
  for (int m = 0; m < positions.count; m += 2 * kTileRows) {
    const bool second = m + kTileRows < positions.count;
    Place places[2];
    TileRows<A> rows[2];
    for (int half = 0; half <= second; ++half, place.advance(positions, kTileRows)) {
      places[half] = place;
      const bool whole = m + (half + 1) * kTileRows <= positions.count;
      if (!whole && inputs.last.base != nullptr) {
        rows[half] = inputs.last;
      } else {
        rows[half] = inputs.first;
        rows[half].base += place.input(positions);
      }
    }
    for (int panel = panels.first; panel < panels.last; ++panel) {
      const int column = panel * kTileVectors * S::kLanes, channel = group * g.group_width + column;
      const int count = least(kTileVectors, vectors - panel * kTileVectors);
      const auto* b = static_cast<const char*>(g.weights) + group * g.group_bytes +
                      static_cast<size_t>(g.segments) * g.steps * 4 * column;
      const Acc* const start = static_cast<const Acc*>(g.start) + channel;
      const Target<Acc> to{finish_of<Acc>(store), &store, nullptr, first_pixel * g.oc + group * per_group + column,
                           static_cast<size_t>(g.oc), channel,
                           least(S::kLanes, per_group - column - (count - 1) * S::kLanes), nullptr, 0};
      auto* const pass = count == 2 ? &tile_pass<S, P, 2> : &tile_pass<S, P, 1>;
      pass(g, positions, places, second, rows, b, start, to);
    }
  }
}

// Scratch: [gathered rows][what for_blocks needs]; conv.cpp reserves it so.
template <class S, class P, class T>
static void conv_tiles(const Conv& g, const Store& store, const Operand& in, const Task& task) {
  using A = typename P::A;
  const bool by_block = shares_blocks(g, task);
  const int panels = (g.group_width / S::kLanes + kTileVectors - 1) / kTileVectors;
  const Span mine = by_block ? Span{0, g.groups * panels} : share(g.groups * panels, task.thread, task.threads);
  A* const gathered = reinterpret_cast<A*>(task.scratch);
  Task inner = task;
  inner.scratch += g.gathered_bytes;
  S::Tiles::configure();
  const A padding = sizeof(A) == 1 ? static_cast<A>(in.zero) : A{0};
  // Many weights come close once for all pixels, panel by panel; few stay there while the pixels pass.
  const int together = g.group_bytes > kNearWeights ? 1 : panels;
  for_blocks<A, T>(g, in, inner, by_block, padding, [&](const Block<A>& block) {
    for (int group = mine.first / panels; group * panels < mine.last; ++group) {
      const Inputs<A> inputs = inputs_of<P>(g, block, group, gathered);
      const int first = greatest(mine.first - group * panels, 0), last = least(mine.last - group * panels, panels);
      for (int p = first; p < last; p += together)
        tile_panels<S, P>(g, store, inputs, block.first_pixel, group, {p, least(p + together, last)});
    }
  });
  S::Tiles::release();
}

template <class S>
static double tile_peak(double seconds) {
  using T = typename S::Tiles;
  constexpr int kRounds = 1000;
  alignas(64) static const char zeros[kTileRows * kTileBytes] = {};
  T::configure();
  T::template load<4>(zeros, kTileBytes);
  T::template load<5>(zeros, kTileBytes);
  T::template load<6>(zeros, kTileBytes);
  T::template load<7>(zeros, kTileBytes);
  const double rate = best_rate(seconds, 4.0 * kRounds * 16 * 16 * 64, [&] {
    for (int r = 0; r < kRounds; ++r) {
      T::template dot<0, 4, 6>();
      T::template dot<1, 4, 7>();
      T::template dot<2, 5, 6>();
      T::template dot<3, 5, 7>();
    }
  });
  T::release();
  return rate;
}

}  // namespace
}  // namespace trimtab
