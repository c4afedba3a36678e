// A convolution as the caller gives it, and packed for one level.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "memory.h"
#include "table.h"

namespace trimtab {

// Shapes are per image; weights are (oc, ic / groups, kh, kw), float or int8.
struct ConvSpec {
  int32_t ic, ih, iw, oc, oh, ow, kh, kw;
  int32_t stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w, groups;
  bool pads;  // any of the four sides
  const float* float_weights;   // one of the two is null
  const int8_t* int_weights;
  const float* weight_scale;    // (oc,), with int_weights
  const float* bias;            // (oc,)
  bool bf16;                    // inputs are rounded to bf16, which all float_weights are; not of depthwise layers
  std::optional<Method> wanted;  // instead of what is chosen, where the layer can run by it
};

// The names of the methods, in their order.
constexpr const char* kMethods[] = {"rows",     "narrow",    "short",  "tiles",  "pairs", "rounded",
                                    "winograd", "winograd4", "sparse", "packed", "lookup"};

inline size_t weight_count(const ConvSpec& s) {
  return static_cast<size_t>(s.oc) * (s.ic / s.groups) * s.kh * s.kw;
}

struct PackedConv {
  Conv conv{};
  Memory weights, start, scale;
  std::vector<int32_t> segment_offset, blocks;
  std::vector<SparsePanel> sparse;
  bool integer = false, depthwise = false;
  bool raw_inputs = false;   // integers are read as q, not as q - zero
  int dot = 1;               // inputs of one step
  size_t element = 4;        // bytes of an input as the kernel reads it
  size_t scratch_bytes = 0;  // per thread
};

// `batch` images and `threads` bound the block size; `in` and `out` give the scales. With `requantize` the
// per-channel scales go straight to the output's integers.
PackedConv pack_conv(const ConvSpec& spec, const Kernels& kernels, const Operand& in, const Operand& out,
                     bool requantize, int batch, int threads);

// The kernel that was chosen, for people: the bits that it reads, and how it goes about it.
std::string describe(const PackedConv& packed);

}  // namespace trimtab
