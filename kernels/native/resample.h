// Images of another size: bilinear interpolation, and channels that become pixels.
#pragma once

#include "elementwise.h"

namespace trimtab {
namespace {

// Rows [first, last) of the output, in all images: two rows become one, whose columns are then mixed.
template <class S>
static void bilinear(const BilinearArgs& g, const Operand& in, const Store& s, size_t first, size_t last,
                     char* scratch) {
  using F = typename S::F;
  const size_t channels = g.c, line = channels * g.iw;
  const Operand mixed{scratch, 1.0f, 1.0f, 0, 0, false};
  for (size_t row = first; row < last; ++row) {
    const Tap& y = g.rows[row % g.oh];
    const size_t image = row / g.oh * g.ih, above = (image + y.first) * line, below = (image + y.second) * line;
    const F upper = S::set(1.0f - y.share), lower = S::set(y.share);
    for_vectors<S>(line, [&](size_t i, int count) {
      const F x = load_real<S>(in, above + i, count) * upper + load_real<S>(in, below + i, count) * lower;
      store_real<S>(mixed, i, x, count);
    });
    for (int column = 0; column < g.ow; ++column) {
      const Tap& x = g.columns[column];
      const size_t before = x.first * channels, after = x.second * channels, to = (row * g.ow + column) * channels;
      const F left = S::set(1.0f - x.share), right = S::set(x.share);
      for_vectors<S>(channels, [&](size_t c, int count) {
        const F sum = load_real<S>(mixed, before + c, count) * left + load_real<S>(mixed, after + c, count) * right;
        store_real<S>(s.out, to + c, sum, count);
      });
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

// Four bytes are one lane of integers: quicker than GCC's shuffles of bytes in 64-byte vectors, not in shorter ones.
template <class S>
static void deal_bytes_to_four(const uint8_t* in, uint8_t* a, uint8_t* b, uint8_t* c, uint8_t* d, size_t channels) {
  struct Four {
    uint8_t bytes[4];
  };
  const typename S::I byte = S::set(int32_t{255});
  for_vectors<S>(channels, [&](size_t i, int count) {
    const auto all = load_some<S, typename S::I>(reinterpret_cast<const Four*>(in) + i, count);
    store_u8_some<S>(a + i, all & byte, count);
    store_u8_some<S>(b + i, (all >> 8) & byte, count);
    store_u8_some<S>(c + i, (all >> 16) & byte, count);
    store_u8_some<S>(d + i, (all >> 24) & byte, count);
  });
}

template <class S, class T>
static void depth_to_space_typed(const DepthToSpaceArgs& g, const T* in, T* out, size_t first, size_t last) {
  const size_t channels = g.c, line = channels * g.ow;
  const int block = g.block_h * g.block_w;
  const bool quick = g.block_h == 2 && g.block_w == 2 && g.c >= S::kLanes;
  for (size_t row = first; row < last; ++row) {
    const size_t image = row / g.ih * g.oh;
    const int y = static_cast<int>(row % g.ih) * g.block_h - g.top;
    const int i0 = greatest(0, -y), i1 = least(g.block_h, g.oh - y);
    const T* from = in + row * g.iw * channels * block;
    for (int x = -g.left; x < g.ow; x += g.block_w, from += channels * block) {
      const int j0 = greatest(0, -x), j1 = least(g.block_w, g.ow - x);
      const auto pixel = [&](int i, int j) { return out + (image + y + i) * line + (x + j) * channels; };
      if (quick && i1 - i0 == 2 && j1 - j0 == 2) {
        if constexpr (sizeof(T) == 1 && S::kLanes == 16)
          deal_bytes_to_four<S>(from, pixel(0, 0), pixel(0, 1), pixel(1, 0), pixel(1, 1), channels);
        else
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

template <class S>
static void depth_to_space(const DepthToSpaceArgs& g, const Operand& in, const Operand& out, size_t first,
                           size_t last) {
  if (in.is_u8)
    depth_to_space_typed<S>(g, static_cast<const uint8_t*>(in.data), static_cast<uint8_t*>(out.data), first, last);
  else
    depth_to_space_typed<S>(g, static_cast<const float*>(in.data), static_cast<float*>(out.data), first, last);
}

}  // namespace
}  // namespace trimtab
