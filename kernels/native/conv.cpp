#include "conv.h"

#include <algorithm>
#include <cmath>

namespace trimtab {
namespace {

constexpr size_t kScratchTarget = 96 * 1024;  // bytes of input rows that stay in cache while all channels pass
constexpr int kTileSteps = 16;
constexpr size_t kNarrowFrom = 128 * 1024;  // bytes of int8 weights: from there on reading them is what costs,
constexpr int kNarrowPixels = 32;             // where no more pixels than these share one reading

void plan_segments(const ConvSpec& s, PackedConv& p, const Kernels& k) {
  Conv& g = p.conv;
  const int row = (g.direct ? g.iw : g.scratch_w) * g.ic;
  const int dot = p.integer ? k.dot : 1;
  if (p.depthwise) {
    g.segments = s.kh * s.kw;
    g.steps = (g.segments + dot - 1) / dot;
    p.segment_offset.assign(static_cast<size_t>(g.steps) * dot, 0);
    for (int t = 0; t < g.segments; ++t)
      p.segment_offset[t] = t / s.kw * s.dilation_h * row + t % s.kw * s.dilation_w * g.ic;
    return;
  }
  const bool whole_rows = s.groups == 1 && (s.dilation_w == 1 || s.kw == 1);
  const int taps = whole_rows ? 1 : s.kw;
  g.segments = s.kh * taps;
  g.segment_length = whole_rows ? s.kw * s.ic : s.ic / s.groups;
  g.steps = (g.segment_length + dot - 1) / dot;
  const int pixels = g.pointwise ? 64 : g.oh * g.ow;
  g.tiles = p.integer && k.has_tiles && pixels >= 8 && 2 * g.segment_length >= kTileSteps * dot;
  if (g.tiles) g.steps = static_cast<int>(round_up(g.steps, kTileSteps));
  for (int i = 0; i < g.segments; ++i)
    p.segment_offset.push_back(i / taps * s.dilation_h * row + i % taps * s.dilation_w * g.ic);
}

void plan_blocks(const ConvSpec& s, PackedConv& p, size_t element, int batch, int threads) {
  Conv& g = p.conv;
  const int64_t rows = g.pointwise ? int64_t{batch} * s.oh * s.ow : s.oh;
  const int64_t width = g.pointwise ? 1 : g.scratch_w;
  const int64_t fit = static_cast<int64_t>(kScratchTarget / (width * s.ic * element));
  int64_t block = std::max<int64_t>(1, (fit - g.reach_h) / s.stride_h + 1);
  block = std::min({block, (rows + threads - 1) / threads, rows});
  const int64_t count = (rows + block - 1) / block;
  g.block_rows = static_cast<int32_t>((rows + count - 1) / count);
  const size_t input_rows = static_cast<size_t>(g.block_rows - 1) * s.stride_h + g.reach_h;
  const size_t table = round_up(static_cast<size_t>(g.block_rows) * (g.pointwise ? 1 : s.ow) * 4, kLine);
  p.scratch_bytes = table + (g.direct ? 0 : input_rows * width * s.ic * element) + kSlack;
  if (g.tiles) {
    const size_t gathered = static_cast<size_t>(32) * g.segments * g.steps * 4;
    p.scratch_bytes += gathered + round_up(g.segments * 4, kLine);
  }
  p.scratch_bytes = round_up(p.scratch_bytes, kLine);
}

// Where weight (output channel o of its group, input i of segment-major order) goes, as the kernels read it.
template <class B, class W>
void pack_gemm(const ConvSpec& s, PackedConv& p, const Kernels& k, int dot, const W* weights) {
  Conv& g = p.conv;
  const int per_group = s.oc / s.groups, inputs = s.ic / s.groups, lanes = k.lanes;
  const int vectors = (per_group + lanes - 1) / lanes;
  g.group_width = vectors * lanes;
  const size_t steps = static_cast<size_t>(g.segments) * g.steps;
  g.group_bytes = steps * dot * g.group_width * sizeof(B);
  p.weights = Memory(g.group_bytes * s.groups);
  const int taps = g.segments / s.kh;  // segments of a filter row
  for (int o = 0; o < s.oc; ++o) {
    const int group = o / per_group, vector = o % per_group / lanes, lane = o % per_group % lanes;
    const int panel = vector / k.vectors, width = std::min(k.vectors, vectors - panel * k.vectors);
    B* to = reinterpret_cast<B*>(p.weights.data() + group * g.group_bytes) +
            static_cast<size_t>(panel) * k.vectors * lanes * dot * steps;
    for (int i = 0; i < inputs; ++i) {
      for (int t = 0; t < s.kh * s.kw; ++t) {
        const int y = t / s.kw, x = t % s.kw;
        const int segment = taps == 1 ? y : t, at = taps == 1 ? x * inputs + i : i;
        const size_t step = static_cast<size_t>(segment) * g.steps + at / dot;
        to[((step * width + vector % k.vectors) * lanes + lane) * dot + at % dot] =
            static_cast<B>(weights[(static_cast<size_t>(o) * inputs + i) * s.kh * s.kw + t]);
      }
    }
  }
}

// [vector][step][lane][tap]
template <class B, class W>
void pack_depthwise(const ConvSpec& s, PackedConv& p, const Kernels& k, int dot, const W* weights) {
  Conv& g = p.conv;
  const int lanes = k.lanes, taps = s.kh * s.kw;
  const size_t vectors = (s.oc + lanes - 1) / lanes;
  g.group_width = static_cast<int32_t>(vectors * lanes);
  p.weights = Memory(vectors * g.steps * lanes * dot * sizeof(B));
  B* to = reinterpret_cast<B*>(p.weights.data());
  for (int c = 0; c < s.oc; ++c) {
    for (int t = 0; t < taps; ++t) {
      const size_t step = static_cast<size_t>(c / lanes) * g.steps + t / dot;
      to[(step * lanes + c % lanes) * dot + t % dot] = static_cast<B>(weights[static_cast<size_t>(c) * taps + t]);
    }
  }
}

template <class B, class W>
void pack_weights(const ConvSpec& s, PackedConv& p, const Kernels& k, int dot, const W* weights) {
  if (p.depthwise)
    pack_depthwise<B>(s, p, k, dot, weights);
  else
    pack_gemm<B>(s, p, k, dot, weights);
}

// The padded position of output channel o.
size_t slot(const ConvSpec& s, const PackedConv& p, int o) {
  if (p.depthwise) return o;
  const int per_group = s.oc / s.groups;
  return static_cast<size_t>(o / per_group) * p.conv.group_width + o % per_group;
}

void fold_integers(const ConvSpec& s, PackedConv& p, const Operand& in, const Operand& out, bool requantize,
                   bool raw_inputs) {
  int32_t* start = reinterpret_cast<int32_t*>(p.start.data());
  float* scale = reinterpret_cast<float*>(p.scale.data());
  const size_t inputs = static_cast<size_t>(s.ic / s.groups) * s.kh * s.kw;
  for (int o = 0; o < s.oc; ++o) {
    const double real = static_cast<double>(in.scale) * static_cast<double>(s.weight_scale[o]);
    const double limit = 1 << 30;
    const double bias = std::clamp(std::nearbyint(static_cast<double>(s.bias[o]) / real), -limit, limit);
    int64_t first = static_cast<int64_t>(bias);
    if (raw_inputs) {
      for (size_t i = 0; i < inputs; ++i) first -= int64_t{in.zero} * s.int_weights[o * inputs + i];
    }
    start[slot(s, p, o)] = static_cast<int32_t>(first);
    scale[slot(s, p, o)] = static_cast<float>(requantize ? real / static_cast<double>(out.scale) : real);
  }
}

}  // namespace

PackedConv pack_conv(const ConvSpec& s, const Kernels& k, const Operand& in, const Operand& out, bool requantize,
                     int batch, int threads) {
  PackedConv p;
  Conv& g = p.conv;
  p.integer = s.int_weights != nullptr;
  p.depthwise = s.groups == s.ic && s.oc == s.ic && s.groups > 1;
  const bool raw_inputs = p.depthwise || !k.wide_inputs;  // integers are read as q, not as q - zero
  const size_t element = !p.integer ? 4 : raw_inputs ? 1 : 2;
  g.ih = s.ih, g.iw = s.iw, g.ic = s.ic, g.oh = s.oh, g.ow = s.ow, g.oc = s.oc;
  g.stride_h = s.stride_h, g.stride_w = s.stride_w, g.pad_top = s.pad_top, g.pad_left = s.pad_left;
  g.reach_h = (s.kh - 1) * s.dilation_h + 1, g.reach_w = (s.kw - 1) * s.dilation_w + 1;
  g.groups = p.depthwise ? 1 : s.groups;
  g.pointwise = s.kh == 1 && s.kw == 1 && s.stride_h == 1 && s.stride_w == 1 && !s.pads;
  g.direct = !s.pads && (!p.integer || raw_inputs);
  g.scratch_w = g.pointwise ? 1 : (s.ow - 1) * s.stride_w + g.reach_w;
  const size_t weights = static_cast<size_t>(s.oc) * (s.ic / s.groups) * s.kh * s.kw;
  g.narrow = p.integer && !p.depthwise && k.has_narrow && weights >= kNarrowFrom &&
             s.oh * s.ow <= kNarrowPixels;
  plan_segments(s, p, k);
  plan_blocks(s, p, element, batch, threads);
  const int dot = p.integer ? k.dot : 1;
  if (!p.integer)
    pack_weights<float>(s, p, k, dot, s.float_weights);
  else if (k.wide_inputs && !g.narrow)
    pack_weights<int16_t>(s, p, k, dot, s.int_weights);
  else
    pack_weights<int8_t>(s, p, k, dot, s.int_weights);
  const size_t channels = static_cast<size_t>(g.group_width) * g.groups;
  p.start = Memory(channels * 4);
  p.scale = Memory(channels * 4);
  if (p.integer) {
    fold_integers(s, p, in, out, requantize, raw_inputs);
  } else {
    for (int o = 0; o < s.oc; ++o) reinterpret_cast<float*>(p.start.data())[slot(s, p, o)] = s.bias[o];
  }
  g.weights = p.weights.data();
  g.start = p.start.data();
  g.segment_offset = p.segment_offset.data();
  return p;
}

}  // namespace trimtab
