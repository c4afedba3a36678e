// From accumulators or real values to memory: scale, residual, activation, rounding (docs/arithmetic.md).
#pragma once

#include <type_traits>

#include "curves.h"
#include "isa_vector.h"
#include "table.h"

namespace trimtab {
namespace {

template <class T>
TRIMTAB_INLINE T least(T a, T b) {
  return b < a ? b : a;
}
template <class T>
TRIMTAB_INLINE T greatest(T a, T b) {
  return a < b ? b : a;
}

// `count` elements at p as one vector, zeros behind them; elements past `count` are not touched.
template <class S, class V, class T>
TRIMTAB_INLINE V load_some(const T* p, int count) {
  if (count >= S::kLanes) return S::template load<V>(p);
  T part[S::kLanes] = {};
  std::memcpy(part, p, count * sizeof(T));
  return S::template load<V>(part);
}

template <class S>
TRIMTAB_INLINE typename S::I load_u8_some(const uint8_t* p, int count) {
  if (count >= S::kLanes) return S::load_u8(p);
  uint8_t part[S::kLanes] = {};
  std::memcpy(part, p, count);
  return S::load_u8(part);
}

template <class S>
TRIMTAB_INLINE typename S::F load_real(const Operand& o, size_t i, int count) {
  if (!o.is_u8) return load_some<S, typename S::F>(static_cast<const float*>(o.data) + i, count);
  const auto q = load_u8_some<S>(static_cast<const uint8_t*>(o.data) + i, count);
  return S::to_float(q - S::set(o.zero)) * S::set(o.scale);
}

// One vector from element i on, whatever there is behind the tensor's end: kSlack is.
template <class S>
TRIMTAB_INLINE typename S::F load_real(const Operand& o, size_t i) {
  return load_real<S>(o, i, S::kLanes);
}

TRIMTAB_INLINE Clamp whole_range(const Operand& o) {
  return {static_cast<float>(-o.zero), static_cast<float>(o.top - o.zero), o.zero, false};
}

template <class S>
TRIMTAB_INLINE typename S::I quantize(const Operand& o, typename S::F x) {
  return clamped<S>(x * S::set(o.inverse), whole_range(o));
}

template <class S>
TRIMTAB_INLINE void store_real(const Operand& o, size_t i, typename S::F x, int count) {
  if (o.is_u8) {
    store_u8_some<S>(static_cast<uint8_t*>(o.data) + i, quantize<S>(o, x), count);
  } else if (count >= S::kLanes) {
    S::store(static_cast<float*>(o.data) + i, x);
  } else {
    S::store_part(static_cast<float*>(o.data) + i, x, count);
  }
}

// Residual, activation and store of `count` real values that go to element i. C is the store's curve.
template <class S, Curve C>
TRIMTAB_INLINE void finish_real(const Store& s, size_t i, typename S::F x, int count) {
  if (s.has_residual) x = x + load_real<S>(s.residual, i);
  x = C == Curve::kNone ? S::activate(x, S::set(s.floor), S::set(s.ceil)) : bend<S, C>(x);
  store_real<S>(s.out, i, x, count);
}

template <class S>
TRIMTAB_INLINE typename S::F as_real(typename S::I acc, const float* scale) {
  return S::to_float(acc) * S::template load<typename S::F>(scale);
}
template <class S>
TRIMTAB_INLINE typename S::F as_real(typename S::F acc, const float*) {
  return acc;
}

template <class S>
TRIMTAB_INLINE void store_requantized(const Store& s, const int32_t* acc, int row, int rows, int columns,
                                      size_t first, size_t step, int channel) {
  using F = typename S::F;
  const F low = S::set(s.low), high = S::set(s.high);
  const auto zero = S::set(s.out.zero);
  uint8_t* out = static_cast<uint8_t*>(s.out.data) + first;
  const auto requantized = [&](const int32_t* a, F scale) {
    return S::round(S::clamp(S::to_float(S::template load<typename S::I>(a)) * scale, low, high)) + zero;
  };
  int c = 0;
  for (; c + 2 * S::kLanes <= columns; c += 2 * S::kLanes) {
    const F scale[2] = {S::template load<F>(s.scale + channel + c),
                        S::template load<F>(s.scale + channel + c + S::kLanes)};
    for (int r = 0; r < rows; ++r) {
      const int32_t* a = acc + r * row + c;
      S::store_u8(out + r * step + c, requantized(a, scale[0]), requantized(a + S::kLanes, scale[1]));
    }
  }
  for (; c < columns; c += S::kLanes) {
    const F scale = S::template load<F>(s.scale + channel + c);
    for (int r = 0; r < rows; ++r)
      store_u8_some<S>(out + r * step + c, requantized(acc + r * row + c, scale), columns - c);
  }
}

template <class S, Curve C, class Acc, class V>
TRIMTAB_INLINE void store_rows(const Store& s, const Acc* acc, int row, int rows, int columns, size_t first,
                               size_t step, int channel) {
  for (int r = 0; r < rows; ++r) {
    for (int c = 0; c < columns; c += S::kLanes) {
      const V a = S::template load<V>(acc + r * row + c);
      finish_real<S, C>(s, first + r * step + c, as_real<S>(a, s.scale + channel + c), columns - c);
    }
  }
}

// Stores `rows` pixels of `columns` channels. acc[r * row + c]; pixel r's first element is `first + r * step`;
// `channel` indexes the padded per-channel scales. The kinds are set again so that the loops hold no branches.
template <class S, Curve C, class Acc, class V>
static void store_block(const Store& s, const Acc* acc, int row, int rows, int columns, size_t first, size_t step,
                        int channel) {
  Store known = s;
  if (s.has_residual && s.residual.is_u8 && s.out.is_u8) {
    known.has_residual = known.residual.is_u8 = known.out.is_u8 = true;
    store_rows<S, C, Acc, V>(known, acc, row, rows, columns, first, step, channel);
  } else if (!s.has_residual && !s.out.is_u8) {
    known.has_residual = known.out.is_u8 = false;
    store_rows<S, C, Acc, V>(known, acc, row, rows, columns, first, step, channel);
  } else if (!s.has_residual && C != Curve::kNone) {
    known.has_residual = false;
    known.out.is_u8 = true;
    store_rows<S, C, Acc, V>(known, acc, row, rows, columns, first, step, channel);
  } else {
    store_rows<S, C, Acc, V>(s, acc, row, rows, columns, first, step, channel);
  }
}

// Where a tile's accumulators go. The usual ways of storing take them from registers; the others go through memory.
enum class Finish : uint8_t {
  kMemory,     // to `acc`, for `emit`
  kIntegers,   // integers straight to integers
  kSum,        // integers plus a residual stored as uint8, to uint8
  kReal,       // float to float, perhaps plus a float residual
};

template <class Acc>
Finish finish_of(const Store& s) {
  if (s.curve != Curve::kNone) return Finish::kMemory;
  if (std::is_same_v<Acc, int32_t>) {
    if (s.requantize) return Finish::kIntegers;
    return s.has_residual && s.residual.is_u8 && s.out.is_u8 ? Finish::kSum : Finish::kMemory;
  }
  return s.out.is_u8 || (s.has_residual && s.residual.is_u8) ? Finish::kMemory : Finish::kReal;
}

template <class Acc>
struct Target {
  Finish finish;
  const Store* store;
  Acc* acc;
  size_t first, step;  // element of the first pixel; elements between pixels
  int channel;         // into the padded per-channel scales
  int last;            // channels of the tile's last vector that there are
  const char* ahead;   // what to fetch while the tile is computed, and by how much further with every step
  ptrdiff_t ahead_step;
};

template <class S, int NV, class I>
TRIMTAB_INLINE void store_u8_row(uint8_t* p, const I (&q)[NV], int last) {
  const int whole = last == S::kLanes ? NV : NV - 1;
  int j = 0;
#pragma GCC unroll 8
  for (; j + 2 <= whole; j += 2) S::store_u8(p + j * S::kLanes, q[j], q[j + 1]);
  if (j < whole) S::store_u8(p + j * S::kLanes, q[j]);
  if (whole < NV) S::store_u8_part(p + whole * S::kLanes, q[NV - 1], last);
}

// Stores MR pixels of NV vectors of what `scaled(pixel, vector)` gives, in the output's integers.
template <class S, int MR, int NV, class Scaled>
TRIMTAB_INLINE void store_clamped_rows(uint8_t* out, const Target<int32_t>& to, const Clamp& c, const Scaled& scaled) {
  if constexpr (NV % 2 == 0 && MR % 2 == 0) {
#pragma GCC unroll 8
    for (int i = 0; i < MR; i += 2) {
#pragma GCC unroll 8
      for (int j = 0; j < NV; j += 2) {
        const typename S::F x[4] = {scaled(i, j), scaled(i, j + 1), scaled(i + 1, j), scaled(i + 1, j + 1)};
        store_clamped_pairs<S>(typename S::Stores{}, out + i * to.step + j * S::kLanes, to.step, x, c, j + 2 < NV ? S::kLanes : to.last);
      }
    }
    return;
  }
  constexpr int kFours = NV == 1 ? MR / 4 * 4 : 0;
#pragma GCC unroll 8
  for (int i = 0; i < kFours; i += 4) {
    const typename S::F x[4] = {scaled(i, 0), scaled(i + 1, 0), scaled(i + 2, 0), scaled(i + 3, 0)};
    store_clamped<S>(typename S::Stores{}, out + i * to.step, to.step, x, c, to.last);
  }
#pragma GCC unroll 8
  for (int i = kFours; i < MR; ++i) {
    typename S::I q[NV];
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) q[j] = clamped<S>(scaled(i, j), c);
    store_u8_row<S>(out + i * to.step, q, to.last);
  }
}

// Stores MR pixels of NV vectors.
template <class S, int MR, int NV, class V>
TRIMTAB_INLINE void finish_tile(const V (&acc)[MR][NV], const Target<int32_t>& to) {
  using F = typename S::F;
  const Store& s = *to.store;
  uint8_t* const out = static_cast<uint8_t*>(s.out.data) + to.first;
  F scale[NV];
#pragma GCC unroll 8
  for (int j = 0; j < NV; ++j) scale[j] = S::template load<F>(s.scale + to.channel + j * S::kLanes);
  if (to.finish == Finish::kIntegers) {
    store_clamped_rows<S, MR, NV>(out, to, {s.low, s.high, s.out.zero, s.saturates},
                                  [&](int i, int j) { return S::to_float(acc[i][j]) * scale[j]; });
    return;
  }
  const uint8_t* const residual = static_cast<const uint8_t*>(s.residual.data) + to.first;
  const F floor = S::set(s.floor), ceil = S::set(s.ceil), step = S::set(s.residual.scale);
  const F inverse = S::set(s.out.inverse);
  const V zero = S::set(s.residual.zero);
  Clamp range = whole_range(s.out);
  range.saturates = s.saturates;
  store_clamped_rows<S, MR, NV>(out, to, range, [&](int i, int j) {
    const F other = S::to_float(S::load_u8(residual + i * to.step + j * S::kLanes) - zero) * step;
    return S::activate(S::to_float(acc[i][j]) * scale[j] + other, floor, ceil) * inverse;
  });
}

template <class S, int MR, int NV, class V>
TRIMTAB_INLINE void finish_tile(const V (&acc)[MR][NV], const Target<float>& to) {
  const Store& s = *to.store;
  float* const out = static_cast<float*>(s.out.data) + to.first;
  const float* const residual = s.has_residual ? static_cast<const float*>(s.residual.data) + to.first : nullptr;
  const V floor = S::set(s.floor), ceil = S::set(s.ceil);
#pragma GCC unroll 8
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) {
      V x = acc[i][j];
      if (residual != nullptr) x = x + S::template load<V>(residual + i * to.step + j * S::kLanes);
      x = S::activate(x, floor, ceil);
      float* const at = out + i * to.step + j * S::kLanes;
      if (j + 1 < NV || to.last == S::kLanes)
        S::store(at, x);
      else
        S::store_part(at, x, to.last);
    }
  }
}

template <class S>
static void emit(const Store& s, const int32_t* acc, int row, int rows, int columns, size_t first, size_t step,
                 int channel) {
  if (s.requantize) return store_requantized<S>(s, acc, row, rows, columns, first, step, channel);
  for_curve(s.curve, [&](auto curve) {
    store_block<S, curve.value, int32_t, typename S::I>(s, acc, row, rows, columns, first, step, channel);
  });
}

template <class S>
static void emit(const Store& s, const float* acc, int row, int rows, int columns, size_t first, size_t step,
                 int channel) {
  for_curve(s.curve, [&](auto curve) {
    store_block<S, curve.value, float, typename S::F>(s, acc, row, rows, columns, first, step, channel);
  });
}

// Stores N pixels of one vector of channels straight from registers; `columns` of them are real.
template <class S, int N>
TRIMTAB_INLINE void emit_vectors(const Store& s, const typename S::I* acc, size_t first, size_t step, int channel,
                                 int columns) {
  if (N % 4 == 0 && s.requantize) {
    const auto scale = S::template load<typename S::F>(s.scale + channel);
    uint8_t* const out = static_cast<uint8_t*>(s.out.data) + first;
#pragma GCC unroll 2
    for (int i = 0; i + 4 <= N; i += 4) {
      typename S::F x[4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) x[j] = S::to_float(acc[i + j]) * scale;
      store_clamped<S>(typename S::Stores{}, out + i * step, step, x, {s.low, s.high, s.out.zero, s.saturates}, least(columns, S::kLanes));
    }
    return;
  }
  alignas(64) int32_t copy[N * S::kLanes];
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) S::store(copy + i * S::kLanes, acc[i]);
  emit<S>(s, copy, S::kLanes, N, least(columns, S::kLanes), first, step, channel);
}

template <class S, int N>
TRIMTAB_INLINE void emit_vectors(const Store& s, const typename S::F* acc, size_t first, size_t step, int channel,
                                 int columns) {
  if (!s.has_residual && !s.out.is_u8 && s.curve == Curve::kNone) {
    const auto floor = S::set(s.floor), ceil = S::set(s.ceil);
    float* const out = static_cast<float*>(s.out.data) + first;
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) {
      const auto x = S::activate(acc[i], floor, ceil);
      if (columns >= S::kLanes)
        S::store(out + i * step, x);
      else
        S::store_part(out + i * step, x, columns);
    }
    return;
  }
  alignas(64) float copy[N * S::kLanes];
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) S::store(copy + i * S::kLanes, acc[i]);
  emit<S>(s, copy, S::kLanes, N, least(columns, S::kLanes), first, step, channel);
}

}  // namespace
}  // namespace trimtab
