// Images of another size: bilinear interpolation, and channels that become pixels.
#pragma once

#include "epilogue.h"

namespace trimtab {
namespace {

template <class S>
static void bilinear(const BilinearArgs& g, const Operand& in, const Store& s, size_t first, size_t last) {
  using F = typename S::F;
  const size_t channels = g.c;
  for (size_t pixel = first; pixel < last; ++pixel) {
    const Tap &row = g.rows[pixel / g.ow % g.oh], &column = g.columns[pixel % g.ow];
    const size_t image = pixel / (static_cast<size_t>(g.ow) * g.oh) * g.ih;
    const size_t above = (image + row.first) * g.iw, below = (image + row.second) * g.iw;
    const F right = S::set(column.share), left = S::set(1.0f - column.share);
    const F lower = S::set(row.share), upper = S::set(1.0f - row.share);
    for (size_t c = 0; c < channels; c += S::kLanes) {
      const int lanes = static_cast<int>(least<size_t>(S::kLanes, channels - c));
      const auto between = [&](size_t line) {
        return load_real<S>(in, (line + column.first) * channels + c, lanes) * left +
               load_real<S>(in, (line + column.second) * channels + c, lanes) * right;
      };
      store_real<S>(s.out, pixel * channels + c, between(above) * upper + between(below) * lower, lanes);
    }
  }
}

// Every fourth value to each of four pixels: constant distances, which compilers make shuffles of.
template <class T>
static void deal_to_four(const T* __restrict in, T* __restrict a, T* __restrict b, T* __restrict c, T* __restrict d,
                         size_t channels) {
  for (size_t i = 0; i < channels; ++i) {
    a[i] = in[4 * i];
    b[i] = in[4 * i + 1];
    c[i] = in[4 * i + 2];
    d[i] = in[4 * i + 3];
  }
}

template <class T>
static void depth_to_space_typed(const DepthToSpaceArgs& g, const T* in, T* out, size_t first, size_t last) {
  const size_t channels = g.c, line = channels * g.ow;
  const int block = g.block_h * g.block_w;
  for (size_t row = first; row < last; ++row) {
    const size_t image = row / g.ih * g.oh;
    const int y = static_cast<int>(row % g.ih) * g.block_h - g.top;
    const int i0 = greatest(0, -y), i1 = least(g.block_h, g.oh - y);
    const T* from = in + row * g.iw * channels * block;
    for (int x = -g.left; x < g.ow; x += g.block_w, from += channels * block) {
      const int j0 = greatest(0, -x), j1 = least(g.block_w, g.ow - x);
      const auto pixel = [&](int i, int j) { return out + (image + y + i) * line + (x + j) * channels; };
      if (g.block_h == 2 && g.block_w == 2 && i1 - i0 == 2 && j1 - j0 == 2) {
        deal_to_four(from, pixel(0, 0), pixel(0, 1), pixel(1, 0), pixel(1, 1), channels);
        continue;
      }
      for (int i = i0; i < i1; ++i) {
        for (int j = j0; j < j1; ++j) {
          const T* const source = from + i * g.block_w + j;
          T* const to = pixel(i, j);
          for (size_t c = 0; c < channels; ++c) to[c] = source[c * block];
        }
      }
    }
  }
}

static void depth_to_space(const DepthToSpaceArgs& g, const Operand& in, const Operand& out, size_t first,
                           size_t last) {
  if (in.is_u8)
    depth_to_space_typed(g, static_cast<const uint8_t*>(in.data), static_cast<uint8_t*>(out.data), first, last);
  else
    depth_to_space_typed(g, static_cast<const float*>(in.data), static_cast<float*>(out.data), first, last);
}

}  // namespace
}  // namespace trimtab
