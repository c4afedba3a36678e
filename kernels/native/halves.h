// Products of half a level's lanes: for layers, or ends of layers, that would leave half of every vector empty.
#pragma once

#include <type_traits>

#include "isa_vector.h"

namespace trimtab {
namespace {

template <class S>
constexpr int half_lanes() {
  if constexpr (std::is_void_v<typename S::Half>)
    return 0;
  else
    return S::Half::kLanes;
}

// Whether the products P of a level have halves.
template <class S, class P>
constexpr bool kHalves =
    half_lanes<S>() > 0 && (std::is_same_v<P, typename S::Float> || std::is_same_v<P, typename S::Int>);

template <class S, class P>
using HalfOf = std::conditional_t<std::is_same_v<P, typename S::Float>, typename S::Half::Float, typename S::Half::Int>;

}  // namespace
}  // namespace trimtab
