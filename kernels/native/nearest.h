// The nearest integer, in plain C++ that vectorises everywhere.
#pragma once

namespace trimtab {

// Of |x| < 2^22, halves to even: adding 1.5 * 2^23 leaves no place for a fraction.
inline float nearest_integer(float x) {
  constexpr float kShift = 12582912.0f;
  return x + kShift - kShift;
}

}  // namespace trimtab
