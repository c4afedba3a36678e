// Activations that are curves, in float32 steps that every level rounds alike: no library calls, no contraction.
#pragma once

#include <type_traits>

#include "isa_vector.h"
#include "table.h"

namespace trimtab {
namespace {

// e^x = power * (1 + rest).
template <class S>
struct Exponential {
  typename S::F power, rest;
};

// x limited to [-87, 88]: 2^n, and e^r - 1 as a polynomial in r = x - n ln 2, |r| <= ln(2) / 2.
template <class S>
TRIMTAB_INLINE Exponential<S> split_exponential(typename S::F x) {
  using F = typename S::F;
  x = S::activate(x, S::set(-87.0f), S::set(88.0f));
  const typename S::I n = S::round(x * S::set(1.44269504f));
  const F whole = S::to_float(n);
  F r = x - whole * S::set(0.693359375f);  // ten bits of ln 2: the product is exact
  r = r - whole * S::set(-2.12194440e-4f);
  F p = S::set(0.00831205f) * r + S::set(0.0418945f);
  p = p * r + S::set(0.16667133f);
  p = p * r + S::set(0.49999202f);
  p = p * r + S::set(1.0f);
  const typename S::I power = (n + S::set(int32_t{127})) << 23;
  return {S::template load<F>(&power), p * r};
}

// e^x to 2e-7 relative.
template <class S>
TRIMTAB_INLINE typename S::F exponential(typename S::F x) {
  const Exponential<S> e = split_exponential<S>(x);
  return (e.rest + S::set(1.0f)) * e.power;
}

// e^x - 1 for x <= 0, with no digits lost where x is near 0.
template <class S>
TRIMTAB_INLINE typename S::F exponential_less_one(typename S::F x) {
  const Exponential<S> e = split_exponential<S>(x);
  return e.power * e.rest + (e.power - S::set(1.0f));
}

// 1 + e^-x: a sigmoid's denominator.
template <class S>
TRIMTAB_INLINE typename S::F logistic(typename S::F x) {
  return S::set(1.0f) + exponential<S>(S::set(0.0f) - x);
}

template <class S>
TRIMTAB_INLINE typename S::F hard_sigmoid(typename S::F x) {
  return S::activate(x + S::set(3.0f), S::set(0.0f), S::set(6.0f)) * S::set(1.0f / 6.0f);
}

// max(x, 0) - t Q(t), t = |x|, Q the normal distribution's upper tail: e^(-t^2 / 2) times a polynomial in
// k = 1 / (1 + 0.34 t), as in Abramowitz and Stegun 7.1.26, with coefficients of our own: to 1e-7 absolute.
template <class S>
TRIMTAB_INLINE typename S::F gelu(typename S::F x) {
  using F = typename S::F;
  const F positive = S::activate(x, S::set(0.0f), S::set(__builtin_inff()));
  const F t = x < S::set(0.0f) ? S::set(0.0f) - x : x;
  const F k = S::set(1.0f) / (S::set(1.0f) + S::set(0.34f) * t);
  F p = S::set(-0.10640304f) * k + S::set(0.33097511f);
  p = p * k + S::set(-0.04015033f);
  p = p * k + S::set(0.18624173f);
  p = p * k + S::set(0.12933419f);
  const F bounded = S::activate(t, S::set(0.0f), S::set(13.0f));
  return positive - bounded * (p * k) * exponential<S>(S::set(-0.5f) * bounded * bounded);
}

// m / (m + 2) = tanh(-|x|) with m = e^(-2 |x|) - 1.
template <class S>
TRIMTAB_INLINE typename S::F hyperbolic_tangent(typename S::F x) {
  using F = typename S::F;
  const F t = x < S::set(0.0f) ? S::set(0.0f) - x : x;
  const F m = exponential_less_one<S>(S::set(-2.0f) * t);
  const F negative = m / (m + S::set(2.0f));
  return x < S::set(0.0f) ? negative : S::set(0.0f) - negative;
}

template <class S>
TRIMTAB_INLINE typename S::F elu(typename S::F x) {
  const float infinity = __builtin_inff();
  const typename S::F negative = S::activate(x, S::set(-infinity), S::set(0.0f));
  return S::activate(x, S::set(0.0f), S::set(infinity)) + exponential_less_one<S>(negative);
}

template <class S, Curve C>
TRIMTAB_INLINE typename S::F bend(typename S::F x) {
  if (C == Curve::kHardSigmoid) return hard_sigmoid<S>(x);
  if (C == Curve::kHardSwish) return x * hard_sigmoid<S>(x);
  if (C == Curve::kSigmoid) return S::set(1.0f) / logistic<S>(x);
  if (C == Curve::kSilu) return x / logistic<S>(x);
  if (C == Curve::kGelu) return gelu<S>(x);
  if (C == Curve::kTanh) return hyperbolic_tangent<S>(x);
  if (C == Curve::kElu) return elu<S>(x);
  return x;
}

// Calls body with the curve as a constant, so that its loop is made for that curve.
template <class Body>
TRIMTAB_INLINE void for_curve(Curve curve, const Body& body) {
  switch (curve) {
    case Curve::kNone:
      return body(std::integral_constant<Curve, Curve::kNone>());
    case Curve::kHardSigmoid:
      return body(std::integral_constant<Curve, Curve::kHardSigmoid>());
    case Curve::kHardSwish:
      return body(std::integral_constant<Curve, Curve::kHardSwish>());
    case Curve::kSigmoid:
      return body(std::integral_constant<Curve, Curve::kSigmoid>());
    case Curve::kSilu:
      return body(std::integral_constant<Curve, Curve::kSilu>());
    case Curve::kGelu:
      return body(std::integral_constant<Curve, Curve::kGelu>());
    case Curve::kTanh:
      return body(std::integral_constant<Curve, Curve::kTanh>());
    case Curve::kElu:
      return body(std::integral_constant<Curve, Curve::kElu>());
  }
}

}  // namespace
}  // namespace trimtab
