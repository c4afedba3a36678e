// Conversion, addition, multiplication, what has numbers per channel, pooling and the network's input.
#pragma once

#include "epilogue.h"

namespace trimtab {
namespace {

template <class S>
static void convert(const Operand& in, const Store& s, size_t rows, size_t width, size_t stride) {
  for_curve(s.curve, [&](auto curve) {
    for (size_t r = 0; r < rows; ++r) {
      for (size_t i = 0; i < width; i += S::kLanes) {
        const int count = static_cast<int>(least<size_t>(S::kLanes, width - i));
        finish_real<S, curve.value>(s, r * stride + i, load_real<S>(in, r * width + i), count);
      }
    }
  });
}

template <class S>
static void add(const Operand& a, const Operand& b, const Store& s, size_t first, size_t last) {
  for_curve(s.curve, [&](auto curve) {
    for (size_t i = first; i < last; i += S::kLanes) {
      const int count = static_cast<int>(least<size_t>(S::kLanes, last - i));
      finish_real<S, curve.value>(s, i, load_real<S>(a, i) + load_real<S>(b, i), count);
    }
  });
}

template <class S>
static void mul(const Operand& a, const Operand& b, const Store& s, size_t first, size_t last, size_t c,
                size_t gate) {
  for (size_t pixel = first; pixel < last; ++pixel) {
    const size_t left = pixel * c, right = (gate != 0 ? pixel / gate : pixel) * c;
    for (size_t i = 0; i < c; i += S::kLanes) {
      const int count = static_cast<int>(least<size_t>(S::kLanes, c - i));
      store_real<S>(s.out, left + i, load_real<S>(a, left + i) * load_real<S>(b, right + i), count);
    }
  }
}

// each(i, count) for vectors of n elements. The last one reaches back into the one before, which is quicker than a part
// of a vector: for what may be computed twice.
template <class S, class Each>
TRIMTAB_INLINE void for_vectors(size_t n, const Each& each) {
  size_t i = 0;
  for (; i + S::kLanes <= n; i += S::kLanes) each(i, S::kLanes);
  if (i == n) return;
  if (n > S::kLanes)
    each(n - S::kLanes, S::kLanes);
  else
    each(0, static_cast<int>(n));
}

// each(x, channel, count) of every value, up to one vector of channels at a time.
template <class S, class Each>
TRIMTAB_INLINE void for_channels(const Operand& in, const Store& s, size_t first, size_t last, size_t c,
                                 const Each& each) {
  for (size_t i = first * c; i < last * c; i += c) {
    for_vectors<S>(c, [&](size_t channel, int count) {
      store_real<S>(s.out, i + channel, each(load_real<S>(in, i + channel), channel, count), count);
    });
  }
}

template <class S>
static void prelu(const Operand& in, const Store& s, const float* slope, size_t first, size_t last, size_t c) {
  using F = typename S::F;
  const F zero = S::set(0.0f), most = S::set(__builtin_inff()), lowest = zero - most;
  for_channels<S>(in, s, first, last, c, [&](F x, size_t channel, int count) {
    return S::activate(x, zero, most) + load_some<S, F>(slope + channel, count) * S::activate(x, lowest, zero);
  });
}

template <class S>
static void channel_affine(const Operand& in, const Store& s, const float* weight, const float* bias, size_t first,
                           size_t last, size_t c) {
  using F = typename S::F;
  for_channels<S>(in, s, first, last, c, [&](F x, size_t channel, int count) {
    return x * load_some<S, F>(weight + channel, count) + load_some<S, F>(bias + channel, count);
  });
}

// The part of a pooling window that lies inside its image.
struct Window {
  int y0, y1, x0, x1, count;
  size_t image;  // first pixel of the image
};

TRIMTAB_INLINE Window window_of(const PoolArgs& g, size_t pixel) {
  const int x = static_cast<int>(pixel % g.ow), y = static_cast<int>(pixel / g.ow % g.oh);
  const int top = y * g.stride_h - g.pad_top, left = x * g.stride_w - g.pad_left;
  Window w{greatest(top, 0), least(top + g.kh, g.ih), greatest(left, 0), least(left + g.kw, g.iw), 0, 0};
  if (g.adaptive) {
    w.y0 = y * g.ih / g.oh, w.y1 = ((y + 1) * g.ih + g.oh - 1) / g.oh;
    w.x0 = x * g.iw / g.ow, w.x1 = ((x + 1) * g.iw + g.ow - 1) / g.ow;
  }
  w.count = g.include_pad ? g.kh * g.kw : (w.y1 - w.y0) * (w.x1 - w.x0);
  w.image = pixel / (static_cast<size_t>(g.ow) * g.oh) * g.ih * g.iw;
  return w;
}

// Vectors of channels; the types stand outside of the templates, as in isa_vector.h.
struct ByteRow {
  typedef uint8_t V __attribute__((vector_size(32)));
};
struct FloatRow {
  typedef float V __attribute__((vector_size(32)));
};

// The largest of up to one vector of channels over a window; `in` is the channel's value in the image's first pixel.
// What lies behind a pixel's channels is read too, and not stored.
template <class Row, class T>
TRIMTAB_INLINE void max_of_window(const PoolArgs& g, const T* in, const Window& w, T* out, int count) {
  using V = typename Row::V;
  constexpr int kWide = sizeof(V) / sizeof(T);
  const auto at = [&](int y, int x) {
    V v;
    std::memcpy(&v, in + (static_cast<size_t>(y) * g.iw + x) * g.c, sizeof v);
    return v;
  };
  V best = at(w.y0, w.x0);
  for (int y = w.y0; y < w.y1; ++y) {
    for (int x = w.x0; x < w.x1; ++x) {
      const V v = at(y, x);
      best = best < v ? v : best;
    }
  }
  if (count >= kWide)
    std::memcpy(out, &best, sizeof best);
  else
    std::memcpy(out, &best, count * sizeof(T));
}

template <class Row, class T>
static void max_pool_typed(const PoolArgs& g, const T* in, T* out, size_t first, size_t last) {
  constexpr int kWide = sizeof(typename Row::V) / sizeof(T);
  for (size_t pixel = first; pixel < last; ++pixel) {
    const Window w = window_of(g, pixel);
    const T* const image = in + w.image * g.c;
    T* const to = out + pixel * g.c;
    int c = 0;
    for (; c + kWide <= g.c; c += kWide) max_of_window<Row>(g, image + c, w, to + c, kWide);
    if (c < g.c) max_of_window<Row>(g, image + c, w, to + c, g.c - c);
  }
}

template <class S>
static void max_pool(const PoolArgs& g, const Operand& in, const Operand& out, size_t first, size_t last) {
  if (in.is_u8)
    max_pool_typed<ByteRow>(g, static_cast<const uint8_t*>(in.data), static_cast<uint8_t*>(out.data), first, last);
  else
    max_pool_typed<FloatRow>(g, static_cast<const float*>(in.data), static_cast<float*>(out.data), first, last);
}

// The mean over a window of up to one vector of channels, from channel c.
template <class S>
TRIMTAB_INLINE typename S::F window_mean(const PoolArgs& g, const Operand& in, const Window& w, int c) {
  typename S::I integers = S::set(int32_t{0});
  typename S::F reals = S::set(0.0f);
  for (int y = w.y0; y < w.y1; ++y) {
    for (int x = w.x0; x < w.x1; ++x) {
      const size_t i = (w.image + static_cast<size_t>(y) * g.iw + x) * g.c + c;
      if (in.is_u8)
        integers += S::load_u8(static_cast<const uint8_t*>(in.data) + i) - S::set(in.zero);
      else
        reals += S::template load<typename S::F>(static_cast<const float*>(in.data) + i);
    }
  }
  if (!in.is_u8) return reals / S::set(static_cast<float>(w.count));
  return S::to_float(integers) * S::set(static_cast<float>(static_cast<double>(in.scale) / w.count));
}

template <class S>
static void avg_pool(const PoolArgs& g, const Operand& in, const Store& s, size_t first, size_t last) {
  for (size_t pixel = first; pixel < last; ++pixel) {
    const Window w = window_of(g, pixel);
    for (int c = 0; c < g.c; c += S::kLanes) {
      const int lanes = least(S::kLanes, g.c - c);
      store_real<S>(s.out, pixel * g.c + c, window_mean<S>(g, in, w, c), lanes);
    }
  }
}

// Pixels [begin, end) of one image of at most four channels from planes of float32, as uint8: a pixel is one 32-bit lane, whose
// bytes beyond its channels the next pixels write over, and which is stored whole where that does not reach beyond `end`.
template <class S>
static void input_narrow(const float* nchw, const Store& s, int32_t channels, int32_t pixels, int32_t begin, int32_t end) {
  uint8_t* const out = static_cast<uint8_t*>(s.out.data);
  for (int first = begin; first < end; first += S::kLanes) {
    const int width = least(S::kLanes, end - first);
    typename S::I all{};
    for (int c = 0; c < channels; ++c) {
      const float* const plane = nchw + static_cast<size_t>(c) * pixels + first;
      all |= quantize<S>(s.out, load_some<S, typename S::F>(plane, width)) << (8 * c);
    }
    uint8_t pixel[S::kLanes][4];
    S::store(&pixel[0][0], all);
    uint8_t* to = out + static_cast<size_t>(first) * channels;
    const int left = (end - first) * channels, whole = left < 4 ? 0 : least(width, (left - 4) / channels + 1);
    for (int p = 0; p < whole; ++p, to += channels) std::memcpy(to, pixel[p], 4);
    for (int p = whole; p < width; ++p, to += channels) std::memcpy(to, pixel[p], channels);
  }
}

// Pixels [begin, end) of one image from planes of float32, by strips of pixels whose channels stay in cache.
template <class S>
static void input(const float* nchw, const Store& s, int32_t channels, int32_t pixels, int32_t begin, int32_t end) {
  if (s.out.is_u8 && channels <= 4) return input_narrow<S>(nchw, s, channels, pixels, begin, end);
  constexpr int kStrip = 2 * S::kLanes;
  for (int first = begin; first < end; first += kStrip) {
    const int width = least(kStrip, end - first);
    const size_t to = static_cast<size_t>(first) * channels;
    for (int c = 0; c < channels; ++c) {
      const float* plane = nchw + static_cast<size_t>(c) * pixels + first;
      if (s.out.is_u8) {
        uint8_t q[kStrip];
        for (int p = 0; p < width; p += S::kLanes)
          S::store_u8(q + p, quantize<S>(s.out, load_some<S, typename S::F>(plane + p, width - p)));
        uint8_t* out = static_cast<uint8_t*>(s.out.data) + to + c;
        for (int p = 0; p < width; ++p) out[static_cast<size_t>(p) * channels] = q[p];
      } else {
        float* out = static_cast<float*>(s.out.data) + to + c;
        for (int p = 0; p < width; ++p) out[static_cast<size_t>(p) * channels] = plane[p];
      }
    }
  }
}

}  // namespace
}  // namespace trimtab
