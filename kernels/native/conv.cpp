#include "conv.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "codebook.h"
#include "cpu.h"

namespace trimtab {
namespace {

constexpr size_t kScratchTarget = 96 * 1024;  // bytes of input rows that stay in cache while all channels pass
constexpr size_t kTransformedTarget = 256 * 1024;  // the same of Winograd's transformed inputs, or of tables of sums
// Winograd pays from these input channels on, and where its tiles hang over the image's edge by little. Measured at
// the avx2 level, against the direct kernels: 8 channels 0.83x (integers) and 1.15x (float), 12 channels 1.03x and
// 1.04x, 16 channels 1.25x and 1.26x, 64 channels 1.8x and 1.9x.
constexpr int kWinogradInputs = 12, kWinogradFloatInputs = 8;
constexpr int kWinogradOverShort = 28;
// Its tiles of 4x4 outputs over the quickest other kernel, where they fit the image (32x32): 6 channels 0.85x (integers) and
// 1.3x (float), 8 channels 1.16x and 1.5x, 12 channels 1.4x, 16 to 128 channels 1.3x to 1.5x; over sums in 16 bits 1.15x of
// 12 channels, 1.3x of 16, 1.8x to 2x of 64. At 14x14, where a fifth of them hangs over: 12 to 16 channels 0.95x to 1.05x,
// 24 channels 1.07x and 1.15x, 64 channels 1.2x. Filters that are too large for a cache want many tiles: in a network 256
// channels at 14x14 (16 tiles) 1.06x and 1.0x, 512 channels at 7x7 (4 tiles) 0.9x (float).
constexpr int kTile4Inputs = 8, kTile4FloatInputs = 6, kTile4WideInputs = 20, kTile4Tiles = 16;
constexpr double kTile4Saving = 1.2, kTile4NarrowSaving = 1.5;  // products of tiles of 2x2 outputs over those of 4x4
constexpr size_t kLargeFilters = 4 << 20;
// Sums in 16 bits pay from this many steps on; measured likewise, 1x1 layers of 96 to 960 inputs: 2 steps (7-bit weights and
// inputs) 1.5x to 1.6x, 4 steps (6-bit weights, 7-bit inputs) 1.6x to 1.8x, 9 steps (4-bit) 1.6x to 1.9x.
constexpr int kShortDepth = 2, kGroupedDepth = 4;
constexpr int kShortInputs = 8;  // of one output: 4 inputs 1.0x, 8 inputs 1.1x, 24 inputs 1.25x
// Shares of weights in blocks of zeros from which leaving them out beats the other kernels. Against direct ones a list of
// blocks serves without zeros too, where no weights have to be fetched ahead: at avx512_vnni 8 channels 1.3x, 16 channels
// 1.1x, 24 channels 1.1x (1x1: 1.15x), 64 channels and more 1.0x; at avx2 1.03x to 1.1x of 1x1 layers up to 32 channels
// (`trimtab bench choices`). Beyond, 64 channels: a tenth 1.09x, three tenths 1.4x, half 1.85x, seven tenths 2.9x. Where
// reading the weights is what costs, they are twice as wide as those of kNarrow.
// With stride 2 Winograd saves little: an eighth 1.1x to 1.2x; and its larger tiles save little of few inputs: half of 8 channels
// 1.2x to 1.7x, of 12 channels 1.2x. A quarter of the blocks of 512 channels at 7x7 that are streamed 1.25x to 1.35x.
constexpr double kSparseOverRows = 0.07, kSparseOverShort = 0.4, kSparseOverWinograd = 0.5, kSparseOverNarrow = 0.2;
constexpr double kSparseOverStrided = 0.1, kSparseOverTile4 = 0.65, kSparseOverFewTile4 = 0.4;
constexpr int kFewInputs = 16;
constexpr double kWinogradSaving = 1.4;  // direct products over Winograd's
// With stride 2, likewise: 16 channels 1.02x, 24 channels 1.09x (float), 32 channels 1.2x, 64 and 128 channels 1.25x (float:
// 1.2x), 256 channels from 14x14 to 7x7, where tiles hang over the edge, 1.1x.
// At the AVX-512 levels, where direct products are quicker, tiles that hang over the edge do not pay in float: 64, 128 and 256
// channels from 14x14 to 7x7 0.9x, 0.85x and 0.75x; from 28x28 to 14x14 1.15x.
constexpr int kStridedInputs = 24, kWideLanes = 16;
constexpr double kStridedSaving = 1.1, kStridedWideSaving = 1.3;
constexpr int kWinogradTiles = 8;  // fewer, of large filters: 512 channels at 7x7 to 4x4 0.5x (float)
// Widening bf16 weights costs more than reading float ones from cache (0.8x of 1024 x 1024 that stay in L3), and less than
// reading them from memory: 1.4x of 4096 x 4096, 1.9x of a chain of 1024 x 1024, of 4 images 1.9x, 8 1.1x, 16 1.0x.
constexpr size_t kBf16From = size_t{4} << 20;  // weights: too many to stay in a cache
constexpr int kBf16Pixels = 8;
constexpr int kGatheredOutputs = 48, kStridedProducts = 3000;
constexpr double kTileWaste = 1.4;  // positions over pixels, from which copying them next to each other pays
constexpr int kPair = 2;  // bf16 inputs of a step
constexpr size_t kNarrowFrom = 128 * 1024;  // bytes of int8 weights: from there on reading them is what costs,
constexpr int kNarrowPixels = 64;             // where no more pixels than these share one reading,
constexpr int kStreamedPixels = 4;            // and nothing else where no more than these do

bool is_winograd(Method method) { return method == Method::kWinograd || method == Method::kWinograd4; }

// Products of one tile and the planes that they are added up in (winograd.h). Sums of integers are `factor` times the
// accumulators when the scale meets them, and the middle plane adds `start` times what it starts from.
struct Winograd {
  int side, products, planes, factor, start;
};
Winograd winograd_of(const ConvSpec& s, Method method) {
  if (s.stride_h == 2) return {2, 25, 9, 1, 1};
  return method == Method::kWinograd4 ? Winograd{4, 36, 36, 64, 36} : Winograd{2, 16, 16, 4, 4};
}
double winograd_tiles(const ConvSpec& s, int side) {
  return static_cast<double>((s.oh + side - 1) / side) * ((s.ow + side - 1) / side);
}

// How large the accumulator of one output channel can get, in integers: on one side weights of one sign meet the least
// inputs, those of the other the largest.
double largest_sum(const ConvSpec& s, const Operand& in, int channel) {
  const size_t inputs = static_cast<size_t>(s.ic / s.groups) * s.kh * s.kw;
  const int8_t* w = s.int_weights + channel * inputs;
  int32_t sum = 0, magnitude = 0;
  for (size_t i = 0; i < inputs; ++i) sum += w[i], magnitude += std::abs(static_cast<int>(w[i]));
  const double positive = (magnitude + sum) / 2, negative = (magnitude - sum) / 2;
  const double below = in.zero, above = in.top - in.zero;
  const double bias = std::abs(static_cast<double>(s.bias[channel]) / in.scale / s.weight_scale[channel]);
  return std::max(positive * above + negative * below, positive * below + negative * above) + bias;
}

// Whether Winograd's sums, which are larger than the accumulators, fit 32 bits.
bool fits_winograd(const ConvSpec& s, const Operand& in, Method method) {
  if (s.int_weights == nullptr || s.stride_h == 2) return true;
  const double limit = (1u << 31) / winograd_of(s, method).factor;
  for (int o = 0; o < s.oc; ++o) {
    if (largest_sum(s, in, o) >= limit) return false;
  }
  return true;
}

// How many products of pairs fit 16 bits whatever the inputs are.
int short_depth(const ConvSpec& s, const Operand& in) {
  const size_t count = weight_count(s);
  int largest = 1;
  for (size_t i = 0; i < count; ++i) largest = std::max(largest, std::abs(static_cast<int>(s.int_weights[i])));
  return 32767 / (2 * in.top * largest);
}

bool can_winograd(const ConvSpec& s, const Kernels& k, const Operand& in, Method method) {
  const bool integer = s.int_weights != nullptr;
  const int stride = s.stride_h, whole = integer ? 2 * k.lanes : k.lanes;  // with stride 2 segments lie side by side
  return s.kh == 3 && s.kw == 3 && s.stride_w == stride && stride <= (method == Method::kWinograd ? 2 : 1) &&
         s.dilation_h == 1 && s.dilation_w == 1 && s.groups == 1 && (!integer || k.has_winograd) &&
         (stride == 1 || s.ic % whole == 0) && fits_winograd(s, in, method);
}

// Whether it pays where it can compute a layer.
bool winograd_pays(const ConvSpec& s, const Kernels& k) {
  const double tiles = winograd_tiles(s, 2), direct = 9.0 * s.oh * s.ow;
  if (s.stride_h == 2) {
    const bool read_for_few = tiles < kWinogradTiles && size_t{100} * s.ic * s.oc >= kLargeFilters;
    const double needed = k.lanes >= kWideLanes ? kStridedWideSaving : kStridedSaving;
    return s.ic >= kStridedInputs && direct >= needed * 25 * tiles && !read_for_few;
  }
  return s.ic >= (s.int_weights != nullptr ? kWinogradInputs : kWinogradFloatInputs) && direct >= kWinogradSaving * 16 * tiles;
}

// Whether tiles of 4x4 outputs do, over every other kernel.
bool large_tiles_pay(const ConvSpec& s) {
  const double tiles = winograd_tiles(s, 4), saving = 16 * winograd_tiles(s, 2) / (36 * tiles);
  const bool read_for_few = tiles < kTile4Tiles && size_t{144} * s.ic * s.oc >= kLargeFilters;
  return s.ic >= (s.int_weights != nullptr ? kTile4Inputs : kTile4FloatInputs) && !read_for_few &&
         saving >= (s.ic < kTile4WideInputs ? kTile4NarrowSaving : kTile4Saving);
}

// Against direct kernels with sums in 16 bits, measured as above, of two steps (7 bits) and of four: 12 channels 0.82x and
// 0.78x, 24 channels 0.97x and 0.93x, 32 channels 1.07x and 1.04x, 64 channels 1.2x and 1.15x, 256 channels 1.4x and 1.25x;
// 512 channels at 7x7 1.04x and 0.93x, where reading Winograd's larger filters costs more.
bool winograd_beats_short(const ConvSpec& s, int depth) {
  if (s.stride_h != 1 || s.ic < kWinogradOverShort) return false;
  return depth < kGroupedDepth || size_t{32} * s.ic * s.oc < kLargeFilters;
}

// Whether every weight is a bf16 number.
bool holds_bf16(const ConvSpec& s) {
  for (size_t i = 0; i < weight_count(s); ++i) {
    uint32_t bits;
    std::memcpy(&bits, s.float_weights + i, sizeof bits);
    if (bits & 0xffff) return false;
  }
  return true;
}

// Whether the layer spends its time on reading weights from memory, and every one of them is a bf16 number.
bool reads_bf16(const ConvSpec& s, int batch) {
  return s.float_weights != nullptr && weight_count(s) >= kBf16From &&
         int64_t{batch} * s.oh * s.ow <= kBf16Pixels && holds_bf16(s);
}

std::vector<uint16_t> upper_halves(const ConvSpec& s) {
  std::vector<uint16_t> halves(weight_count(s));
  for (size_t i = 0; i < halves.size(); ++i) {
    uint32_t bits;
    std::memcpy(&bits, s.float_weights + i, sizeof bits);
    halves[i] = static_cast<uint16_t>(bits >> 16);
  }
  return halves;
}

// Whether tiles hold enough pixels, and their rows enough inputs of which `dot` are a step. Measured at the amx level,
// over the direct kernels: 3x3 layers of 3 and 4 channels 0.7x to 0.9x, 8 channels 1.1x, 16 channels 1.8x; 7x7 of 3
// channels 1.5x; 1x1 of 16 to 48 inputs 0.8x to 1.0x, of 64 1.05x, of 96 1.5x. With stride 2, from 32x32: 12 channels
// 0.88x, 14 to 28 and 16 to 32 channels 1.1x to 1.3x; from 16x16, where inputs are gathered: 24 and 32 channels 0.82x,
// 28 to 56 and 32 to 64 1.05x to 1.2x.
bool tiles_pay(const ConvSpec& s, const Kernels& k, int dot) {
  const bool flat = s.kh * s.kw == 1 && s.stride_h * s.stride_w == 1 && !s.pads;
  const int inputs = s.kh * s.kw * (s.ic / s.groups), outputs = s.oc / s.groups;
  const bool few = s.stride_w > 1 && (s.ow < kTileRows ? outputs < kGatheredOutputs : inputs * outputs < kStridedProducts);
  return k.has_tiles && (flat || s.oh * s.ow >= 8) && inputs >= kTileSteps * dot && !few;
}

Method choose_bf16(const ConvSpec& s, const Kernels& k) {
  if (!k.has_bf16) return Method::kRounded;
  return tiles_pay(s, k, kPair) ? Method::kTiles : Method::kPairs;
}

Method choose_method(const ConvSpec& s, const Kernels& k, const Operand& in, int batch) {
  const bool integer = s.int_weights != nullptr;
  if (s.bf16) return choose_bf16(s, k);
  const Method codes = choose_codes(s, k, in, batch);
  if (codes != Method::kRows) return codes;
  if (reads_bf16(s, batch)) return Method::kNarrow;
  const bool wide = s.ic / s.groups * s.kh * s.kw >= kShortInputs;
  const int depth = integer && k.has_short && wide ? short_depth(s, in) : 0, pixels = s.oh * s.ow;
  if (large_tiles_pay(s) && can_winograd(s, k, in, Method::kWinograd4)) return Method::kWinograd4;
  if (winograd_pays(s, k) && (depth < kShortDepth || winograd_beats_short(s, depth)) &&
      can_winograd(s, k, in, Method::kWinograd))
    return Method::kWinograd;
  if (!integer) return Method::kRows;
  if (tiles_pay(s, k, k.dot)) return Method::kTiles;
  const size_t weights = weight_count(s);
  const bool streams = k.has_narrow && weights >= kNarrowFrom;
  if (depth >= kShortDepth && !(streams && pixels <= kStreamedPixels)) return Method::kShort;
  return streams && pixels <= kNarrowPixels ? Method::kNarrow : Method::kRows;
}

// Whether the layer, which is not depthwise, can run by a method; of codes only `choose_codes` knows.
bool can_run(const ConvSpec& s, const Kernels& k, const Operand& in, Method method) {
  const bool integer = s.int_weights != nullptr;
  switch (method) {
    case Method::kRows:
    case Method::kSparse:
      return !s.bf16;
    case Method::kNarrow:
      return integer ? k.has_narrow : !s.bf16 && holds_bf16(s);
    case Method::kShort:
      return integer && k.has_short && short_depth(s, in) >= kShortDepth;
    case Method::kTiles:
      return (integer || (s.bf16 && k.has_bf16)) && tiles_pay(s, k, integer ? k.dot : kPair);
    case Method::kPairs:
      return s.bf16 && k.has_bf16;
    case Method::kRounded:
      return s.bf16;
    case Method::kWinograd:
    case Method::kWinograd4:
      return !s.bf16 && can_winograd(s, k, in, method);
    default:
      return false;
  }
}

// Whether the sums of kShortColumns columns of a depthwise filter by any two neighbouring rows fit 16 bits whatever the
// inputs are.
bool fits_short_columns(const ConvSpec& s, const Operand& in) {
  const int limit = 32767 / in.top;
  for (int i = 0; i < s.oc * s.kh; ++i) {
    const int8_t* const row = s.int_weights + static_cast<size_t>(i) * s.kw;
    const int rows = i % s.kh + 1 < s.kh ? 2 : 1;
    for (int first = 0; first < s.kw; first += kShortColumns) {
      int positive = 0, negative = 0;
      for (int k = first; k < std::min(first + kShortColumns, s.kw); ++k) {
        for (int r = 0; r < rows; ++r) {
          const int w = row[r * s.kw + k];
          (w > 0 ? positive : negative) += std::abs(w);
        }
      }
      if (std::max(positive, negative) > limit) return false;
    }
  }
  return true;
}

// Measured at the avx2 level, 3x3 filters of 32 to 960 channels: kShort is 1.14x to 1.19x with stride 1, 1.01x to 1.13x with 2.
Method choose_depthwise(const ConvSpec& s, const Kernels& k, const Operand& in) {
  const bool fits = s.int_weights != nullptr && k.has_short && fits_short_columns(s, in);
  return fits && s.wanted != Method::kRows ? Method::kShort : Method::kRows;
}

// Whether the rows of a depthwise filter can begin at the second row of a group.
int phases(const ConvSpec& s, const PackedConv& p) { return p.integer && s.stride_h % 2 == 1 ? 2 : 1; }

// The share of weights that lie in blocks which are all zero: `dot` inputs by a panel of output channels.
double zero_blocks(const ConvSpec& s, const Kernels& k) {
  const int per_group = s.oc / s.groups, inputs = s.ic / s.groups, taps = s.kh * s.kw;
  const int width = k.vectors * k.lanes, dot = s.int_weights != nullptr ? k.dot : 1;
  int64_t zero = 0, all = 0;
  const auto is_zero = [&](int o, int i, int t) {
    const size_t at = (static_cast<size_t>(o) * inputs + i) * taps + t;
    return s.int_weights != nullptr ? s.int_weights[at] == 0 : s.float_weights[at] == 0;
  };
  for (int first = 0; first < s.oc; first += std::min(width, per_group - first % per_group)) {
    const int last = first + std::min(width, per_group - first % per_group);
    for (int i = 0; i < inputs; i += dot) {
      for (int t = 0; t < taps; ++t, ++all) {
        bool empty = true;
        for (int o = first; o < last && empty; ++o) {
          for (int d = i; d < std::min(i + dot, inputs) && empty; ++d) empty = is_zero(o, d, t);
        }
        zero += empty;
      }
    }
  }
  return static_cast<double>(zero) / static_cast<double>(all);
}

// The method of a layer in which some blocks are all zero, against the one that it would have if none were.
Method choose_sparse(const ConvSpec& s, const Kernels& k, Method dense) {
  if (s.bf16 || dense == Method::kTiles || dense == Method::kPacked || dense == Method::kLookup) return dense;
  const size_t element = s.int_weights == nullptr ? 4 : k.wide_inputs ? 2 : 1;
  if (dense == Method::kRows && weight_count(s) * element < kFarWeights) return Method::kSparse;
  const double over_tile4 = s.ic < kFewInputs ? kSparseOverFewTile4 : kSparseOverTile4;
  const double over_winograd = s.stride_h > 1 ? kSparseOverStrided : kSparseOverWinograd;
  const double needed = dense == Method::kWinograd4  ? over_tile4
                        : dense == Method::kWinograd ? over_winograd
                        : dense == Method::kShort  ? kSparseOverShort
                        : dense == Method::kNarrow ? kSparseOverNarrow
                                                   : kSparseOverRows;
  return zero_blocks(s, k) >= needed ? Method::kSparse : dense;
}

// Tiles read sixteen neighbours of a row in place, one row of the filter after the other. Where rows of the image are so
// short, or those of the filter, that much would be computed in vain (`filled`: steps over those that are needed), or
// where what is stored has no room for that, all that the filter covers is copied next to each other first.
bool gathering_pays(const ConvSpec& s, const PackedConv& p, double filled) {
  const Conv& g = p.conv;
  if (g.pointwise) return false;
  const size_t through = s.stride_h * s.stride_w > 1 ? SIZE_MAX : static_cast<size_t>(s.oh) * g.scratch_w;
  const auto positions = static_cast<double>(std::min(through, s.oh * round_up(s.ow, kTileRows)));
  const auto pixels = static_cast<double>(round_up(static_cast<size_t>(s.oh) * s.ow, kTileRows));
  return g.direct || positions >= kTileWaste * pixels || filled >= 2;
}

void plan_segments(const ConvSpec& s, PackedConv& p) {
  Conv& g = p.conv;
  const int row = (g.direct ? g.iw : g.scratch_w) * g.ic;
  const int dot = p.dot;
  if (p.depthwise) {
    g.segments = p.integer ? (phases(s, p) - 1 + g.reach_h + dot - 1) / dot : s.kh;
    g.steps = s.kw;
    return;
  }
  if (g.tile_side > 0) {
    g.segments = 1;
    g.segment_length = s.ic;
    g.steps = (s.ic + dot - 1) / dot;
    p.segment_offset = {0};
    return;
  }
  const bool whole_rows = s.groups == 1 && (s.dilation_w == 1 || s.kw == 1);
  const int taps = whole_rows ? 1 : s.kw, inputs = s.ic / s.groups;
  g.segments = s.kh * taps;
  g.segment_length = whole_rows ? s.kw * s.ic : s.ic / s.groups;
  g.steps = (g.segment_length + dot - 1) / dot;
  if (g.method == Method::kLookup) g.steps = (g.segment_length / inputs * g.codes.quads + 1) / 2;
  for (int i = 0; i < g.segments; ++i)
    p.segment_offset.push_back(i / taps * s.dilation_h * row + i % taps * s.dilation_w * g.ic);
  if (g.method != Method::kTiles) return;
  const int covered = (g.segments * g.segment_length + dot - 1) / dot;
  if (gathering_pays(s, p, static_cast<double>(g.segments * round_up(g.steps, kTileSteps)) / round_up(covered, kTileSteps))) {
    g.gathered = g.segments;
    g.segments = 1;
    g.steps = covered;
  }
  g.steps = static_cast<int>(round_up(g.steps, kTileSteps));
}

// A depthwise kernel keeps no more rows than its filter covers, so a block is as large as a thread's share.
void plan_depthwise(const ConvSpec& s, PackedConv& p, const Kernels& k, int threads) {
  Conv& g = p.conv;
  g.block_rows = (s.oh + threads - 1) / threads;
  const size_t slots = p.integer ? (g.segments - 1) * p.dot / 2 + 1 : g.reach_h;
  const size_t ring = slots * (static_cast<size_t>(g.scratch_w) * s.ic + k.lanes) * sizeof(int32_t);
  const size_t border = static_cast<size_t>(s.iw) * s.ic * p.element;
  p.scratch_bytes = round_up(g.segments * sizeof(void*), kLine) + round_up(border + kSlack, kLine) +
                    round_up(ring + kSlack, kLine);
}

// A distance of planes that is no multiple of 4096 bytes, where many of them would share one set of the cache.
int32_t staggered(size_t elements, size_t element) {
  return static_cast<int32_t>(((elements * element + kLine - 1) / kLine | 1) * kLine / element);
}

// Whether the weights do not stay in the second cache, but are read anew for every block of pixels.
bool reads_far(const ConvSpec& s, const PackedConv& p, const Kernels& k) {
  const size_t taps = p.conv.tile_side > 0 ? winograd_of(s, p.conv.method).products : s.kh * s.kw;
  return taps * s.ic / s.groups * round_up(s.oc, k.lanes) * p.element > second_cache() / 2;
}

// How many tiles pass through all panels together: few enough that they stay in cache, in even shares.
size_t plan_winograd(const ConvSpec& s, PackedConv& p, const Kernels& k) {
  Conv& g = p.conv;
  const Winograd form = winograd_of(s, g.method);
  g.tile_channels = static_cast<int32_t>(round_up(g.ic, 4 * k.lanes / p.element));
  const int all = (g.block_rows + form.side - 1) / form.side * ((g.ow + form.side - 1) / form.side);
  const size_t each = static_cast<size_t>(form.products) * g.tile_channels * p.element;
  const int most = reads_far(s, p, k) ? std::max(12, static_cast<int>(second_cache() / 2 / each))
                                        : std::clamp(static_cast<int>(kTransformedTarget / each), 12, 48);
  const int passes = (all + most - 1) / most;
  g.tiles = std::min(all, static_cast<int>(round_up((all + passes - 1) / passes, k.rows)));
  const size_t width = static_cast<size_t>(k.vectors) * k.lanes;
  g.inputs_plane = staggered(static_cast<size_t>(g.tiles) * g.tile_channels, p.element);
  g.products_plane = staggered(g.tiles * width, 4);
  return form.products * g.inputs_plane * p.element + form.planes * g.products_plane * size_t{4};
}

void plan_blocks(const ConvSpec& s, PackedConv& p, const Kernels& k, int batch, int threads) {
  Conv& g = p.conv;
  const size_t element = p.element;
  const size_t target = g.method == Method::kLookup ? kTransformedTarget / (4 * g.codes.digits)
                        : reads_far(s, p, k)        ? second_cache() / 4
                                                    : kScratchTarget;
  const int64_t rows = g.pointwise ? int64_t{batch} * s.oh * s.ow : s.oh;
  const int64_t width = g.pointwise ? 1 : g.scratch_w;
  const int64_t fit = static_cast<int64_t>(target / (width * s.ic * element));
  int64_t block = std::max<int64_t>(1, (fit - g.reach_h) / s.stride_h + 1);
  if (g.gathered > 0) block = std::clamp<int64_t>(static_cast<int64_t>(target) / (int64_t{4} * s.ow * g.steps), 1, block);
  block = std::min({block, (rows + threads - 1) / threads, rows});
  const int64_t count = (rows + block - 1) / block;
  g.block_rows = static_cast<int32_t>((rows + count - 1) / count);
  if (g.tile_side > 0) g.block_rows = static_cast<int32_t>(round_up(g.block_rows, g.tile_side));
  const size_t input_rows = static_cast<size_t>(g.block_rows - 1) * s.stride_h + g.reach_h;
  const size_t table = round_up(static_cast<size_t>(g.block_rows) * (g.pointwise ? 1 : s.ow) * 4, kLine);
  p.scratch_bytes = table + (g.direct ? 0 : input_rows * width * s.ic * element) + kSlack;
  if (g.tile_side > 0) p.scratch_bytes += plan_winograd(s, p, k);
  if (g.method == Method::kTiles) {
    const size_t pixels = g.gathered > 0 ? round_up(static_cast<size_t>(g.block_rows) * s.ow, kTileRows) : kTileRows;
    g.gathered_bytes = pixels * g.steps * 4 + kLine;
    // Positions that are no pixels, too.
    p.scratch_bytes += g.gathered_bytes + static_cast<size_t>(kTileRows) * s.stride_w * s.ic * element;
  }
  p.scratch_bytes = round_up(p.scratch_bytes, kLine);
}

// Where weight (output channel o of its group, input i of segment-major order) goes, as the kernels read it.
template <class B, class W>
void pack_gemm(const ConvSpec& s, PackedConv& p, const Kernels& k, const W* weights) {
  Conv& g = p.conv;
  const int dot = p.dot;
  const int per_group = s.oc / s.groups, inputs = s.ic / s.groups, lanes = k.lanes;
  const int rest = per_group % lanes, widest = g.method == Method::kTiles ? kTileVectors : k.vectors;
  g.half_panel = rest > 0 && rest <= k.half_lanes && (g.method == Method::kRows || g.method == Method::kRounded);
  const int vectors = g.half_panel ? per_group / lanes : (per_group + lanes - 1) / lanes;
  g.group_width = vectors * lanes + (g.half_panel ? k.half_lanes : 0);
  const size_t steps = static_cast<size_t>(g.segments) * g.steps;
  g.group_bytes = steps * dot * g.group_width * sizeof(B);
  p.weights = Memory(g.group_bytes * s.groups);
  const int taps = std::max(g.segments, g.gathered) / s.kh;  // segments of a filter row
  for (int o = 0; o < s.oc; ++o) {
    const int group = o / per_group, vector = o % per_group / lanes, lane = o % per_group % lanes;
    const bool half = vector == vectors;
    const int panel = vector / widest, first = half ? vectors : panel * widest;  // of the panel's vectors
    const int row = half ? k.half_lanes : std::min(widest, vectors - first) * lanes;
    B* const own = reinterpret_cast<B*>(p.weights.data() + group * g.group_bytes) +
                   (static_cast<size_t>(first) * steps * lanes + (vector - first) * lanes + lane) * dot;
    for (int t = 0; t < s.kh * s.kw; ++t) {
      const int piece = taps == 1 ? t / s.kw : t, segment = g.gathered > 0 ? 0 : piece;
      const int start = (taps == 1 ? t % s.kw * inputs : 0) + (piece - segment) * g.segment_length;
      const W* from = weights + static_cast<size_t>(o) * inputs * s.kh * s.kw + t;
      B* step = own + (static_cast<size_t>(segment) * g.steps + start / dot) * row * dot;
      for (int i = 0, d = start % dot; i < inputs; ++i, from += s.kh * s.kw) {
        step[d] = static_cast<B>(*from);
        if (++d == dot) d = 0, step += static_cast<size_t>(row) * dot;
      }
    }
  }
}

constexpr int kFilters = 8;  // that are transformed at a time, of neighbouring inputs: a vector of integers

// M w M^T of `kFilters` filters, M of SIDE + 2 rows.
template <int SIDE, class T>
void transform_filters(const T (&w)[9][kFilters], const int (&m)[SIDE + 2][3], T (*to)[kFilters]) {
  for (int i = 0; i < SIDE + 2; ++i) {
    T row[3][kFilters];
    for (int x = 0; x < 3; ++x) {
      for (int f = 0; f < kFilters; ++f)
        row[x][f] = static_cast<T>(m[i][0] * w[x][f] + m[i][1] * w[3 + x][f] + m[i][2] * w[6 + x][f]);
    }
    for (int j = 0; j < SIDE + 2; ++j, ++to) {
      for (int f = 0; f < kFilters; ++f)
        (*to)[f] = static_cast<T>(m[j][0] * row[0][f] + m[j][1] * row[1][f] + m[j][2] * row[2][f]);
    }
  }
}

// For stride 1: integers that are multiples of G.
constexpr int kTwoByTwo[4][3] = {{2, 0, 0}, {1, 1, 1}, {1, -1, 1}, {0, 0, 2}};
constexpr int kFourByFour[6][3] = {{6, 0, 0}, {1, 1, 1}, {1, -1, 1}, {1, 2, 4}, {1, -2, 4}, {0, 0, 6}};

// The same for stride 2: the taps that meet e0 - e1, o0, e1, e2 - e1, o1 (winograd.h), in the order of the planes.
template <class W, class B>
void transform_strided_filter(const W* w, B to[25]) {
  constexpr int kFirstOf[4] = {0, 2, 3, 5};  // of the three planes along one axis
  const auto tap = [&](int i, const auto& at) {
    const auto even = i == 2 ? at(0) + at(2) : i == 3 ? at(2) : at(0);
    return i == 1 || i == 4 ? at(1) : even;
  };
  const auto product = [&](int i, int j) {
    return tap(i, [&](int y) { return tap(j, [&](int x) { return static_cast<double>(w[3 * y + x]); }); });
  };
  for (int plane = 0; plane < 9; ++plane) {
    for (int i = kFirstOf[plane / 3]; i < kFirstOf[plane / 3 + 1]; ++i) {
      for (int j = kFirstOf[plane % 3]; j < kFirstOf[plane % 3 + 1]; ++j) *to++ = static_cast<B>(product(i, j));
    }
  }
}

// The filters of `count` inputs from w on, T exact; what is left of `to` are filters of zeros.
template <class T, class W>
void winograd_filters(const ConvSpec& s, Method method, const W* w, int count, T (&to)[36][kFilters]) {
  T taps[9][kFilters] = {};
  for (int f = 0; f < count; ++f) {
    for (int t = 0; t < 9; ++t) taps[t][f] = static_cast<T>(w[9 * f + t]);
  }
  if (s.stride_h == 1) return method == Method::kWinograd4 ? transform_filters<4>(taps, kFourByFour, to)
                                                           : transform_filters<2>(taps, kTwoByTwo, to);
  for (int f = 0; f < count; ++f) {
    T filter[25];
    transform_strided_filter(w + 9 * f, filter);
    for (int t = 0; t < 25; ++t) to[t][f] = filter[t];
  }
}

// [panel][product of a tile][step][vector][lane][dot]
template <class B, class W>
void pack_winograd(const ConvSpec& s, PackedConv& p, const Kernels& k, const W* weights) {
  Conv& g = p.conv;
  using T = std::conditional_t<std::is_same_v<B, int16_t>, int16_t, double>;
  const Winograd form = winograd_of(s, g.method);
  const T unit = static_cast<T>(p.integer || s.stride_h == 2 ? 1.0 : form.side == 4 ? 1 / 576.0 : 1 / 4.0);
  const int lanes = k.lanes, vectors = (s.oc + lanes - 1) / lanes, dot = p.dot;
  g.group_width = vectors * lanes;
  const size_t steps = g.steps, column = steps * dot;
  g.group_bytes = form.products * column * g.group_width * sizeof(B);
  p.weights = Memory(g.group_bytes);
  const int panel = k.vectors * lanes;
  for (int first = 0; first < s.oc; first += panel) {
    const int width = std::min(panel, g.group_width - first), last = std::min(first + panel, s.oc);
    int place[kFilters];
    for (int f = 0; f < kFilters; ++f) place[f] = f / dot * width * dot + f % dot;
    B* const to = reinterpret_cast<B*>(p.weights.data()) + form.products * column * first;
    // Few inputs at once, of all outputs, so that what is written stays in cache.
    for (int start = 0; start < s.ic; start += kFilters) {
      const int count = std::min(kFilters, s.ic - start);
      for (int o = first; o < last; ++o) {
        T filters[36][kFilters];
        winograd_filters(s, g.method, weights + (static_cast<size_t>(o) * s.ic + start) * 9, count, filters);
        for (int t = 0; t < form.products; ++t) {
          B* const at = to + t * column * width + static_cast<size_t>(start / dot) * width * dot + (o - first) * dot;
          for (int f = 0; f < count; ++f) at[place[f]] = static_cast<B>(filters[t][f] * unit);
        }
      }
    }
  }
}

// [phase][vector][group of rows][column][lane][row]. The last vector overlaps the one before it.
template <class B, class W>
void pack_depthwise(const ConvSpec& s, PackedConv& p, const Kernels& k, const W* weights) {
  Conv& g = p.conv;
  g.half_panel = s.oc <= k.half_lanes;
  const int dot = p.dot, lanes = g.half_panel ? k.half_lanes : k.lanes, vectors = (s.oc + lanes - 1) / lanes;
  const int spacing = p.integer ? s.dilation_h : 1;
  g.group_width = vectors * lanes;
  g.group_bytes = static_cast<size_t>(g.group_width) * g.segments * g.steps * dot * sizeof(B);
  p.weights = Memory(g.group_bytes * phases(s, p));
  B* const to = reinterpret_cast<B*>(p.weights.data());
  for (int i = 0; i < phases(s, p) * g.group_width; ++i) {
    const int phase = i / g.group_width, vector = i % g.group_width / lanes, lane = i % lanes;
    const int c = std::min(vector * lanes, std::max(0, s.oc - lanes)) + lane;
    if (c >= s.oc) continue;
    for (int t = 0; t < s.kh * s.kw; ++t) {
      const int row = phase + t / s.kw * spacing;
      const size_t group = (static_cast<size_t>(phase) * vectors + vector) * g.segments + row / dot;
      to[((group * g.steps + t % s.kw) * lanes + lane) * dot + row % dot] =
          static_cast<B>(weights[static_cast<size_t>(c) * s.kh * s.kw + t]);
    }
  }
}

// Leaves out the blocks that are all zero, of weights packed by pack_gemm.
template <class B>
void drop_zero_blocks(PackedConv& p, const Kernels& k) {
  Conv& g = p.conv;
  const int vectors = g.group_width / k.lanes, panels = (vectors + k.vectors - 1) / k.vectors;
  const size_t steps = static_cast<size_t>(g.segments) * g.steps;
  const B* const dense = reinterpret_cast<const B*>(p.weights.data());
  std::vector<B> kept;
  std::vector<size_t> first_block;
  for (int index = 0; index < g.groups * panels; ++index) {
    const int panel = index % panels, width = std::min(k.vectors, vectors - panel * k.vectors);
    const size_t block = static_cast<size_t>(width) * k.lanes * p.dot;
    const B* from = dense + index / panels * (g.group_bytes / sizeof(B)) + panel * k.vectors * k.lanes * p.dot * steps;
    first_block.push_back(p.blocks.size());
    p.sparse.push_back({nullptr, 0, kept.size()});
    for (size_t step = 0; step < steps; ++step, from += block) {
      if (std::all_of(from, from + block, [](B w) { return w == B(0); })) continue;
      kept.insert(kept.end(), from, from + block);
      p.blocks.push_back(p.segment_offset[step / g.steps] + static_cast<int32_t>(step % g.steps) * p.dot);
    }
    p.sparse.back().count = static_cast<int32_t>(p.blocks.size() - first_block.back());
  }
  for (size_t i = 0; i < p.sparse.size(); ++i) p.sparse[i].blocks = p.blocks.data() + first_block[i];
  p.weights = Memory(kept.size() * sizeof(B));
  std::copy(kept.begin(), kept.end(), reinterpret_cast<B*>(p.weights.data()));
  g.sparse = p.sparse.data();
}

template <class B, class W>
void pack_weights(const ConvSpec& s, PackedConv& p, const Kernels& k, const W* weights) {
  if (p.depthwise)
    pack_depthwise<B>(s, p, k, weights);
  else if (p.conv.tile_side > 0)
    pack_winograd<B>(s, p, k, weights);
  else
    pack_gemm<B>(s, p, k, weights);
  if (p.conv.method == Method::kSparse) drop_zero_blocks<B>(p, k);
}

// The padded position of output channel o.
size_t slot(const ConvSpec& s, const PackedConv& p, int o) {
  if (p.depthwise) return o;
  const int per_group = s.oc / s.groups;
  return static_cast<size_t>(o / per_group) * p.conv.group_width + o % per_group;
}

void fold_integers(const ConvSpec& s, PackedConv& p, const Operand& in, const Operand& out, bool requantize) {
  int32_t* start = reinterpret_cast<int32_t*>(p.start.data());
  float* scale = reinterpret_cast<float*>(p.scale.data());
  const size_t inputs = static_cast<size_t>(s.ic / s.groups) * s.kh * s.kw;
  const Winograd form = p.conv.tile_side > 0 ? winograd_of(s, p.conv.method) : Winograd{1, 1, 1, 1, 1};
  for (int o = 0; o < s.oc; ++o) {
    const double real = static_cast<double>(in.scale) * static_cast<double>(s.weight_scale[o]);
    const double limit = 1 << 30;
    const double bias = std::clamp(std::nearbyint(static_cast<double>(s.bias[o]) / real), -limit, limit);
    int64_t first = static_cast<int64_t>(bias);
    if (p.raw_inputs) {
      for (size_t i = 0; i < inputs; ++i) first -= int64_t{in.zero} * s.int_weights[o * inputs + i];
    }
    start[slot(s, p, o)] = static_cast<int32_t>(form.start * first);
    // Exact: powers of two do not round.
    scale[slot(s, p, o)] = static_cast<float>(requantize ? real / static_cast<double>(out.scale) : real) / form.factor;
  }
}

}  // namespace

PackedConv pack_conv(const ConvSpec& s, const Kernels& k, const Operand& in, const Operand& out, bool requantize,
                     int batch, int threads) {
  PackedConv p;
  Conv& g = p.conv;
  p.integer = s.int_weights != nullptr;
  p.depthwise = s.groups == s.ic && s.oc == s.ic && s.groups > 1;
  g.ih = s.ih, g.iw = s.iw, g.ic = s.ic, g.oh = s.oh, g.ow = s.ow, g.oc = s.oc;
  g.stride_h = s.stride_h, g.stride_w = s.stride_w, g.dilation_h = s.dilation_h, g.dilation_w = s.dilation_w;
  g.pad_top = s.pad_top, g.pad_left = s.pad_left;
  g.reach_h = (s.kh - 1) * s.dilation_h + 1, g.reach_w = (s.kw - 1) * s.dilation_w + 1;
  g.groups = p.depthwise ? 1 : s.groups;
  g.pointwise = !p.depthwise && s.kh == 1 && s.kw == 1 && s.stride_h == 1 && s.stride_w == 1 && !s.pads;
  if (p.depthwise)
    g.method = choose_depthwise(s, k, in);
  else if (s.wanted && can_run(s, k, in, *s.wanted))
    g.method = *s.wanted;
  else
    g.method = choose_sparse(s, k, choose_method(s, k, in, batch));
  const bool codes = g.method == Method::kPacked || g.method == Method::kLookup;
  p.raw_inputs = p.integer && (p.depthwise || codes || !k.wide_inputs || g.method == Method::kShort);
  const bool bf16 = g.method == Method::kPairs || (!p.integer && g.method == Method::kTiles);
  p.dot = bf16 ? kPair : !p.integer ? 1 : g.method == Method::kShort ? 4 : k.dot;
  g.depth = g.method == Method::kShort ? short_depth(s, in) : 0;
  p.element = bf16 ? 2 : !p.integer ? 4 : p.raw_inputs ? 1 : 2;
  g.tile_side = is_winograd(g.method) ? winograd_of(s, g.method).side : 0;
  g.direct = !s.pads && !s.bf16 && (!p.integer || p.raw_inputs) && g.tile_side == 0;
  g.scratch_w = g.pointwise ? 1 : (s.ow - 1) * s.stride_w + g.reach_w;
  if (g.tile_side > 0)
    g.scratch_w = static_cast<int32_t>(s.stride_w * round_up(s.ow, g.tile_side)) + 3 - s.stride_w;
  if (codes) g.codes = describe_codes(s, k, in, g.method);
  plan_segments(s, p);
  if (p.depthwise)
    plan_depthwise(s, p, k, threads);
  else
    plan_blocks(s, p, k, batch, threads);
  if (codes) plan_codes(p);
  if (codes)
    pack_codes(s, p, k);
  else if (bf16 || (!p.integer && g.method == Method::kNarrow))
    pack_weights<uint16_t>(s, p, k, upper_halves(s).data());
  else if (!p.integer)
    pack_weights<float>(s, p, k, s.float_weights);
  else if (k.wide_inputs && g.method != Method::kNarrow && g.method != Method::kShort)
    pack_weights<int16_t>(s, p, k, s.int_weights);
  else
    pack_weights<int8_t>(s, p, k, s.int_weights);
  const size_t channels = static_cast<size_t>(g.group_width) * g.groups;
  p.start = Memory(channels * 4);
  p.scale = Memory(channels * 4);
  if (p.integer) {
    fold_integers(s, p, in, out, requantize);
  } else {
    const float share = g.method == Method::kWinograd4 ? 1 / 16.0f : 1;  // of the middle plane, exact
    for (int o = 0; o < s.oc; ++o) reinterpret_cast<float*>(p.start.data())[slot(s, p, o)] = share * s.bias[o];
  }
  g.weights = p.weights.data();
  g.start = p.start.data();
  g.segment_offset = p.segment_offset.data();
  return p;
}

std::string describe(const PackedConv& p) {
  const std::string bits = p.integer ? "w8a8" : "fp32";
  if (p.depthwise) return bits + (p.conv.method == Method::kShort ? " depthwise short sums" : " depthwise");
  switch (p.conv.method) {
    case Method::kRows:
      return bits;
    case Method::kNarrow:
      return p.integer ? "w8a8 streamed" : "bf16 streamed";
    case Method::kShort:
      return bits + " short sums";
    case Method::kTiles:
      return (p.integer ? bits : "bf16") + " tiles";
    case Method::kPairs:
      return "bf16";
    case Method::kRounded:
      return "fp32 of bf16";
    case Method::kWinograd:
      return bits + " winograd";
    case Method::kWinograd4:
      return bits + " winograd 4x4";
    case Method::kSparse:
      return bits + " blocks";
    case Method::kPacked:
      return "w" + std::to_string(p.conv.codes.bits) + "a8 codes";
    case Method::kLookup:
      return "w1a" + std::to_string(4 * p.conv.codes.digits) + " look-up";
  }
  return bits;
}

}  // namespace trimtab
