// Depthwise convolutions: channels in lanes, four pixels at a time.
#pragma once

#include "blocks.h"

namespace trimtab {
namespace {

constexpr int kPixels = 4;

// How one accumulator takes the taps of its channels: `kTaps` of them at a time.
template <class S>
struct FloatTaps {
  using Acc = float;
  using V = typename S::F;
  using A = float;
  using B = float;
  static constexpr int kTaps = 1;
  TRIMTAB_INLINE V gather(const A* p, const int32_t* offset) { return S::template load<V>(p + offset[0]); }
  TRIMTAB_INLINE V dot(V acc, V a, V b) { return S::Float::dot(acc, a, b); }
};

template <class S>
struct IntTaps {
  using Acc = int32_t;
  using V = typename S::I;
  using A = uint8_t;
  using B = typename S::Int::B;
  static constexpr int kTaps = S::Int::kDot;
  // Tap t of a channel goes to part t of its lane.
  TRIMTAB_INLINE V gather(const A* p, const int32_t* offset) {
    V lanes = S::load_u8(p + offset[0]);
#pragma GCC unroll 4
    for (int t = 1; t < kTaps; ++t) lanes |= S::load_u8(p + offset[t]) << (32 / kTaps * t);
    return lanes;
  }
  TRIMTAB_INLINE V dot(V acc, V a, V b) { return S::Int::dot(acc, a, b); }
};

// N pixels, one vector of channels. g.steps groups of taps; weights [step][lane][tap].
template <class S, class P, int N>
TRIMTAB_INLINE void depthwise_pixels(const Conv& g, const typename P::A* base, const int32_t* offset,
                                     const typename P::B* weights, const typename P::Acc* start,
                                     typename P::Acc* out) {
  using V = typename P::V;
  V acc[N];
#pragma GCC unroll 4
  for (int i = 0; i < N; ++i) acc[i] = S::template load<V>(start);
  for (int k = 0; k < g.steps; ++k) {
    const V w = S::template load<V>(weights + k * S::kLanes * P::kTaps);
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i)
      acc[i] = P::dot(acc[i], P::gather(base + offset[i], g.segment_offset + k * P::kTaps), w);
  }
#pragma GCC unroll 4
  for (int i = 0; i < N; ++i) S::store(out + i * S::kLanes, acc[i]);
}

// All channels of a few pixels before the next pixels: their inputs stay in the first-level cache.
template <class S, class P, int N>
TRIMTAB_INLINE void depthwise_strip(const Conv& g, const Store& store, const Block<typename P::A>& block, int m,
                                    Span vectors) {
  alignas(64) typename P::Acc acc[N * S::kLanes];
  const size_t vector_size = static_cast<size_t>(g.steps) * P::kTaps * S::kLanes;
  for (int v = vectors.first; v < vectors.last; ++v) {
    const int channel = v * S::kLanes, columns = least(S::kLanes, g.oc - channel);
    const auto* weights = static_cast<const typename P::B*>(g.weights) + v * vector_size;
    const auto* start = static_cast<const typename P::Acc*>(g.start) + channel;
    depthwise_pixels<S, P, N>(g, block.base + channel, block.offset + m, weights, start, acc);
    emit<S>(store, acc, S::kLanes, N, columns, (block.first_pixel + m) * g.oc + channel, g.oc, channel);
  }
}

template <class S, class P>
static void depthwise_block(const Conv& g, const Store& store, const Block<typename P::A>& block, Span vectors) {
  int m = 0;
  for (; m + kPixels <= block.pixels; m += kPixels) depthwise_strip<S, P, kPixels>(g, store, block, m, vectors);
  for (; m < block.pixels; ++m) depthwise_strip<S, P, 1>(g, store, block, m, vectors);
}

template <class S, class P>
static void depthwise(const Conv& g, const Store& store, const Operand& in, const Task& task) {
  using A = typename P::A;
  const int per_image = (g.oh + g.block_rows - 1) / g.block_rows;
  const bool by_block = task.images * per_image >= task.threads;
  const int vectors = (g.oc + S::kLanes - 1) / S::kLanes;
  const Span mine = by_block ? Span{0, vectors} : share(vectors, task.thread, task.threads);
  const A padding = in.is_u8 ? static_cast<A>(in.zero) : A{0};
  for_blocks<A, A>(g, in, task, by_block, padding,
                   [&](const Block<A>& block) { depthwise_block<S, P>(g, store, block, mine); });
}

}  // namespace
}  // namespace trimtab
