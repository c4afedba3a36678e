// Convolutions on 16 x 64-byte tiles: up to 32 pixels times 32 channels in four accumulator tiles. A row of a tile holds
// 64 integers or 32 bf16 numbers: in either case a step is four bytes of each operand.
#pragma once

#include "gemm.h"
#include "peak.h"

namespace trimtab {
namespace {

constexpr int kTileRows = 16, kTileBytes = 64;

// 32 pixels as the tile loads want them: rows `stride` bytes apart, or gathered so.
template <class A>
struct TileRows {
  const A* base;
  size_t stride;  // in bytes
  const int32_t* segment_offset;
  bool second;  // pixels 16..31 are wanted too
};

template <class T, class P, int C, int A, int B>
TRIMTAB_INLINE void multiply_tiles() {
  if constexpr (sizeof(typename P::A) == 1)
    T::template dot<C, A, B>();
  else
    T::template dot_bf16<C, A, B>();
}

// Tiles 0-3 accumulate [pixel half][channel half], 4-5 hold pixels, 6-7 weights.
template <class T, class P, bool M2, bool N2>
static void tile_block(const TileRows<typename P::A>& rows, const Conv& g, const char* b, size_t b_stride,
                       const typename P::Acc* start, size_t start_stride, typename P::Acc* acc, size_t acc_stride) {
  T::template load<0>(start, start_stride);
  if (N2) T::template load<1>(start + 16, start_stride);
  if (M2) T::template load<2>(start, start_stride);
  if (M2 && N2) T::template load<3>(start + 16, start_stride);
  for (int s = 0; s < g.segments; ++s) {
    const char* a = reinterpret_cast<const char*>(rows.base + rows.segment_offset[s]);
    for (int k = 0; k < g.steps; k += kTileRows, a += kTileBytes, b += kTileRows * b_stride) {
      T::template load<4>(a, rows.stride);
      T::template load<6>(b, b_stride);
      multiply_tiles<T, P, 0, 4, 6>();
      if (M2) T::template load<5>(a + kTileRows * rows.stride, rows.stride);
      if (M2) multiply_tiles<T, P, 2, 5, 6>();
      if (N2) T::template load<7>(b + kTileBytes, b_stride);
      if (N2) multiply_tiles<T, P, 1, 4, 7>();
      if (M2 && N2) multiply_tiles<T, P, 3, 5, 7>();
    }
  }
  T::template store<0>(acc, acc_stride);
  if (N2) T::template store<1>(acc + 16, acc_stride);
  if (M2) T::template store<2>(acc + 16 * acc_stride / 4, acc_stride);
  if (M2 && N2) T::template store<3>(acc + 16 * acc_stride / 4 + 16, acc_stride);
}

// Constant distance between the pixels' inputs, or -1.
TRIMTAB_INLINE ptrdiff_t common_stride(const int32_t* offset, int pixels) {
  for (int i = 2; i < pixels; ++i) {
    if (offset[i] - offset[i - 1] != offset[1] - offset[0]) return -1;
  }
  return offset[1] - offset[0];
}

// Copies `pixels` rows of all segments next to each other; missing pixels repeat the last one. Where integers end does
// not matter, since they meet zero weights; bf16 numbers have to be finite there too.
template <class P>
static void gather_rows(const Conv& g, const typename P::A* base, const int32_t* offset, int pixels, int wanted,
                        typename P::A* to) {
  using A = typename P::A;
  const size_t padded = static_cast<size_t>(g.steps) * P::kDot;
  const size_t count = sizeof(A) == 1 ? static_cast<size_t>(g.segment_length) : padded;
  for (int i = 0; i < wanted; ++i) {
    const A* from = base + offset[least(i, pixels - 1)];
    for (int s = 0; s < g.segments; ++s, to += padded) std::memcpy(to, from + g.segment_offset[s], count * sizeof(A));
  }
}

// All panels [first, last) of one group for the 32 pixels from `first_pixel` of the block.
template <class S, class P>
static void tile_panels(const Conv& g, const Store& store, const TileRows<typename P::A>& rows, int pixels,
                        size_t first_pixel, int group, Span panels) {
  using T = typename S::Tiles;
  using Acc = typename P::Acc;
  constexpr int kWidth = S::kVectors * S::kLanes;
  const Panels shape = panels_of<S>(g);
  const int per_group = g.oc / g.groups;
  alignas(64) Acc start[kTileRows * kWidth], acc[2 * kTileRows * kWidth];
  for (int panel = panels.first; panel < panels.last; ++panel) {
    const int vectors = least(S::kVectors, shape.vectors - panel * S::kVectors), row = vectors * S::kLanes;
    const int channel = group * g.group_width + panel * kWidth;
    const auto* b = static_cast<const char*>(g.weights) + group * g.group_bytes +
                    static_cast<size_t>(panel) * g.segments * g.steps * 4 * kWidth;
    for (int r = 0; r < kTileRows; ++r)
      std::memcpy(start + r * row, static_cast<const Acc*>(g.start) + channel, row * sizeof(Acc));
    const size_t bytes = static_cast<size_t>(row) * 4;
    for (int v = 0; v < vectors; v += 2) {
      const bool n2 = v + 1 < vectors;
      auto* block = rows.second ? (n2 ? &tile_block<T, P, true, true> : &tile_block<T, P, true, false>)
                                : (n2 ? &tile_block<T, P, false, true> : &tile_block<T, P, false, false>);
      block(rows, g, b + v * kTileBytes, bytes, start + v * 16, bytes, acc + v * 16, bytes);
    }
    emit<S>(store, acc, row, pixels, least(row, per_group - panel * kWidth),
            first_pixel * g.oc + group * per_group + panel * kWidth, g.oc, channel);
  }
}

template <class S, class P>
static void tile_group(const Conv& g, const Store& store, const Block<typename P::A>& block, int group, Span panels,
                       typename P::A* gathered, const int32_t* gathered_offset) {
  using A = typename P::A;
  const A* base = block.base + group * (g.ic / g.groups);
  const size_t padded = static_cast<size_t>(g.steps) * 4 * g.segments;
  for (int m = 0; m < block.pixels; m += 2 * kTileRows) {
    const int pixels = least(2 * kTileRows, block.pixels - m), wanted = pixels > kTileRows ? 32 : 16;
    const ptrdiff_t stride = pixels == wanted ? common_stride(block.offset + m, pixels) : -1;
    TileRows<A> rows{base + block.offset[m], stride * sizeof(A), g.segment_offset, wanted == 32};
    if (stride < 0) {
      gather_rows<P>(g, base, block.offset + m, pixels, wanted, gathered);
      rows = {gathered, padded, gathered_offset, wanted == 32};
    }
    tile_panels<S, P>(g, store, rows, pixels, block.first_pixel + m, group, panels);
  }
}

// Scratch: [32 gathered rows][their segment offsets][what for_blocks needs]; session.cpp reserves it so.
template <class S, class P, class T>
static void conv_tiles(const Conv& g, const Store& store, const Operand& in, const Task& task) {
  const bool by_block = shares_blocks(g, task);
  const int panels = panels_of<S>(g).per_group;
  const Span mine = by_block ? Span{0, g.groups * panels} : share(g.groups * panels, task.thread, task.threads);
  using A = typename P::A;
  A* const gathered = reinterpret_cast<A*>(task.scratch);
  const size_t row = static_cast<size_t>(g.steps) * P::kDot * g.segments;
  int32_t* offset = reinterpret_cast<int32_t*>(gathered + 2 * kTileRows * row);
  for (int s = 0; s < g.segments; ++s) offset[s] = s * g.steps * P::kDot;
  Task inner = task;
  inner.scratch = reinterpret_cast<char*>(offset) + (g.segments * sizeof(int32_t) + 63) / 64 * 64;
  S::Tiles::configure();
  const A padding = sizeof(A) == 1 ? static_cast<A>(in.zero) : A{0};
  for_blocks<A, T>(g, in, inner, by_block, padding, [&](const Block<A>& block) {
    for (int group = mine.first / panels; group * panels < mine.last; ++group) {
      const Span part{greatest(mine.first - group * panels, 0), least(mine.last - group * panels, panels)};
      tile_group<S, P>(g, store, block, group, part, gathered, offset);
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
