// 3x3 convolutions of stride 1 as Winograd's F(2x2, 3x3): 16 products for 4 outputs in place of 36
// (Lavin and Gray 2016, Fast Algorithms for Convolutional Neural Networks, section 4.1). Integers are exact: their
// weights are transformed with 2G, so that a sum is 4 times the accumulator, and the scale holds the quarter.
#pragma once

#include <type_traits>

#include "gemm.h"

namespace trimtab {
namespace {

constexpr int kPlanes = 16;  // elements of a transformed 4x4 tile
constexpr size_t kFetchedFilters = 512 * 1024;  // bytes of weights that have left the cache since the last run

// This thread's scratch: planes of transformed inputs [tile][channel] and of products [tile][column of the panel].
template <class A, class Acc>
struct WinogradScratch {
  A* inputs;
  Acc* products;
};

// Output rows [0, rows) of a block, as tiles in rows of `across`.
struct Tiling {
  int rows, across;
  size_t first_pixel;  // in the output
};

// B^T d B for one 4x4 tile, all channels. d: `row` elements between its rows, `step` between its columns.
template <class V, class A>
TRIMTAB_INLINE void transform_inputs(const A* d, ptrdiff_t row, int channels, A* to, size_t plane) {
  constexpr int kWide = sizeof(V) / sizeof(A);
  for (int c = 0; c < channels; c += kWide) {
    V t[4][4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      V v[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) std::memcpy(&v[i], d + i * row + j * channels + c, sizeof(V));
      t[0][j] = v[0] - v[2];
      t[1][j] = v[1] + v[2];
      t[2][j] = v[2] - v[1];
      t[3][j] = v[1] - v[3];
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const V u[4] = {t[i][0] - t[i][2], t[i][1] + t[i][2], t[i][2] - t[i][1], t[i][1] - t[i][3]};
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) std::memcpy(to + (4 * i + j) * plane + c, &u[j], sizeof(V));
    }
  }
}

// A^T m A for one tile and one vector of columns.
template <class V, class Acc>
TRIMTAB_INLINE void transform_products(const Acc* m, size_t plane, V (&y)[2][2]) {
  V s[2][4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    V v[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) std::memcpy(&v[i], m + (4 * i + j) * plane, sizeof(V));
    s[0][j] = v[0] + v[1] + v[2];
    s[1][j] = v[1] - v[2] - v[3];
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    y[i][0] = s[i][0] + s[i][1] + s[i][2];
    y[i][1] = s[i][1] - s[i][2] - s[i][3];
  }
}

// MR tiles times NV vectors of columns in one plane; `stride` elements between the tiles' inputs. With Ahead, what the
// tiles of the next plane will read is fetched from `ahead` on, `ahead_step` bytes further with every step.
template <class P, int MR, int NV, int Lanes, bool Ahead>
TRIMTAB_INLINE void multiply_tiles(const typename P::A* a, ptrdiff_t stride, int steps, const typename P::B* b,
                                   const char* ahead, ptrdiff_t ahead_step, const typename P::Acc* start,
                                   typename P::Acc* out) {
  using V = typename P::V;
  V acc[MR][NV];
#pragma GCC unroll 8
  for (int j = 0; j < NV; ++j) {
    V first;
    std::memcpy(&first, start + j * Lanes, sizeof first);
#pragma GCC unroll 8
    for (int i = 0; i < MR; ++i) acc[i][j] = first;
  }
  for (int k = 0; k < steps; ++k) {
    V right[NV];
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) right[j] = P::weights(b + j * Lanes * P::kDot);
    b += NV * Lanes * P::kDot;
    if constexpr (Ahead) {
      __builtin_prefetch(ahead);
      ahead += ahead_step;
    }
#pragma GCC unroll 8
    for (int i = 0; i < MR; ++i) {
      const V left = P::broadcast(a + i * stride);
#pragma GCC unroll 8
      for (int j = 0; j < NV; ++j) acc[i][j] = P::dot(acc[i][j], left, right[j]);
    }
    a += P::kDot;
  }
#pragma GCC unroll 8
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) std::memcpy(out + (i * NV + j) * Lanes, &acc[i][j], sizeof(V));
  }
}

// The tiles [first, count) as far as blocks of MR tiles reach; returns the first tile that is left.
template <class S, class P, int MR, int NV, bool Ahead>
TRIMTAB_INLINE int multiply_blocks(const Conv& g, const typename P::A* a, int first, int count,
                                   const typename P::B* b, const typename P::Acc* start, typename P::Acc* out) {
  // While the tiles of this plane pass, the weights of the next one come closer, a share with every tile.
  constexpr ptrdiff_t kStep = NV * sizeof(typename P::V);
  const ptrdiff_t size = kStep * g.steps, ahead_step = (kStep * MR + count - 1) / count;
  for (; first + MR <= count; first += MR)
    multiply_tiles<P, MR, NV, S::kLanes, Ahead>(a + static_cast<ptrdiff_t>(first) * g.tile_channels, g.tile_channels, g.steps,
                                         b, reinterpret_cast<const char*>(b) + size + size * first / count, ahead_step,
                                         start, out + first * NV * S::kLanes);
  return first;
}

// All tiles of one plane with one panel of NV vectors. Not `micro`: a plane has few steps, so what surrounds them counts.
template <class S, class P, int NV, bool Ahead>
static void multiply_plane(const Conv& g, const typename P::A* a, int count, const typename P::B* b,
                           const typename P::Acc* start, typename P::Acc* out) {
  int t = multiply_blocks<S, P, S::kRows, NV, Ahead>(g, a, 0, count, b, start, out);
  t = multiply_blocks<S, P, 4, NV, Ahead>(g, a, t, count, b, start, out);
  t = multiply_blocks<S, P, 2, NV, Ahead>(g, a, t, count, b, start, out);
  multiply_blocks<S, P, 1, NV, Ahead>(g, a, t, count, b, start, out);
}

// Stores `Pixels` neighbours of an output row.
template <class S, int Pixels, int NV, class V, class Acc>
TRIMTAB_INLINE void store_pixels(const V (&y)[Pixels][NV], const Target<Acc>& to, int columns) {
  if (to.finish != Finish::kMemory) return finish_tile<S>(y, to);
#pragma GCC unroll 2
  for (int i = 0; i < Pixels; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) std::memcpy(to.acc + (i * NV + j) * S::kLanes, &y[i][j], sizeof(V));
  }
  emit<S>(*to.store, to.acc, NV * S::kLanes, Pixels, columns, to.first, to.step, to.channel);
}

// The outputs of one tile, as far as they lie in the image.
template <class S, class P, int NV>
TRIMTAB_INLINE void store_tile(const Conv& g, const typename P::Acc* products, const Tiling& tiling, int tile,
                               Target<typename P::Acc> to, int columns) {
  using V = typename P::V;
  V y[2][2][NV];
#pragma GCC unroll 8
  for (int j = 0; j < NV; ++j) {
    V part[2][2];
    transform_products(products + j * S::kLanes, g.products_plane, part);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) y[i / 2][i % 2][j] = part[i / 2][i % 2];
  }
  const int top = tile / tiling.across * 2, left = tile % tiling.across * 2;
  to.first += (tiling.first_pixel + static_cast<size_t>(top) * g.ow + left) * g.oc;
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i, to.first += static_cast<size_t>(g.ow) * g.oc) {
    if (top + i >= tiling.rows) return;
    if (left + 1 < g.ow) {
      store_pixels<S, 2, NV>(y[i], to, columns);
    } else {
      V one[1][NV];
#pragma GCC unroll 8
      for (int j = 0; j < NV; ++j) one[0][j] = y[i][0][j];
      store_pixels<S, 1, NV>(one, to, columns);
    }
  }
}

// One panel of output channels for `count` transformed tiles from `first` on.
template <class S, class P, int NV>
static void winograd_panel(const Conv& g, const Store& store,
                           const WinogradScratch<typename P::A, typename P::Acc>& scratch, const Tiling& tiling,
                           int first, int count, int panel) {
  using Acc = typename P::Acc;
  constexpr int kWidth = S::kVectors * S::kLanes, kRow = NV * S::kLanes;
  const size_t column = static_cast<size_t>(g.steps) * P::kDot;  // weights of one plane
  const auto* b = static_cast<const typename P::B*>(g.weights) + size_t{kPlanes} * panel * kWidth * column;
  // A constant in the middle product is a constant in all four outputs.
  alignas(64) static constexpr Acc kZeros[kWidth] = {};
  const Acc* const bias = static_cast<const Acc*>(g.start) + panel * kWidth;
  for (int p = 0; p < kPlanes; ++p, b += kRow * column) {
    const auto* a = scratch.inputs + p * g.inputs_plane;
    Acc* const out = scratch.products + p * g.products_plane;
    if (g.group_bytes >= kFetchedFilters)
      multiply_plane<S, P, NV, true>(g, a, count, b, p == 5 ? bias : kZeros, out);
    else
      multiply_plane<S, P, NV, false>(g, a, count, b, p == 5 ? bias : kZeros, out);
  }
  alignas(64) Acc acc[2 * kRow];
  const int columns = least(kRow, g.oc - panel * kWidth);
  const Target<Acc> to{columns == kRow ? finish_of<Acc>(store) : Finish::kMemory,
                       &store, acc, static_cast<size_t>(panel) * kWidth, static_cast<size_t>(g.oc), panel * kWidth};
  for (int t = 0; t < count; ++t)
    store_tile<S, P, NV>(g, scratch.products + t * kRow, tiling, first + t, to, columns);
}

template <class S, class P, class... Args>
TRIMTAB_INLINE void winograd_panel_of(int vectors, const Args&... args) {
  if constexpr (S::kVectors > 2) {
    if (vectors == 4) return winograd_panel<S, P, 4>(args...);
    if (vectors == 3) return winograd_panel<S, P, 3>(args...);
  }
  return vectors == 2 ? winograd_panel<S, P, 2>(args...) : winograd_panel<S, P, 1>(args...);
}

template <class S, class P>
static void winograd_block(const Conv& g, const Store& store, const Block<typename P::A>& block,
                           const WinogradScratch<typename P::A, typename P::Acc>& scratch, Span panels) {
  using A = typename P::A;
  using V = std::conditional_t<std::is_same_v<A, float>, typename S::F, typename S::H>;
  const Panels shape = panels_of<S>(g);
  const Tiling tiling{block.pixels / g.ow, (g.ow + 1) / 2, block.first_pixel};
  const int tiles = (tiling.rows + 1) / 2 * tiling.across;
  const ptrdiff_t input_row = static_cast<ptrdiff_t>(g.scratch_w) * g.ic;
  for (int first = 0; first < tiles; first += g.tiles) {
    const int count = least(g.tiles, tiles - first);
    for (int t = 0; t < count; ++t) {
      const int ty = (first + t) / tiling.across, tx = (first + t) % tiling.across;
      transform_inputs<V>(block.base + 2 * ty * input_row + 2 * tx * g.ic, input_row, g.ic,
                          scratch.inputs + t * g.tile_channels, g.inputs_plane);
    }
    for (int panel = panels.first; panel < panels.last; ++panel)
      winograd_panel_of<S, P>(least(S::kVectors, shape.vectors - panel * S::kVectors), g, store, scratch, tiling, first,
                              count, panel);
  }
}

// Scratch: what WinogradScratch names, then what for_blocks needs; conv.cpp reserves it so.
template <class S, class P, class T>
static void winograd(const Conv& g, const Store& store, const Operand& in, const Task& task) {
  using A = typename P::A;
  using Acc = typename P::Acc;
  const bool by_block = shares_blocks(g, task);
  const int panels = panels_of<S>(g).per_group;
  const Span mine = by_block ? Span{0, panels} : share(panels, task.thread, task.threads);
  WinogradScratch<A, Acc> scratch;
  scratch.inputs = reinterpret_cast<A*>(task.scratch);
  scratch.products = reinterpret_cast<Acc*>(scratch.inputs + kPlanes * static_cast<size_t>(g.inputs_plane));
  Task inner = task;
  inner.scratch = reinterpret_cast<char*>(scratch.products + kPlanes * static_cast<size_t>(g.products_plane));
  for_blocks<A, T>(g, in, inner, by_block, A{0}, [&](const Block<A>& block) {
    winograd_block<S, P>(g, store, block, scratch, mine);
  });
}

}  // namespace
}  // namespace trimtab
