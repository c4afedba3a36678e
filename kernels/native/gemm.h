// Convolutions and linear layers as a matrix product whose left rows are read in place, tap row by tap row.
#pragma once

#include <type_traits>

#include "blocks.h"
#include "halves.h"

namespace trimtab {
namespace {

constexpr int kAhead = 1792;  // bytes: how far ahead of their use weights that stream from memory are fetched

constexpr int kLongSum = 96;  // steps from which on sums of many in 16 bits, kept in memory, beat those of four

// Gives every row of accumulators the channels' first values.
template <class S, int MR, int NV, class V, class Acc>
TRIMTAB_INLINE void start_tile(const Acc* start, V (&acc)[MR][NV]) {
#pragma GCC unroll 8
  for (int j = 0; j < NV; ++j) {
    V first;
    std::memcpy(&first, start + j * S::kLanes, sizeof first);
#pragma GCC unroll 8
    for (int i = 0; i < MR; ++i) acc[i][j] = first;
  }
}

// Not one copy of the array: that would keep the accumulators in memory throughout.
template <class S, int MR, int NV, class V, class Acc>
TRIMTAB_INLINE void spill_tile(const V (&acc)[MR][NV], Acc* out) {
#pragma GCC unroll 8
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) std::memcpy(out + (i * NV + j) * S::kLanes, &acc[i][j], sizeof(V));
  }
}

// MR pixels times NV vectors of output channels, over every segment of the filter. With Ahead, what the next panel will
// read is fetched meanwhile.
template <class S, class P, int MR, int NV, bool Ahead>
static void micro(const typename P::A* base, const int32_t* offset, const Conv& g, const typename P::B* b,
                  const typename P::Acc* start, const Target<typename P::Acc>& to) {
  constexpr int Lanes = S::kLanes;
  using V = typename P::V;
  using A = typename P::A;
  V acc[MR][NV];
  start_tile<S>(start, acc);
  const int steps = g.steps;
  [[maybe_unused]] const char* ahead = to.ahead;
  for (int s = 0; s < g.segments; ++s) {
    const A* a[MR];
#pragma GCC unroll 8
    for (int i = 0; i < MR; ++i) a[i] = base + offset[i] + g.segment_offset[s];
#pragma GCC unroll 2
    for (int k = 0; k < steps; ++k) {
      V right[NV];
      if constexpr (sizeof(typename P::B) < sizeof(A)) {
        __builtin_prefetch(b + kAhead);
      } else if constexpr (Ahead) {
        __builtin_prefetch(ahead);
        ahead += to.ahead_step;
      }
#pragma GCC unroll 8
      for (int j = 0; j < NV; ++j) right[j] = P::weights(b + j * Lanes * P::kDot);
      b += NV * Lanes * P::kDot;
#pragma GCC unroll 8
      for (int i = 0; i < MR; ++i) {
        const V left = P::broadcast(a[i] + static_cast<ptrdiff_t>(k) * P::kDot);
#pragma GCC unroll 8
        for (int j = 0; j < NV; ++j) acc[i][j] = P::dot(acc[i][j], left, right[j]);
      }
    }
  }
  if (to.finish != Finish::kMemory) return finish_tile<S>(acc, to);
  spill_tile<S>(acc, to.acc);
}

// COUNT steps, whose products are summed in 16 bits before they become 32.
template <class S, class P, int COUNT, int MR, int NV>
TRIMTAB_INLINE void add_steps(typename P::V (&acc)[MR][NV], const typename P::A* const (&a)[MR], int k,
                              const typename P::B* b) {
  using V = typename P::V;
#pragma GCC unroll 8
  for (int i = 0; i < MR; ++i) {
    V left[COUNT];
#pragma GCC unroll 4
    for (int d = 0; d < COUNT; ++d) left[d] = P::broadcast(a[i] + static_cast<ptrdiff_t>(k + d) * P::kDot);
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) {
      V sum{};
#pragma GCC unroll 4
      for (int d = 0; d < COUNT; ++d) sum = P::dot(sum, left[d], P::weights(b + (d * NV + j) * S::kLanes * P::kDot));
      acc[i][j] = P::widen(acc[i][j], sum);
    }
  }
}

// The same with the products of DEPTH steps at a time summed in 16 bits.
template <class S, class P, int MR, int NV, int DEPTH>
static void micro_grouped(const typename P::A* base, const int32_t* offset, const Conv& g, const typename P::B* b,
                          const typename P::Acc* start, const Target<typename P::Acc>& to) {
  constexpr int kStep = NV * S::kLanes * P::kDot;
  typename P::V acc[MR][NV];
  start_tile<S>(start, acc);
  for (int s = 0; s < g.segments; ++s) {
    const typename P::A* a[MR];
#pragma GCC unroll 8
    for (int i = 0; i < MR; ++i) a[i] = base + offset[i] + g.segment_offset[s];
    int k = 0;
    for (; k + DEPTH <= g.steps; k += DEPTH, b += DEPTH * kStep) add_steps<S, P, DEPTH>(acc, a, k, b);
    for (; k + 2 <= g.steps; k += 2, b += 2 * kStep) add_steps<S, P, 2>(acc, a, k, b);
    if (k < g.steps) add_steps<S, P, 1>(acc, a, k, b), b += kStep;
  }
  if (to.finish != Finish::kMemory) return finish_tile<S>(acc, to);
  spill_tile<S>(acc, to.acc);
}

// The same for g.depth steps at a time, which is as many as fit 16 bits.
template <class S, class P, int MR, int NV>
static void micro_short(const typename P::A* base, const int32_t* offset, const Conv& g, const typename P::B* b,
                        const typename P::Acc* start, const Target<typename P::Acc>& to) {
  const int all = g.segments * g.steps;
  if (g.depth < 4) return micro_grouped<S, P, MR, NV, 2>(base, offset, g, b, start, to);
  if (g.depth < 8 || (g.depth < all && all < kLongSum))
    return micro_grouped<S, P, MR, NV, 4>(base, offset, g, b, start, to);
  constexpr int Lanes = S::kLanes;
  typename P::Acc* const out = to.acc;
  using V = typename P::V;
  using A = typename P::A;
  V acc[MR][NV] = {};
  const bool once = all <= g.depth;  // then the sums never leave their registers
  if (!once) {
    for (int i = 0; i < MR; ++i) std::memcpy(out + i * NV * Lanes, start, NV * sizeof(V));
  }
  const auto widen = [&] {
#pragma GCC unroll 8
    for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 8
      for (int j = 0; j < NV; ++j) {
        V sum;
        std::memcpy(&sum, out + (i * NV + j) * Lanes, sizeof sum);
        sum = P::widen(sum, acc[i][j]);
        std::memcpy(out + (i * NV + j) * Lanes, &sum, sizeof sum);
        acc[i][j] = V{};
      }
    }
  };
  int room = g.depth;
  for (int s = 0; s < g.segments; ++s) {
    const A* a[MR];
#pragma GCC unroll 8
    for (int i = 0; i < MR; ++i) a[i] = base + offset[i] + g.segment_offset[s];
    for (int k = 0; k < g.steps;) {
      const int last = k + least(room, g.steps - k);
      room -= last - k;
      for (; k < last; ++k) {
        V right[NV];
#pragma GCC unroll 8
        for (int j = 0; j < NV; ++j) right[j] = P::weights(b + j * Lanes * P::kDot);
        b += NV * Lanes * P::kDot;
#pragma GCC unroll 8
        for (int i = 0; i < MR; ++i) {
          const V left = P::broadcast(a[i] + static_cast<ptrdiff_t>(k) * P::kDot);
#pragma GCC unroll 8
          for (int j = 0; j < NV; ++j) acc[i][j] = P::dot(acc[i][j], left, right[j]);
        }
      }
      if (room == 0 && !once) {
        widen();
        room = g.depth;
      }
    }
  }
  if (!once && room < g.depth) widen();
  V sums[MR][NV];
#pragma GCC unroll 8
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) {
      std::memcpy(&sums[i][j], once ? start + j * Lanes : out + (i * NV + j) * Lanes, sizeof(V));
      if (once) sums[i][j] = P::widen(sums[i][j], acc[i][j]);
    }
  }
  if (to.finish != Finish::kMemory) return finish_tile<S>(sums, to);
  if (once) std::memcpy(out, sums, sizeof sums);
}

template <class P, class = void>
struct SumsShort : std::false_type {};
template <class P>
struct SumsShort<P, std::void_t<decltype(&P::widen)>> : std::true_type {};

template <class P>
using Micro = void (*)(const typename P::A*, const int32_t*, const Conv&, const typename P::B*,
                       const typename P::Acc*, const Target<typename P::Acc>&);

// The micro-kernel for `height` pixels, which are 1, 2, 4 or S::kRows, and NV vectors; `far`: the weights are not in
// cache.
template <class S, class P, int NV>
TRIMTAB_INLINE Micro<P> kernel_of_height(int height, bool far) {
  if constexpr (SumsShort<P>::value) {
    if (height == S::kRows) return &micro_short<S, P, S::kRows, NV>;
    return height == 4   ? &micro_short<S, P, 4, NV>
           : height == 2 ? &micro_short<S, P, 2, NV>
                         : &micro_short<S, P, 1, NV>;
  } else {
    if (height == S::kRows) return far ? &micro<S, P, S::kRows, NV, true> : &micro<S, P, S::kRows, NV, false>;
    return height == 4   ? &micro<S, P, 4, NV, false>
           : height == 2 ? &micro<S, P, 2, NV, false>
                         : &micro<S, P, 1, NV, false>;
  }
}

template <class S, class P>
static Micro<P> micro_kernel(int height, int vectors, bool far) {
  if constexpr (S::kVectors > 2) {
    if (vectors == 4) return kernel_of_height<S, P, 4>(height, far);
    if (vectors == 3) return kernel_of_height<S, P, 3>(height, far);
  }
  return vectors == 2 ? kernel_of_height<S, P, 2>(height, far) : kernel_of_height<S, P, 1>(height, far);
}

// How many pixels the next tile takes: the least height that covers what is left and fits, else the largest below.
template <class S>
TRIMTAB_INLINE int tile_height(int left, int pixels) {
  if (left >= S::kRows) return S::kRows;
  for (int h = 1; h <= 4; h *= 2) {
    if (h >= left && h <= pixels) return h;
  }
  if (S::kRows <= pixels) return S::kRows;
  return left >= 4 ? 4 : left >= 2 ? 2 : 1;
}

struct Panels {
  int per_group, vectors;  // of one group, without its half panel
};

template <class S>
TRIMTAB_INLINE Panels panels_of(const Conv& g) {
  const int vectors = g.group_width / S::kLanes;
  return {(vectors + S::kVectors - 1) / S::kVectors, vectors};
}

// `vectors` of a group's output channels, from `column` on, over all pixels of a block, tile by tile; the last may
// overlap the one before it. compute(height, vectors, first pixel, first accumulators, target) runs a micro-kernel.
template <class S, class Acc, class Compute>
TRIMTAB_INLINE void for_tiles_of(const Conv& g, const Store& store, size_t first_pixel, int pixels, int group,
                                 int column, int vectors, const Compute& compute) {
  const int row = vectors * S::kLanes, channel = group * g.group_width + column, per_group = g.oc / g.groups;
  const int columns = least(row, per_group - column);
  alignas(64) Acc acc[S::kRows * S::kVectors * S::kLanes];
  Target<Acc> to{finish_of<Acc>(store), &store, acc, 0, static_cast<size_t>(g.oc), channel,
                 columns - (vectors - 1) * S::kLanes, nullptr, 0};
  for (int m = 0; m < pixels;) {
    const int height = tile_height<S>(pixels - m, pixels), first = least(m, pixels - height);
    to.first = (first_pixel + first) * g.oc + group * per_group + column;
    compute(height, vectors, first, static_cast<const Acc*>(g.start) + channel, to);
    if (to.finish == Finish::kMemory) emit<S>(store, acc, row, height, columns, to.first, g.oc, channel);
    m = first + height;
  }
}

// One panel of output channels.
template <class S, class Acc, class Compute>
TRIMTAB_INLINE void for_tiles(const Conv& g, const Store& store, size_t first_pixel, int pixels, int group, int panel,
                              const Compute& compute) {
  const int vectors = least(S::kVectors, panels_of<S>(g).vectors - panel * S::kVectors);
  for_tiles_of<S, Acc>(g, store, first_pixel, pixels, group, panel * S::kVectors * S::kLanes, vectors, compute);
}

// The half panel of a group.
template <class S, class P>
static void half_panel_over_block(const Conv& g, const Store& store, const Block<typename P::A>& block, int group) {
  using H = typename S::Half;
  const int column = panels_of<S>(g).vectors * S::kLanes;
  const auto* b = reinterpret_cast<const typename P::B*>(static_cast<const char*>(g.weights) + group * g.group_bytes) +
                  static_cast<size_t>(g.segments) * g.steps * P::kDot * column;
  const auto* base = block.base + group * (g.ic / g.groups);
  for_tiles_of<H, typename P::Acc>(g, store, block.first_pixel, block.pixels, group, column, 1,
                                   [&](int height, int vectors, int first, const typename P::Acc* start,
                                       const Target<typename P::Acc>& to) {
    micro_kernel<H, HalfOf<S, P>>(height, vectors, false)(base, block.offset + first, g, b, start, to);
  });
}

template <class S, class P>
static void panel_over_block(const Conv& g, const Store& store, const Block<typename P::A>& block, int group,
                             int panel) {
  using Acc = typename P::Acc;
  if constexpr (kHalves<S, P>) {
    if (g.half_panel && panel == panels_of<S>(g).per_group)
      return half_panel_over_block<S, P>(g, store, block, group);
  }
  const size_t column = static_cast<size_t>(g.segments) * g.steps * P::kDot;  // weights of one output channel
  const auto* b = reinterpret_cast<const typename P::B*>(static_cast<const char*>(g.weights) + group * g.group_bytes) +
                  panel * column * S::kVectors * S::kLanes;
  const auto* base = block.base + group * (g.ic / g.groups);
  const bool far = g.group_bytes >= kFarWeights;
  for_tiles<S, Acc>(g, store, block.first_pixel, block.pixels, group, panel,
                    [&](int height, int vectors, int first, const Acc* start, Target<Acc>& to) {
    // While the pixels pass, the weights of the next panel come closer, a share with every tile of them.
    const size_t step = vectors * S::kLanes * P::kDot * sizeof(typename P::B), bytes = step * g.segments * g.steps;
    to.ahead_step = static_cast<ptrdiff_t>(step * S::kRows / block.pixels + 1);
    to.ahead = reinterpret_cast<const char*>(b) + bytes + bytes * first / block.pixels;
    micro_kernel<S, P>(height, vectors, far)(base, block.offset + first, g, b, start, to);
  });
}

template <class S, class P, class T>
static void conv_gemm(const Conv& g, const Store& store, const Operand& in, const Task& task) {
  using A = typename P::A;
  const bool by_block = shares_blocks(g, task);
  const int panels = panels_of<S>(g).per_group + g.half_panel;
  const Span mine = by_block ? Span{0, g.groups * panels} : share(g.groups * panels, task.thread, task.threads);
  const A padding = sizeof(A) == 1 ? static_cast<A>(in.zero) : A{0};
  for_blocks<A, T>(g, in, task, by_block, padding, [&](const Block<A>& block) {
    for (int p = mine.first; p < mine.last; ++p) panel_over_block<S, P>(g, store, block, p / panels, p % panels);
  });
}

}  // namespace
}  // namespace trimtab
