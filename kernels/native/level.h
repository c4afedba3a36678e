// Assembles the table of one level from its primitives S.
#pragma once

#include "attention.h"
#include "channels.h"
#include "depthwise.h"
#include "elementwise.h"
#include "gemm.h"
#include "lookup.h"
#include "normalise.h"
#include "packed.h"
#include "peak.h"
#include "resample.h"
#include "rounding.h"
#include "sparse.h"
#include "tiles.h"
#include "winograd.h"

namespace trimtab {
namespace {

template <class S>
static void depthwise_int(const Conv& g, const Store& store, const Operand& in, const Task& task) {
  if constexpr (S::kShort) {
    static_assert(half_lanes<S>() == 0, "weights for half vectors would need short sums of their own");
    if (g.method == Method::kShort) return depthwise<S, typename S::IntShort, uint8_t>(g, store, in, task);
  }
  depthwise<S, typename S::Int, uint8_t>(g, store, in, task);
}

template <class S>
static void conv_int(const Conv& g, const Store& store, const Operand& in, const Task& task) {
  if constexpr (S::kTiles) {
    if (g.method == Method::kTiles) return conv_tiles<S, typename S::Int, uint8_t>(g, store, in, task);
  }
  if constexpr (S::kNarrow) {
    if (g.method == Method::kNarrow) return conv_gemm<S, typename S::IntNarrow, uint8_t>(g, store, in, task);
  }
  if constexpr (S::kShort) {
    if (g.method == Method::kShort) return conv_gemm<S, typename S::IntShort, uint8_t>(g, store, in, task);
  }
  if constexpr (S::kWinograd) {
    if (g.tile_side > 0) return winograd<S, typename S::Int, uint8_t>(g, store, in, task);
  }
  if constexpr (S::kLookup) {
    if (g.method == Method::kPacked) return conv_packed<S>(g, store, in, task);
    if (g.method == Method::kLookup) return conv_lookup<S>(g, store, in, task);
  }
  if (g.method == Method::kSparse) return conv_sparse<S, typename S::Int, uint8_t>(g, store, in, task);
  conv_gemm<S, typename S::Int, uint8_t>(g, store, in, task);
}

// Weights stay bf16 in memory and are widened as they are read.
template <class S>
struct FloatNarrow : S::Float {
  using B = uint16_t;
  TRIMTAB_INLINE typename S::F weights(const B* b) { return S::load_bf16(b); }
};

template <class S>
static void conv_float(const Conv& g, const Store& store, const Operand& in, const Task& task) {
  if (g.tile_side > 0) return winograd<S, typename S::Float, float>(g, store, in, task);
  if (g.method == Method::kNarrow) return conv_gemm<S, FloatNarrow<S>, float>(g, store, in, task);
  if (g.method == Method::kSparse) return conv_sparse<S, typename S::Float, float>(g, store, in, task);
  if constexpr (S::kBf16 && S::kTiles) {
    if (g.method == Method::kTiles) return conv_tiles<S, typename S::Bf16, Rounded>(g, store, in, task);
  }
  if constexpr (S::kBf16) {
    if (g.method == Method::kPairs) return conv_gemm<S, typename S::Bf16, Rounded>(g, store, in, task);
  }
  if (g.method == Method::kRounded) return conv_gemm<S, typename S::Float, Rounded>(g, store, in, task);
  conv_gemm<S, typename S::Float, float>(g, store, in, task);
}

template <class S>
static double peak_int(double seconds) {
  if constexpr (S::kTiles) return tile_peak<S>(seconds);
  return peak<S, typename S::Int>(seconds);
}

template <class S>
constexpr Kernels make_kernels(const char* name, bool bf16 = S::kBf16) {
  return {name,
          S::kLanes,
          half_lanes<S>(),
          S::kRows,
          S::kVectors,
          S::Int::kDot,
          S::kShort,
          S::kWinograd,
          sizeof(typename S::Int::A) == 2,
          S::kTiles,
          S::kNarrow,
          S::kLookup,
          bf16,
          &conv_int<S>,
          &conv_float<S>,
          &depthwise_int<S>,
          &depthwise<S, typename S::Float, float>,
          &convert<S>,
          &add<S>,
          &mul<S>,
          &prelu<S>,
          &channel_affine<S>,
          &layer_norm<S>,
          &moments<S>,
          &group_norm<S>,
          &attention<S>,
          &max_pool<S>,
          &avg_pool<S>,
          &bilinear<S>,
          &depth_to_space<S>,
          &pick_channels,
          &input<S>,
          &round_to_steps<S>,
          &round_to_steps_back<S>,
          &peak_int<S>,
          &peak<S, typename S::Float>,
          &stream<S>};
}

}  // namespace
}  // namespace trimtab
