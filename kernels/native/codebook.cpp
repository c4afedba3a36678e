#include "codebook.h"

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <vector>

namespace trimtab {
namespace {

constexpr int kInputs = 16, kVectors = 2;  // of a chunk and a panel, as packed.h reads them
constexpr int kChunkLimit = 16;            // 255 * 2 * 4 * 16 < 2^15: a chunk of weights up to 16 fits 16 bits

constexpr size_t kStreamFrom = 128 * 1024;  // weights: from there on reading them is what costs,
constexpr int kStreamPixels = 32;           // where no more pixels than these share one reading.
constexpr int kTilePixels = 7;              // From there on AMX tiles multiply faster than weights are unpacked;
constexpr int kTwoTermPixels = 2;           // beyond that, two-term tables cost more than they save.
constexpr int kTableInputs = 64;            // of an output, in full vectors: from there on narrow inputs' tables pay

// Whether looking up sums of inputs of at most 4 bits is faster than multiplying, wherever the weights lie. Measured at
// the avx2 level with 1-bit inputs, against the best int8 kernel: 3x3 of 16 to 16 channels 0.6x, 16 to 32 1.04x, 64 to
// 64 1.9x, 256 to 256 3x; 1x1 of 32 to 64 channels 0.85x, 64 to 64 1.17x, 128 to 24 1.07x, 256 to 16 0.86x.
bool tables_pay(const ConvSpec& s, const Kernels& k, const Operand& in) {
  const int64_t outputs = s.oc / s.groups, inputs = int64_t{s.ic / s.groups} * s.kh * s.kw;
  const auto padded = static_cast<int64_t>(round_up(outputs, 4 * k.lanes));
  return in.top <= 15 && !k.has_tiles && 2 * outputs > padded && inputs * outputs >= kTableInputs * padded;
}

// The distinct weights in ascending order; empty where there are more than 16.
std::vector<int> distinct_weights(const ConvSpec& s) {
  bool seen[256] = {};
  size_t count = 0;
  for (size_t i = 0, n = weight_count(s); i < n; ++i) {
    bool& known = seen[s.int_weights[i] + 128];
    count += !known;
    known = true;
    if (count > 16) return {};
  }
  std::vector<int> values;
  for (int v = -128; v < 128; ++v) {
    if (seen[v + 128]) values.push_back(v);
  }
  return values;
}

// Weight = factor * value; where a chunk's sum could overflow 16 bits, value = 16 * table[0] + table[1].
Codes describe_packed(const std::vector<int>& values, bool sums_short) {
  Codes c{};
  c.bits = values.size() > 4 ? 4 : 2;
  c.factor = 1;
  c.terms = 1;
  c.depth = 1 << 30;
  int most = 0;
  if (sums_short) {
    int divisor = 0;
    for (const int v : values) divisor = std::gcd(divisor, v);
    c.factor = std::max(1, divisor);
    for (const int v : values) most = std::max(most, std::abs(v / c.factor));
    c.terms = most > kChunkLimit ? 2 : 1;
    c.depth = kChunkLimit / (c.terms == 2 ? 8 : std::max(1, most));
  }
  for (int nibble = 0; nibble < 16; ++nibble) {
    for (int n = 0; n < 4 / c.bits; ++n) {
      const size_t code = nibble >> n * c.bits & ((1 << c.bits) - 1);
      const int v = code < values.size() ? values[code] / c.factor : 0;
      const int upper = (v + 8) >> 4;
      c.table[0][n][nibble] = static_cast<int8_t>(c.terms == 2 ? upper : v);
      c.table[1][n][nibble] = static_cast<int8_t>(v - 16 * upper);
    }
  }
  return c;
}

// Weight = base, or base + factor.
Codes describe_lookup(const std::vector<int>& values, int top, int inputs) {
  Codes c{};
  c.bits = 1;
  c.base = values.front();
  c.factor = values.back() - values.front();
  c.digits = top > 15 ? 2 : 1;
  c.quads = c.digits == 2 ? (inputs + 15) / 16 * 4 : (inputs + 3) / 4;
  const int digit = std::min(top, 15);
  c.depth = 255 / (4 * digit) / 2;
  c.spill = 65535 / (8 * digit);
  return c;
}

// Calls put(output channel, weight, filter tap, input of the group) for every weight.
template <class Put>
void for_weights(const ConvSpec& s, const Put& put) {
  const int inputs = s.ic / s.groups, taps = s.kh * s.kw;
  const int8_t* w = s.int_weights;
  for (int o = 0; o < s.oc; ++o) {
    for (int i = 0; i < inputs; ++i) {
      for (int t = 0; t < taps; ++t) put(o, *w++, t, i);
    }
  }
}

// [group][panel][chunk of 16 inputs][step of 4][vector][lane][input], each code in its bits of the packed bytes.
void pack_panels(const ConvSpec& s, PackedConv& p, const Kernels& k, const std::vector<int>& values) {
  Conv& g = p.conv;
  const int per_group = s.oc / s.groups, inputs = s.ic / s.groups, bits = g.codes.bits, width = kVectors * k.lanes;
  const int vector_bytes = 4 * k.lanes, per_byte = 8 / bits, chunk_bytes = kInputs * width * bits / 8;
  g.group_width = static_cast<int32_t>(round_up(per_group, width));
  const size_t panel_bytes = static_cast<size_t>(g.codes.inputs / kInputs) * chunk_bytes;
  g.group_bytes = panel_bytes * (g.group_width / width);
  p.weights = Memory(g.group_bytes * s.groups);
  int code[256] = {};
  for (size_t i = 0; i < values.size(); ++i) code[values[i] + 128] = static_cast<int>(i);
  for_weights(s, [&](int o, int weight, int tap, int i) {
    const bool rows = g.segments == s.kh;
    const int in_row = rows ? tap % s.kw * inputs + i : i, segment = rows ? tap / s.kw : tap;
    const int at = segment * g.segment_length + in_row, step = at % kInputs / 4, lane = o % per_group % k.lanes;
    const int vector = step * kVectors + o % per_group % width / k.lanes;
    char* to = p.weights.data() + o / per_group * g.group_bytes + o % per_group / width * panel_bytes +
               at / kInputs * chunk_bytes + vector / per_byte * vector_bytes + lane * 4 + at % 4;
    *to = static_cast<char>(*to | code[weight + 128] << vector % per_byte * bits);
  });
}

// [group][panel][segment][pair of steps][vector][byte]: see lookup.h.
void pack_nibbles(const ConvSpec& s, PackedConv& p, const Kernels& k, const std::vector<int>& values) {
  Conv& g = p.conv;
  const int per_group = s.oc / s.groups, vector_bytes = 4 * k.lanes;
  const int quads = g.codes.quads, vectors = (per_group + vector_bytes - 1) / vector_bytes;
  g.group_width = vectors * vector_bytes;
  const size_t pairs = static_cast<size_t>(g.segments) * g.steps;
  g.group_bytes = pairs * g.group_width;
  p.weights = Memory(g.group_bytes * s.groups);
  for_weights(s, [&](int o, int weight, int tap, int i) {
    if (weight == values.front()) return;
    const bool rows = g.segments == s.kh;
    const int in_row = (rows ? tap % s.kw * quads : 0) + i / 4, segment = rows ? tap / s.kw : tap;
    const int c = o % per_group, vector = c / vector_bytes, panel = vector / kVectors;
    const int width = std::min(kVectors, vectors - panel * kVectors);
    const int byte = c % k.lanes * 4 + c % vector_bytes / k.lanes;
    const size_t pair = static_cast<size_t>(segment) * g.steps + in_row / 2;
    char* to = p.weights.data() + o / per_group * g.group_bytes +
               (panel * kVectors * pairs + pair * width + vector % kVectors) * vector_bytes + byte;
    *to = static_cast<char>(*to | 1 << (in_row % 2 * 4 + i % 4));
  });
}

}  // namespace

Method choose_codes(const ConvSpec& s, const Kernels& k, const Operand& in, int batch) {
  if (s.int_weights == nullptr || !k.has_lookup) return Method::kRows;
  const int64_t pixels = int64_t{batch} * s.oh * s.ow;
  const bool stream = weight_count(s) >= kStreamFrom && pixels <= (k.has_tiles ? kTilePixels : kStreamPixels);
  if (!stream && !tables_pay(s, k, in)) return Method::kRows;
  const std::vector<int> values = distinct_weights(s);
  if (values.size() == 1 || values.size() == 2) return Method::kLookup;
  if (!stream || values.empty()) return Method::kRows;
  const bool slow = describe_packed(values, k.has_short).terms == 2 && pixels > kTwoTermPixels;
  return slow ? Method::kRows : Method::kPacked;
}

Codes describe_codes(const ConvSpec& s, const Kernels& k, const Operand& in, Method method) {
  const std::vector<int> values = distinct_weights(s);
  if (method == Method::kLookup) return describe_lookup(values, in.top, s.ic / s.groups);
  Codes c = describe_packed(values, k.has_short);
  c.inputs = static_cast<int32_t>(round_up(static_cast<size_t>(s.ic / s.groups) * s.kh * s.kw, kInputs));
  return c;
}

void pack_codes(const ConvSpec& s, PackedConv& p, const Kernels& k) {
  if (p.conv.method == Method::kLookup)
    pack_nibbles(s, p, k, distinct_weights(s));
  else
    pack_panels(s, p, k, distinct_weights(s));
}

void plan_codes(PackedConv& p) {
  Conv& g = p.conv;
  Codes& c = g.codes;
  if (g.method == Method::kPacked) {
    c.scratch_bytes = round_up(static_cast<size_t>(g.block_rows) * (g.pointwise ? 1 : g.ow) * c.inputs, kLine);
  } else {
    const int width = g.pointwise ? 1 : g.direct ? g.iw : g.scratch_w;
    const int rows = (g.block_rows - 1) * g.stride_h + g.reach_h;
    const size_t table = static_cast<size_t>(c.quads) * c.digits * 16;
    c.positions = rows * width;
    const size_t all = static_cast<size_t>(c.positions) * g.groups;
    c.scratch_bytes = round_up(all * (table + sizeof(int32_t)) + kSlack, kLine) +
                      round_up(g.segments * sizeof(ptrdiff_t), kLine);
  }
  p.scratch_bytes = round_up(p.scratch_bytes + c.scratch_bytes, kLine);
}

}  // namespace trimtab
