// Channels of every pixel picked in any order: sixteen bytes at a time, from all sixteens of the input that they lie in.
#pragma once

#include "isa_vector.h"
#include "table.h"

#if defined(__SSSE3__)
#include <tmmintrin.h>
#endif

namespace trimtab {
namespace {

typedef uint8_t Sixteen __attribute__((vector_size(kPicked)));

// from[place[i]], or 0 where place[i] is kNowhere.
TRIMTAB_INLINE Sixteen picked(Sixteen from, Sixteen place) {
#if defined(__SSSE3__)
  return (Sixteen)_mm_shuffle_epi8((__m128i)from, (__m128i)place);
#else
  Sixteen to;
  for (int i = 0; i < kPicked; ++i) to[i] = place[i] == kNowhere ? 0 : from[place[i]];
  return to;
#endif
}

TRIMTAB_INLINE Sixteen sixteen(const uint8_t* p) {
  Sixteen v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// What is written behind a pixel belongs to those that come next, as long as they are of the range.
static void pick_channels(const PickArgs& g, const uint8_t* in, uint8_t* out, size_t first, size_t last) {
  const uint8_t* const end = out + last * g.out_bytes;
  for (size_t pixel = first; pixel < last; ++pixel) {
    const uint8_t* const from = in + pixel * g.in_bytes;
    const Pick* pick = g.picks;
    for (int32_t block = 0; block < g.out_bytes; block += kPicked) {
      uint8_t* const to = out + pixel * g.out_bytes + block;
      Sixteen v = sixteen(g.start + block);
      for (; pick->target == block; ++pick) v |= picked(sixteen(from + pick->source), sixteen(pick->place));
      if (end - to >= kPicked)
        std::memcpy(to, &v, sizeof v);
      else
        std::memcpy(to, &v, g.out_bytes - block < kPicked ? g.out_bytes - block : kPicked);
    }
  }
}

}  // namespace
}  // namespace trimtab
