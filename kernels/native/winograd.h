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

// This thread's scratch: planes of transformed inputs [tile][channel], planes of products [tile][column of the
// panel], and the two rows of outputs [2 * tile][column].
template <class A, class Acc>
struct WinogradScratch {
  A* inputs;
  Acc *products, *outputs[2];
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

// A^T m A for one tile and one vector of columns; the four outputs go to out[y] and the pixel after it.
template <class V, class Acc>
TRIMTAB_INLINE void transform_products(const Acc* m, size_t plane, Acc* const out[2], int pixel) {
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
  for (int y = 0; y < 2; ++y) {
    const V left = s[y][0] + s[y][1] + s[y][2], right = s[y][1] - s[y][2] - s[y][3];
    std::memcpy(out[y], &left, sizeof(V));
    std::memcpy(out[y] + pixel, &right, sizeof(V));
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

template <class P>
using Plane = void (*)(const Conv&, const typename P::A*, int, const typename P::B*, const typename P::Acc*,
                       typename P::Acc*);

template <class S, class P, bool Ahead>
static Plane<P> plane_kernel(int vectors) {
  if constexpr (S::kVectors > 2) {
    if (vectors == 4) return &multiply_plane<S, P, 4, Ahead>;
    if (vectors == 3) return &multiply_plane<S, P, 3, Ahead>;
  }
  return vectors == 2 ? &multiply_plane<S, P, 2, Ahead> : &multiply_plane<S, P, 1, Ahead>;
}

// Stores the outputs of tiles [first, first + count) of a block; `rows` and g.ow say which of them lie in the image.
template <class S, class Acc>
static void emit_tiles(const Conv& g, const Store& store, Acc* const outputs[2], int first, int count, int rows,
                       size_t first_pixel, int row, int columns, int channel) {
  const int across = (g.ow + 1) / 2;
  for (int t = 0; t < count;) {
    const int ty = (first + t) / across, tx = (first + t) % across;
    const int tiles = least(across - tx, count - t), pixels = least(2 * tiles, g.ow - 2 * tx);
    for (int y = 2 * ty; y < least(2 * ty + 2, rows); ++y) {
      const size_t pixel = first_pixel + static_cast<size_t>(y) * g.ow + 2 * tx;
      emit<S>(store, outputs[y & 1] + 2 * t * row, row, pixels, columns, pixel * g.oc + channel, g.oc, channel);
    }
    t += tiles;
  }
}

// One panel of output channels for `count` transformed tiles.
template <class S, class P>
static void winograd_panel(const Conv& g, const WinogradScratch<typename P::A, typename P::Acc>& scratch, int count,
                           int panel, int vectors) {
  using Acc = typename P::Acc;
  using V = typename P::V;
  constexpr int kWidth = S::kVectors * S::kLanes;
  const int row = vectors * S::kLanes;
  const size_t column = static_cast<size_t>(g.steps) * P::kDot;  // weights of one plane
  // A constant in the middle product is a constant in all four outputs.
  alignas(64) static constexpr Acc kZeros[kWidth] = {};
  const Acc* const bias = static_cast<const Acc*>(g.start) + panel * kWidth;
  const Plane<P> kernel =
      g.group_bytes >= kFetchedFilters ? plane_kernel<S, P, true>(vectors) : plane_kernel<S, P, false>(vectors);
  for (int p = 0; p < kPlanes; ++p) {
    const auto* b =
        static_cast<const typename P::B*>(g.weights) + (size_t{kPlanes} * panel * kWidth + p * row) * column;
    const auto* a = scratch.inputs + p * g.inputs_plane;
    Acc* const out = scratch.products + p * g.products_plane;
    kernel(g, a, count, b, p == 5 ? bias : kZeros, out);
  }
  for (int t = 0; t < count; ++t) {
    for (int c = 0; c < row; c += S::kLanes) {
      Acc* const out[2] = {scratch.outputs[0] + 2 * t * row + c, scratch.outputs[1] + 2 * t * row + c};
      transform_products<V>(scratch.products + t * row + c, g.products_plane, out, row);
    }
  }
}

template <class S, class P>
static void winograd_block(const Conv& g, const Store& store, const Block<typename P::A>& block,
                           const WinogradScratch<typename P::A, typename P::Acc>& scratch, Span panels) {
  using A = typename P::A;
  using V = std::conditional_t<std::is_same_v<A, float>, typename S::F, typename S::H>;
  constexpr int kWidth = S::kVectors * S::kLanes;
  const Panels shape = panels_of<S>(g);
  const int rows = block.pixels / g.ow, across = (g.ow + 1) / 2, tiles = (rows + 1) / 2 * across;
  const ptrdiff_t input_row = static_cast<ptrdiff_t>(g.scratch_w) * g.ic;
  for (int first = 0; first < tiles; first += g.tiles) {
    const int count = least(g.tiles, tiles - first);
    for (int t = 0; t < count; ++t) {
      const int ty = (first + t) / across, tx = (first + t) % across;
      transform_inputs<V>(block.base + 2 * ty * input_row + 2 * tx * g.ic, input_row, g.ic,
                          scratch.inputs + t * g.tile_channels, g.inputs_plane);
    }
    for (int panel = panels.first; panel < panels.last; ++panel) {
      const int vectors = least(S::kVectors, shape.vectors - panel * S::kVectors);
      winograd_panel<S, P>(g, scratch, count, panel, vectors);
      emit_tiles<S>(g, store, scratch.outputs, first, count, rows, block.first_pixel, vectors * S::kLanes,
                    least(vectors * S::kLanes, g.oc - panel * kWidth), panel * kWidth);
    }
  }
}

// Scratch: what WinogradScratch names, then what for_blocks needs; conv.cpp reserves it so.
template <class S, class P, class T>
static void winograd(const Conv& g, const Store& store, const Operand& in, const Task& task) {
  using A = typename P::A;
  using Acc = typename P::Acc;
  constexpr int kWidth = S::kVectors * S::kLanes;
  const bool by_block = shares_blocks(g, task);
  const int panels = panels_of<S>(g).per_group;
  const Span mine = by_block ? Span{0, panels} : share(panels, task.thread, task.threads);
  WinogradScratch<A, Acc> scratch;
  scratch.inputs = reinterpret_cast<A*>(task.scratch);
  scratch.products = reinterpret_cast<Acc*>(scratch.inputs + kPlanes * static_cast<size_t>(g.inputs_plane));
  scratch.outputs[0] = scratch.products + kPlanes * static_cast<size_t>(g.products_plane);
  scratch.outputs[1] = scratch.outputs[0] + 2 * g.tiles * kWidth;
  Task inner = task;
  inner.scratch = reinterpret_cast<char*>(scratch.outputs[1] + 2 * g.tiles * kWidth);
  for_blocks<A, T>(g, in, inner, by_block, A{0}, [&](const Block<A>& block) {
    winograd_block<S, P>(g, store, block, scratch, mine);
  });
}

}  // namespace
}  // namespace trimtab
