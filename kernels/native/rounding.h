// Rounding to what so many bits store, and its gradients, as training needs them: Esser et al. 2020 (LSQ,
// arXiv:1902.08153), equations 1, 3 and 5.
#pragma once

#include "epilogue.h"

namespace trimtab {
namespace {

template <class S>
void round_to_steps(const Steps& to, const float* x, float* y, size_t count) {
  using F = typename S::F;
  const F inverse = S::set(1 / to.step), step = S::set(to.step), low = S::set(to.low), high = S::set(to.high);
  const auto rounded = [&](F v) { return S::to_float(S::round(S::clamp(v * inverse, low, high))) * step; };
  size_t i = 0;
  for (; i + S::kLanes <= count; i += S::kLanes) S::store(y + i, rounded(S::template load<F>(x + i)));
  if (i < count) S::store_part(y + i, rounded(load_some<S, F>(x + i, count - i)), static_cast<int>(count - i));
}

template <class S>
double round_to_steps_back(const Steps& to, const float* x, const float* dy, float* dx, size_t count) {
  using F = typename S::F;
  using I = typename S::I;
  const F inverse = S::set(1 / to.step), low = S::set(to.low), high = S::set(to.high);
  // dx where a value is within the bounds; what the step owes: the rounding's error there, the bound elsewhere.
  const auto back = [&](F v, F dv, F& owed) {
    const F ratio = v * inverse, inside = S::clamp(ratio, low, high);
    const I within = inside == ratio;
    owed += dv * (S::to_float(S::round(inside)) - (F)((I)ratio & within));
    return (F)((I)dv & within);
  };
  // Short sums in float32, so that long ones stay precise.
  constexpr size_t kRun = 64 * S::kLanes;
  double total = 0;
  for (size_t start = 0; start < count; start += kRun) {
    const size_t end = start + kRun < count ? start + kRun : count;
    F owed{};
    size_t i = start;
    for (; i + S::kLanes <= end; i += S::kLanes)
      S::store(dx + i, back(S::template load<F>(x + i), S::template load<F>(dy + i), owed));
    if (i < end)
      S::store_part(dx + i, back(load_some<S, F>(x + i, end - i), load_some<S, F>(dy + i, end - i), owed),
                    static_cast<int>(end - i));
    for (int lane = 0; lane < S::kLanes; ++lane) total += owed[lane];
  }
  return total;
}

}  // namespace
}  // namespace trimtab
