// Layer norm over the channels of every pixel, and group norm over all pixels of some channels.
#pragma once

#include "elementwise.h"

namespace trimtab {
namespace {

template <class S>
TRIMTAB_INLINE float sum_lanes(typename S::F x) {
  float sum = x[0];
  for (int i = 1; i < S::kLanes; ++i) sum += x[i];
  return sum;
}

TRIMTAB_INLINE float real_at(const Operand& o, size_t i) {
  if (!o.is_u8) return static_cast<const float*>(o.data)[i];
  return static_cast<float>(static_cast<const uint8_t*>(o.data)[i] - o.zero) * o.scale;
}

// Sum of f over the c elements from `first`; f takes vectors and single numbers.
template <class S, class Each>
TRIMTAB_INLINE float sum_channels(const Operand& in, size_t first, int c, const Each& each) {
  typename S::F sum = S::set(0.0f);
  int i = 0;
  for (; i + S::kLanes <= c; i += S::kLanes) sum += each(load_real<S>(in, first + i, S::kLanes));
  float total = sum_lanes<S>(sum);
  for (; i < c; ++i) total += each(real_at(in, first + i));
  return total;
}

template <class S>
static void layer_norm(const NormArgs& g, const Operand& in, const Store& s, size_t first, size_t last) {
  using F = typename S::F;
  const auto count = static_cast<float>(g.c);
  for (size_t pixel = first; pixel < last; ++pixel) {
    const size_t start = pixel * g.c;
    const float mean = sum_channels<S>(in, start, g.c, [](auto x) { return x; }) / count;
    const float variance = sum_channels<S>(in, start, g.c, [=](auto x) { return (x - mean) * (x - mean); }) / count;
    const F centre = S::set(mean), factor = S::set(1.0f / __builtin_sqrtf(variance + g.epsilon));
    for (int c = 0; c < g.c; c += S::kLanes) {
      const int lanes = least(S::kLanes, g.c - c);
      const F x = (load_real<S>(in, start + c, lanes) - centre) * factor;
      store_real<S>(s.out, start + c, x * load_some<S, F>(g.weight + c, lanes) + load_some<S, F>(g.bias + c, lanes),
                     lanes);
    }
  }
}

// An addition takes about four times as long as the next one that does not need its result has to wait.
constexpr int kChains = 4;

template <class F>
TRIMTAB_INLINE F total(const F (&sums)[kChains]) {
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// each(x, chain) for `count` pixels, `step` elements apart, of up to one vector of channels.
template <class S, class Each>
TRIMTAB_INLINE void for_pixels(const Operand& in, size_t first, size_t step, int count, int lanes, const Each& each) {
  int pixel = 0;
  for (; pixel + kChains <= count; pixel += kChains) {
#pragma GCC unroll 4
    for (int i = 0; i < kChains; ++i) each(load_real<S>(in, first + (pixel + i) * step, lanes), i);
  }
  for (; pixel < count; ++pixel) each(load_real<S>(in, first + pixel * step, lanes), 0);
}

template <class S>
static void moments(const GroupNormArgs& g, const Operand& in, size_t first, size_t last) {
  using F = typename S::F;
  const size_t channels = g.c, blocks = g.blocks;
  const Operand out{g.moments, 1.0f, 1.0f, 0, 0, false};
  for (size_t block = first; block < last; ++block) {
    const int pixel = static_cast<int>(block % blocks) * kMomentPixels, count = least(kMomentPixels, g.pixels - pixel);
    const size_t start = (block / blocks * g.pixels + pixel) * channels, to = 3 * block * channels;
    for_vectors<S>(channels, [&](size_t c, int lanes) {
      F values[kChains] = {}, sums[kChains] = {}, squares[kChains] = {};
      for_pixels<S>(in, start + c, channels, count, lanes, [&](F x, int chain) { values[chain] += x; });
      const F pivot = total(values) / S::set(static_cast<float>(count));
      for_pixels<S>(in, start + c, channels, count, lanes, [&](F x, int chain) {
        const F apart = x - pivot;
        sums[chain] += apart;
        squares[chain] += apart * apart;
      });
      store_real<S>(out, to + c, pivot, lanes);
      store_real<S>(out, to + channels + c, total(sums), lanes);
      store_real<S>(out, to + 2 * channels + c, total(squares), lanes);
    });
  }
}

// What makes (x - mean) * factor + offset of every channel in one image. The mean's rounding is in the offset.
struct Normal {
  float *mean, *factor, *offset;
};

static void combine_moments(const GroupNormArgs& g, size_t image, const Normal& normal) {
  const int width = g.c / g.groups;
  const size_t channels = g.c;
  const float* const moments = g.moments + image * g.blocks * 3 * channels;
  // The sum over a group of part(pixels, pivot, sum, squares).
  const auto add = [&](int first, const auto& part) {
    double all = 0;
    for (int block = 0; block < g.blocks; ++block) {
      const double pixels = least(kMomentPixels, g.pixels - block * kMomentPixels);
      const float* const of = moments + block * 3 * channels;
      for (int c = first; c < first + width; ++c) all += part(pixels, of[c], of[channels + c], of[2 * channels + c]);
    }
    return all / (static_cast<double>(width) * g.pixels);
  };
  for (int first = 0; first < g.c; first += width) {
    const double mean = add(first, [](double n, double pivot, double sum, double) { return n * pivot + sum; });
    const double variance = add(first, [=](double n, double pivot, double sum, double squares) {
      const double apart = pivot - mean;
      return squares + apart * (2 * sum + n * apart);
    });
    const auto inverse = static_cast<float>(1 / __builtin_sqrt(variance + static_cast<double>(g.epsilon)));
    for (int c = first; c < first + width; ++c) {
      normal.mean[c] = static_cast<float>(mean);
      normal.factor[c] = inverse * g.weight[c];
      normal.offset[c] = static_cast<float>(g.bias[c] - (mean - normal.mean[c]) * normal.factor[c]);
    }
  }
}

// Scratch: [means][factors][offsets]; Program::add_group_norm reserves it so.
template <class S>
static void group_norm(const GroupNormArgs& g, const Operand& in, const Store& s, size_t first, size_t last,
                       char* scratch) {
  using F = typename S::F;
  float* const numbers = reinterpret_cast<float*>(scratch);
  const Normal normal{numbers, numbers + g.c, numbers + 2 * static_cast<size_t>(g.c)};
  for (size_t pixel = first; pixel < last;) {
    const size_t image = pixel / g.pixels, end = least(last, (image + 1) * g.pixels);
    combine_moments(g, image, normal);
    for_channels<S>(in, s, pixel, end, g.c, [&](F x, size_t c, int lanes) {
      const F apart = x - load_some<S, F>(normal.mean + c, lanes);
      return apart * load_some<S, F>(normal.factor + c, lanes) + load_some<S, F>(normal.offset + c, lanes);
    });
    pixel = end;
  }
}

}  // namespace
}  // namespace trimtab
