// Vectors of 4, 8 or 16 lanes of 32 bits in the compiler's own vector types; levels override what it does badly.
#pragma once

#include <cstdint>
#include <cstring>

#define TRIMTAB_INLINE static inline __attribute__((always_inline))

namespace trimtab {
namespace {

#if defined(__AVX512F__)
constexpr size_t kRegisterBytes = 64;
#elif defined(__AVX2__)
constexpr size_t kRegisterBytes = 32;
#elif defined(__SSE2__)
constexpr size_t kRegisterBytes = 16;
#else
constexpr size_t kRegisterBytes = 0;
#endif

// Computes v at this place: left to itself, GCC reorders long sums until they no longer fit the registers.
template <class V>
TRIMTAB_INLINE void compute_here([[maybe_unused]] V& v) {
#if defined(__x86_64__)
  if constexpr (sizeof(V) <= kRegisterBytes) asm("" : "+v"(v));
#endif
}

// The vector types stand apart from the template: GCC 12 cannot convert vectors of a dependent size.
struct Lanes4 {
  static constexpr int kLanes = 4;
  typedef float F __attribute__((vector_size(16)));
  typedef int32_t I __attribute__((vector_size(16)));
  typedef int16_t H __attribute__((vector_size(16)));
  typedef uint8_t Bytes __attribute__((vector_size(4)));
  typedef uint8_t U8 __attribute__((vector_size(16)));
  typedef uint16_t U16 __attribute__((vector_size(16)));
  typedef uint16_t Halves __attribute__((vector_size(8)));
};
struct Lanes8 {
  static constexpr int kLanes = 8;
  typedef float F __attribute__((vector_size(32)));
  typedef int32_t I __attribute__((vector_size(32)));
  typedef int16_t H __attribute__((vector_size(32)));
  typedef uint8_t Bytes __attribute__((vector_size(8)));
  typedef uint8_t U8 __attribute__((vector_size(32)));
  typedef uint16_t U16 __attribute__((vector_size(32)));
  typedef uint16_t Halves __attribute__((vector_size(16)));
};
struct Lanes16 {
  static constexpr int kLanes = 16;
  typedef float F __attribute__((vector_size(64)));
  typedef int32_t I __attribute__((vector_size(64)));
  typedef int16_t H __attribute__((vector_size(64)));
  typedef uint8_t Bytes __attribute__((vector_size(16)));
  typedef uint8_t U8 __attribute__((vector_size(64)));
  typedef uint16_t U16 __attribute__((vector_size(64)));
  typedef uint16_t Halves __attribute__((vector_size(32)));
};

// How a level stores four vectors as bytes: one at a time, unless it says another way.
struct OneByOne {};

template <class Types>
struct Vector : Types {
  using Stores = OneByOne;
  static constexpr int kInterleaved = 0;  // lanes that `interleave` makes at a time of rows of bytes; 0: there is none
  using Half = void;  // a level of half as many lanes, for what would leave half a vector empty
  using F = typename Types::F;
  using I = typename Types::I;
  using H = typename Types::H;
  using Bytes = typename Types::Bytes;
  using U8 = typename Types::U8;
  using U16 = typename Types::U16;
  using Halves = typename Types::Halves;

  template <class V, class T>
  TRIMTAB_INLINE V load(const T* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  template <class V, class T>
  TRIMTAB_INLINE void store(T* p, V v) {
    std::memcpy(p, &v, sizeof v);
  }
  TRIMTAB_INLINE F set(float x) { return x - F{}; }  // x - 0 keeps the sign of zero
  TRIMTAB_INLINE I set(int32_t x) { return x - I{}; }
  // Where x is not a number, `clamp` gives the lower bound, `activate` keeps it.
  TRIMTAB_INLINE F clamp(F x, F low, F high) {
    const F above = x > low ? x : low;
    return above < high ? above : high;
  }
  TRIMTAB_INLINE F activate(F x, F low, F high) {
    const F above = x < low ? low : x;
    return above > high ? high : above;
  }
  TRIMTAB_INLINE F multiply_add(F acc, F a, F b) { return acc + a * b; }
  TRIMTAB_INLINE F to_float(I x) { return __builtin_convertvector(x, F); }
  // Half to even for |x| < 2^22: adding 1.5 * 2^23 leaves the integer in the low bits.
  TRIMTAB_INLINE I round(F x) {
    const F shifted = x + set(12582912.0f);
    return load<I>(&shifted) - set(int32_t{0x4B400000});
  }
  // The float32 numbers whose upper halves these are.
  TRIMTAB_INLINE F load_bf16(const uint16_t* p) {
    const I bits = __builtin_convertvector(load<Halves>(p), I) << 16;
    return load<F>(&bits);
  }
  TRIMTAB_INLINE I load_u8(const uint8_t* p) { return __builtin_convertvector(load<Bytes>(p), I); }
  TRIMTAB_INLINE void store_u8(uint8_t* p, I x) { store(p, __builtin_convertvector(x, Bytes)); }
  TRIMTAB_INLINE void store_u8(uint8_t* p, I x, I next) {
    store_u8(p, x);
    store_u8(p + Types::kLanes, next);
  }
  // The first `count` lanes, fewer than all.
  TRIMTAB_INLINE void store_part(float* p, F x, int count) { std::memcpy(p, &x, count * sizeof(float)); }
  TRIMTAB_INLINE void store_u8_part(uint8_t* p, I x, int count) {
    const Bytes bytes = __builtin_convertvector(x, Bytes);
    std::memcpy(p, &bytes, count);
  }
};

// How a matrix product reads its operands and adds to its accumulators: inputs A, weights B, `kDot` of them to an
// accumulator. S has the instruction.
template <class Types, class S>
struct FloatProducts {
  using A = float;
  using B = float;
  using Acc = float;
  using V = typename Types::F;
  static constexpr int kDot = 1;
  TRIMTAB_INLINE V weights(const B* b) { return S::template load<V>(b); }
  TRIMTAB_INLINE V broadcast(const A* a) { return S::set(*a); }
  TRIMTAB_INLINE V dot(V acc, V a, V b) { return S::multiply_add(acc, a, b); }
};

template <class Types, class S, class Input, class Weight>
struct IntegerProducts {
  using A = Input;
  using B = Weight;
  using Acc = int32_t;
  using V = typename Types::I;
  static constexpr int kDot = sizeof(int32_t) / sizeof(Input);
  TRIMTAB_INLINE V weights(const B* b) { return S::template load<V>(b); }
  TRIMTAB_INLINE V broadcast(const A* a) {
    int32_t all;
    std::memcpy(&all, a, sizeof all);
    return S::set(all);
  }
};

template <class Types, class S>
struct PairProducts : IntegerProducts<Types, S, int16_t, int16_t> {
  using V = typename Types::I;
  TRIMTAB_INLINE V dot(V acc, V a, V b) { return S::dot_pairs(acc, a, b); }
};

template <class Types, class S>
struct ByteProducts : IntegerProducts<Types, S, uint8_t, int8_t> {
  using V = typename Types::I;
  TRIMTAB_INLINE V dot(V acc, V a, V b) { return S::dot_bytes(acc, a, b); }
};

// Pairs of bf16 numbers, as the upper halves of float32.
template <class Types, class S>
struct Bf16Products {
  using A = uint16_t;
  using B = uint16_t;
  using Acc = float;
  using V = typename Types::F;
  static constexpr int kDot = 2;
  TRIMTAB_INLINE V weights(const B* b) { return S::template load<V>(b); }
  TRIMTAB_INLINE V broadcast(const A* a) {
    int32_t both;
    std::memcpy(&both, a, sizeof both);
    return (V)S::set(both);
  }
  TRIMTAB_INLINE V dot(V acc, V a, V b) { return S::dot_bf16(acc, a, b); }
};

// What becomes of real values on the way to uint8: clamped, rounded, moved by the zero point. The bounds are integers
// and give 0 to 255. Where packing to bytes with saturation alone gives the same (`saturates`), levels may leave it at that.
struct Clamp {
  float low, high;
  int32_t zero;
  bool saturates;
};

template <class S>
TRIMTAB_INLINE typename S::I clamped(typename S::F x, const Clamp& c) {
  return S::round(S::clamp(x, S::set(c.low), S::set(c.high))) + S::set(c.zero);
}

template <class S>
TRIMTAB_INLINE void store_u8_some(uint8_t* p, typename S::I q, int count) {
  if (count >= S::kLanes) return S::store_u8(p, q);
  S::store_u8_part(p, q, count);
}

// The first `count` lanes of four vectors, `step` bytes apart. There is an overload for each way of storing.
template <class S>
TRIMTAB_INLINE void store_clamped(OneByOne, uint8_t* p, size_t step, const typename S::F* x, const Clamp& c, int count) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) store_u8_some<S>(p + i * step, clamped<S>(x[i], c), count);
}

// A vector and the first `count` lanes of another beside it, and `step` bytes further the same of the other two; likewise.
template <class S>
TRIMTAB_INLINE void store_clamped_pairs(OneByOne, uint8_t* p, size_t step, const typename S::F* x, const Clamp& c, int count) {
#pragma GCC unroll 2
  for (int i = 0; i < 4; i += 2, p += step) {
    const typename S::I first = clamped<S>(x[i], c), second = clamped<S>(x[i + 1], c);
    if (count == S::kLanes) {
      S::store_u8(p, first, second);
    } else {
      S::store_u8(p, first);
      S::store_u8_part(p + S::kLanes, second, count);
    }
  }
}

}  // namespace
}  // namespace trimtab
