// 3x3 convolutions with fewer products than the nine that every output has (Lavin and Gray 2016, Fast Algorithms for
// Convolutional Neural Networks, section 4). Integers are exact.
#pragma once

#include <type_traits>

#include "gemm.h"

namespace trimtab {
namespace {

constexpr size_t kFetchedFilters = 512 * 1024;  // bytes of weights that have left the cache since the last run

constexpr ptrdiff_t kLineBytes = 64;  // that one prefetch brings

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

// Stride 1, F(2x2, 3x3): 16 products for 4 outputs. Integer filters are transformed with 2G, so that a sum is 4 times the
// accumulator, and the scale holds the quarter.
struct TwoByTwo {
  static constexpr int kSide = 2;                    // outputs of a tile along one side
  static constexpr int kStep = 2;                    // input columns from tile to tile
  static constexpr int kPlanes = 16, kSegments = 16;
  static constexpr int kMiddle = 5;                  // the plane whose constants reach all outputs alike
  static constexpr int segments(int) { return 1; }            // of `channels` inputs, in each product of plane p

  // B^T d B for one tile, all channels. d: `row` elements between its rows.
  template <class V, class A>
  TRIMTAB_INLINE void transform_inputs(const A* d, ptrdiff_t row, int channels, A* to, size_t plane, int t,
                                       int stride) {
    constexpr int kWide = sizeof(V) / sizeof(A);
    to += static_cast<size_t>(t) * stride;
    for (int c = 0; c < channels; c += kWide) {
      V v[4][4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        V x[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) std::memcpy(&x[i], d + i * row + j * channels + c, sizeof(V));
        v[0][j] = x[0] - x[2];
        v[1][j] = x[1] + x[2];
        v[2][j] = x[2] - x[1];
        v[3][j] = x[1] - x[3];
      }
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const V u[4] = {v[i][0] - v[i][2], v[i][1] + v[i][2], v[i][2] - v[i][1], v[i][1] - v[i][3]};
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
};

// Stride 1, F(4x4, 3x3): 36 products for 16 outputs, at the points 0, 1, -1, 2, -2. Filters are transformed with 24G, of which
// the factors that would not fit int16 beside 128 are left to the outputs: a sum is 576 = 9 * 64 times the accumulator, modulo
// 2^32, where 9 can be divided by exactly; the scale holds the 64th. Float filters hold all of it.
struct FourByFour {
  static constexpr int kSide = 4, kStep = 4, kPlanes = 36, kSegments = 36, kMiddle = 7;
  static constexpr int segments(int) { return 1; }

  // One row of B^T: six inputs, `step` vectors apart.
  template <class V>
  TRIMTAB_INLINE void inputs_along(const V* d, int step, V* to) {
    const V d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step], d5 = d[5 * step];
    const V even = d4 - d2, odd = d3 - d1, twice = odd + odd;
    const V even_one = d4 - 4 * d2, odd_one = d3 - 4 * d1;
    to[0] = 4 * (d0 - d2) + even;
    to[step] = even_one + odd_one;
    to[2 * step] = even_one - odd_one;
    to[3 * step] = even + twice;
    to[4 * step] = even - twice;
    to[5 * step] = (d5 - d3) - 2 * twice;
  }

  // B^T d B for one tile, all channels. d: `row` elements between its rows.
  template <class V, class A>
  TRIMTAB_INLINE void transform_inputs(const A* d, ptrdiff_t row, int channels, A* to, size_t plane, int t,
                                       int stride) {
    constexpr int kWide = sizeof(V) / sizeof(A);
    to += static_cast<size_t>(t) * stride;
    for (int c = 0; c < channels; c += kWide) {
      V v[6][6];
#pragma GCC unroll 6
      for (int j = 0; j < 6; ++j) {
        V x[6], u[6];
#pragma GCC unroll 6
        for (int i = 0; i < 6; ++i) std::memcpy(&x[i], d + i * row + j * channels + c, sizeof(V));
        inputs_along(x, 1, u);
#pragma GCC unroll 6
        for (int i = 0; i < 6; ++i) v[i][j] = u[i];
      }
#pragma GCC unroll 6
      for (int i = 0; i < 6; ++i) {
        V u[6];
        inputs_along(v[i], 1, u);
#pragma GCC unroll 6
        for (int j = 0; j < 6; ++j) std::memcpy(to + (6 * i + j) * plane + c, &u[j], sizeof(V));
      }
    }
  }

  // One row of A^T, which holds what the filters leave out of 24.
  template <class V>
  TRIMTAB_INLINE void products_along(const V (&m)[6], V (&y)[4]) {
    const V sum = m[1] + m[2], difference = m[1] - m[2], far = m[3] + m[4], twice = 2 * (m[3] - m[4]);
    y[0] = m[0] + far - 4 * sum;
    y[1] = twice - 4 * difference;
    y[2] = 4 * (far - sum);
    y[3] = 4 * (twice - difference + m[5]);
  }

  // A^T m A for one tile and one vector of columns.
  template <class V, class Acc>
  TRIMTAB_INLINE void transform_products(const Acc* m, size_t plane, V (&y)[4][4]) {
    V s[4][6];
#pragma GCC unroll 6
    for (int j = 0; j < 6; ++j) {
      V v[6], u[4];
#pragma GCC unroll 6
      for (int i = 0; i < 6; ++i) std::memcpy(&v[i], m + (6 * i + j) * plane, sizeof(V));
      products_along(v, u);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) s[i][j] = u[i];
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      products_along(s[i], y[i]);
      if constexpr (std::is_same_v<Acc, int32_t>) {
        constexpr int32_t kNinth = 0x38E38E39;  // 9 * kNinth = 1 modulo 2^32
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) y[i][j] *= kNinth;
      }
    }
  }
};

// Stride 2: 25 products. Of five inputs the even ones meet two taps, F(2, 2): (e0 - e1) g0 + e1 (g0 + g2) and
// e1 (g0 + g2) + (e2 - e1) g2; the odd ones meet one, and their products o0 g1 and o1 g1 are added to the first and
// the last of those three. So there are 3x3 planes, and products of more than one segment in eight of them.
struct StrideTwo {
  static constexpr int kSide = 2, kStep = 4, kPlanes = 9, kSegments = 25, kMiddle = 4;
  static constexpr int along(int i) { return i == 1 ? 1 : 2; }
  static constexpr int segments(int p) { return along(p / 3) * along(p % 3); }
  static constexpr int first_segment(int p) { return p == 0 ? 0 : first_segment(p - 1) + segments(p - 1); }
  // In order of (plane, segment): e0 - e1, o0, e1, e2 - e1, o1.
  static constexpr int kPlane[5] = {0, 0, 1, 2, 2}, kSegment[5] = {0, 1, 0, 0, 1};

  template <class V, class A>
  TRIMTAB_INLINE void transform_inputs(const A* d, ptrdiff_t row, int channels, A* to, size_t plane, int t,
                                       int stride) {
    constexpr int kWide = sizeof(V) / sizeof(A);
    constexpr int kFirst[5] = {0, 1, 2, 4, 3}, kMinus[5] = {2, -1, -1, 2, -1};
    for (int c = 0; c < channels; c += kWide) {
#pragma GCC unroll 5
      for (int i = 0; i < 5; ++i) {
        V x[5];
#pragma GCC unroll 5
        for (int j = 0; j < 5; ++j) {
          std::memcpy(&x[j], d + kFirst[i] * row + j * channels + c, sizeof(V));
          if (kMinus[i] < 0) continue;
          V minus;
          std::memcpy(&minus, d + kMinus[i] * row + j * channels + c, sizeof(V));
          x[j] -= minus;
        }
#pragma GCC unroll 5
        for (int j = 0; j < 5; ++j) {
          const V u = kMinus[j] < 0 ? x[kFirst[j]] : x[kFirst[j]] - x[kMinus[j] < 0 ? 0 : kMinus[j]];
          const int p = 3 * kPlane[i] + kPlane[j], at = kSegment[i] * along(kPlane[j]) + kSegment[j];
          std::memcpy(to + first_segment(p) * plane + (static_cast<size_t>(t) * segments(p) + at) * stride + c, &u,
                      sizeof(V));
        }
      }
    }
  }

  template <class V, class Acc>
  TRIMTAB_INLINE void transform_products(const Acc* m, size_t plane, V (&y)[2][2]) {
    V s[2][3];
#pragma GCC unroll 3
    for (int j = 0; j < 3; ++j) {
      V v[3];
#pragma GCC unroll 3
      for (int i = 0; i < 3; ++i) std::memcpy(&v[i], m + (3 * i + j) * plane, sizeof(V));
      s[0][j] = v[0] + v[1];
      s[1][j] = v[1] + v[2];
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      y[i][0] = s[i][0] + s[i][1];
      y[i][1] = s[i][1] + s[i][2];
    }
  }
};

// MR tiles times NV vectors of columns in one plane; `stride` elements between the tiles' inputs. With Ahead, what the
// tiles of the next plane will read is fetched from `ahead` on, `ahead_step` bytes further with every step.
template <class S, class P, int MR, int NV, bool Ahead>
TRIMTAB_INLINE void multiply_tiles(const typename P::A* a, ptrdiff_t stride, int steps, const typename P::B* b,
                                   const char* ahead, ptrdiff_t ahead_step, const typename P::Acc* start,
                                   typename P::Acc* out) {
  using V = typename P::V;
  V acc[MR][NV];
  start_tile<S>(start, acc);
  for (int k = 0; k < steps; ++k) {
    V right[NV];
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) right[j] = P::weights(b + j * S::kLanes * P::kDot);
    b += NV * S::kLanes * P::kDot;
    if constexpr (Ahead) {
      for (ptrdiff_t line = 0; line < ahead_step; line += kLineBytes) __builtin_prefetch(ahead + line);
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
  spill_tile<S>(acc, out);
}

// Plane `a` times its weights b: `steps` for each of its tiles, which lie `stride` elements apart.
template <class P>
struct Product {
  const typename P::A* a;
  ptrdiff_t stride;
  int steps;
  const typename P::B* b;
  const typename P::Acc* start;
  typename P::Acc* out;
};

// The tiles [first, count) as far as blocks of MR tiles reach; returns the first tile that is left.
template <class S, class P, int MR, int NV, bool Ahead>
TRIMTAB_INLINE int multiply_blocks(const Product<P>& p, int first, int count) {
  // While the tiles of this plane pass, the weights of the next one come closer, a share with every tile.
  constexpr ptrdiff_t kStep = NV * sizeof(typename P::V);
  const ptrdiff_t size = kStep * p.steps, ahead_step = (kStep * MR + count - 1) / count;
  for (; first + MR <= count; first += MR)
    multiply_tiles<S, P, MR, NV, Ahead>(p.a + first * p.stride, p.stride, p.steps, p.b,
                                                reinterpret_cast<const char*>(p.b) + size + size * first / count,
                                                ahead_step, p.start, p.out + first * NV * S::kLanes);
  return first;
}

// All tiles of one plane with one panel of NV vectors. Not `micro`: a plane has few steps, so what surrounds them counts.
template <class S, class P, int NV, bool Ahead>
static void multiply_plane(const Product<P>& p, int count) {
  int t = multiply_blocks<S, P, S::kRows, NV, Ahead>(p, 0, count);
  t = multiply_blocks<S, P, 4, NV, Ahead>(p, t, count);
  t = multiply_blocks<S, P, 2, NV, Ahead>(p, t, count);
  multiply_blocks<S, P, 1, NV, Ahead>(p, t, count);
}

// Stores `Pixels` neighbours of an output row.
template <class S, int Pixels, int NV, class V, class Acc>
TRIMTAB_INLINE void store_pixels(const V (&y)[Pixels][NV], const Target<Acc>& to) {
  if (to.finish != Finish::kMemory) return finish_tile<S>(y, to);
  spill_tile<S>(y, to.acc);
  const int columns = (NV - 1) * S::kLanes + to.last;
  emit<S>(*to.store, to.acc, NV * S::kLanes, Pixels, columns, to.first, to.step, to.channel);
}

// The first `count` of them.
template <class S, int Pixels, int NV, class V, class Acc>
static void store_first(const V (&y)[Pixels][NV], int count, Target<Acc> to) {
  for (int i = 0; i < count; ++i, to.first += to.step) {
    V one[1][NV];
    std::memcpy(one, y[i], sizeof one);
    store_pixels<S, 1, NV>(one, to);
  }
}

// The outputs of one tile, as far as they lie in the image.
template <class S, class P, class Scheme, int NV>
TRIMTAB_INLINE void store_tile(const Conv& g, const typename P::Acc* products, const Tiling& tiling, int tile,
                               Target<typename P::Acc> to) {
  using V = typename P::V;
  constexpr int kSide = Scheme::kSide;
  V y[kSide][kSide][NV];
#pragma GCC unroll 8
  for (int j = 0; j < NV; ++j) {
    V part[kSide][kSide];
    Scheme::transform_products(products + j * S::kLanes, g.products_plane, part);
#pragma GCC unroll 16
    for (int i = 0; i < kSide * kSide; ++i) y[i / kSide][i % kSide][j] = part[i / kSide][i % kSide];
  }
  const int top = tile / tiling.across * kSide, left = tile % tiling.across * kSide;
  to.first += (tiling.first_pixel + static_cast<size_t>(top) * g.ow + left) * g.oc;
#pragma GCC unroll 4
  for (int i = 0; i < kSide; ++i, to.first += static_cast<size_t>(g.ow) * g.oc) {
    if (top + i >= tiling.rows) return;
    if (left + kSide <= g.ow)
      store_pixels<S, kSide, NV>(y[i], to);
    else
      store_first<S, kSide, NV>(y[i], g.ow - left, to);
  }
}

// One panel of output channels for `count` transformed tiles from `first` on.
template <class S, class P, class Scheme, int NV>
static void winograd_panel(const Conv& g, const Store& store,
                           const WinogradScratch<typename P::A, typename P::Acc>& scratch, const Tiling& tiling,
                           int first, int count, int panel) {
  using Acc = typename P::Acc;
  constexpr int kWidth = S::kVectors * S::kLanes, kRow = NV * S::kLanes;
  const size_t segment = static_cast<size_t>(g.steps) * P::kDot;  // inputs
  const auto* b = static_cast<const typename P::B*>(g.weights) + size_t{Scheme::kSegments} * panel * kWidth * segment;
  // A constant in the middle product is a constant in all four outputs.
  alignas(64) static constexpr Acc kZeros[kWidth] = {};
  const Acc* const bias = static_cast<const Acc*>(g.start) + panel * kWidth;
  const auto* a = scratch.inputs;
  for (int p = 0; p < Scheme::kPlanes; ++p) {
    const int segments = Scheme::segments(p);
    const Product<P> product{a, static_cast<ptrdiff_t>(segments) * g.tile_channels, segments * g.steps, b,
                             p == Scheme::kMiddle ? bias : kZeros, scratch.products + p * g.products_plane};
    if (g.group_bytes >= kFetchedFilters)
      multiply_plane<S, P, NV, true>(product, count);
    else
      multiply_plane<S, P, NV, false>(product, count);
    a += static_cast<size_t>(segments) * g.inputs_plane;
    b += segments * segment * kRow;
  }
  alignas(64) Acc acc[Scheme::kSide * kRow];
  const int columns = least(kRow, g.oc - panel * kWidth);
  const Target<Acc> to{finish_of<Acc>(store), &store, acc, static_cast<size_t>(panel) * kWidth, static_cast<size_t>(g.oc),
                       panel * kWidth, columns - (NV - 1) * S::kLanes, nullptr, 0};
  for (int t = 0; t < count; ++t)
    store_tile<S, P, Scheme, NV>(g, scratch.products + t * kRow, tiling, first + t, to);
}

template <class S, class P, class Scheme, class... Args>
TRIMTAB_INLINE void winograd_panel_of(int vectors, const Args&... args) {
  if constexpr (S::kVectors > 2) {
    if (vectors == 4) return winograd_panel<S, P, Scheme, 4>(args...);
    if (vectors == 3) return winograd_panel<S, P, Scheme, 3>(args...);
  }
  return vectors == 2 ? winograd_panel<S, P, Scheme, 2>(args...) : winograd_panel<S, P, Scheme, 1>(args...);
}

template <class S, class P, class Scheme>
static void winograd_block(const Conv& g, const Store& store, const Block<typename P::A>& block,
                           const WinogradScratch<typename P::A, typename P::Acc>& scratch, Span panels) {
  using A = typename P::A;
  using V = std::conditional_t<std::is_same_v<A, float>, typename S::F, typename S::H>;
  const Panels shape = panels_of<S>(g);
  constexpr int kSide = Scheme::kSide;
  const Tiling tiling{block.pixels / g.ow, (g.ow + kSide - 1) / kSide, block.first_pixel};
  const int tiles = (tiling.rows + kSide - 1) / kSide * tiling.across;
  const ptrdiff_t input_row = static_cast<ptrdiff_t>(g.scratch_w) * g.ic;
  for (int first = 0; first < tiles; first += g.tiles) {
    const int count = least(g.tiles, tiles - first);
    for (int t = 0; t < count; ++t) {
      const int ty = (first + t) / tiling.across, tx = (first + t) % tiling.across;
      Scheme::template transform_inputs<V>(block.base + Scheme::kStep * (ty * input_row + tx * g.ic), input_row, g.ic,
                                           scratch.inputs, g.inputs_plane, t, g.tile_channels);
    }
    for (int panel = panels.first; panel < panels.last; ++panel)
      winograd_panel_of<S, P, Scheme>(least(S::kVectors, shape.vectors - panel * S::kVectors), g, store, scratch, tiling, first,
                              count, panel);
  }
}

// Scratch: what WinogradScratch names, then what for_blocks needs; conv.cpp reserves it so.
template <class S, class P, class T, class Scheme>
static void winograd_of(const Conv& g, const Store& store, const Operand& in, const Task& task) {
  using A = typename P::A;
  using Acc = typename P::Acc;
  const bool by_block = shares_blocks(g, task);
  const int panels = panels_of<S>(g).per_group;
  const Span mine = by_block ? Span{0, panels} : share(panels, task.thread, task.threads);
  WinogradScratch<A, Acc> scratch;
  scratch.inputs = reinterpret_cast<A*>(task.scratch);
  scratch.products = reinterpret_cast<Acc*>(scratch.inputs + size_t{Scheme::kSegments} * g.inputs_plane);
  Task inner = task;
  inner.scratch = reinterpret_cast<char*>(scratch.products + Scheme::kPlanes * static_cast<size_t>(g.products_plane));
  for_blocks<A, T>(g, in, inner, by_block, A{0}, [&](const Block<A>& block) {
    winograd_block<S, P, Scheme>(g, store, block, scratch, mine);
  });
}

template <class S, class P, class T>
static void winograd(const Conv& g, const Store& store, const Operand& in, const Task& task) {
  if (g.stride_h == 2)
    winograd_of<S, P, T, StrideTwo>(g, store, in, task);
  else if (g.tile_side == 4)
    winograd_of<S, P, T, FourByFour>(g, store, in, task);
  else
    winograd_of<S, P, T, TwoByTwo>(g, store, in, task);
}

}  // namespace
}  // namespace trimtab
