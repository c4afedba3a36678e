// What one core reaches with the level's own instructions, in registers, and from memory.
#pragma once

#include <time.h>

#include "isa_vector.h"

namespace trimtab {
namespace {

TRIMTAB_INLINE double seconds_now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// Best rate of `work` units per call of body() within `seconds`.
template <class Body>
TRIMTAB_INLINE double best_rate(double seconds, double work, const Body& body) {
  const double end = seconds_now() + seconds;
  double best = 0, now = seconds_now();
  do {
    const double before = now;
    body();
    now = seconds_now();
    const double rate = work / (now - before);
    if (rate > best) best = rate;
  } while (now < end);
  return best;
}

// Makes the compiler forget what v holds, so that nothing is computed once and reused.
template <class V>
TRIMTAB_INLINE void forget(V& v) {
  if constexpr (sizeof(V) <= kRegisterBytes) {
#if defined(__x86_64__)
    asm volatile("" : "+x"(v));
#endif
  } else {
    asm volatile("" : "+m"(v));
  }
}

template <class S, class P>
static double peak(double seconds) {
  using V = typename P::V;
  constexpr int kChains = S::kRows * S::kVectors, kRounds = 4000;
  V left = {}, right = {}, total = {};
  const double work = 1.0 * kRounds * kChains * S::kLanes * P::kDot;
  return best_rate(seconds, work, [&] {
    V acc[kChains] = {};
    forget(right);
    for (int r = 0; r < kRounds; ++r) {
#pragma GCC unroll 32
      for (int i = 0; i < kChains; ++i) {
        forget(left);
        acc[i] = P::dot(acc[i], left, right);
      }
    }
#pragma GCC unroll 32
    for (int i = 0; i < kChains; ++i) total += acc[i];
    forget(total);
  });
}

template <class S>
static double stream(const void* data, size_t bytes, double seconds) {
  const char* p = static_cast<const char*>(data);
  constexpr size_t kStep = sizeof(typename S::I) * 4;
  return best_rate(seconds, static_cast<double>(bytes), [&] {
    typename S::I sum[4] = {};
    for (size_t i = 0; i + kStep <= bytes; i += kStep) {
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) sum[j] += S::template load<typename S::I>(p + i + j * sizeof(sum[0]));
    }
    typename S::I total = sum[0] + sum[1] + sum[2] + sum[3];
    forget(total);
  });
}

}  // namespace
}  // namespace trimtab
