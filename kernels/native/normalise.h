// Layer norm over the channels of every pixel.
#pragma once

#include "epilogue.h"

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

}  // namespace
}  // namespace trimtab
