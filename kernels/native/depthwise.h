// Depthwise convolutions: channels in lanes, several pixels of a row at a time.
//
// A lane of scratch holds what one 32-bit lane of a dot product takes: a float, or kDot vertically neighbouring integers
// of one channel, interleaved once so that no filter tap has to gather them. Such a group of rows starts at every
// second row; since the rows of a filter may begin at an odd one, there are weights for both cases ("phases").
// The groups under one row of output lie in a ring that is stays in cache.
// Where the weights allow it, a lane holds bytes, and a few columns are summed up in 16 bits (Method::kShort).
#pragma once

#include "blocks.h"
#include "halves.h"

namespace trimtab {
namespace {

template <class P>
constexpr int kGroupStart = P::kDot == 1 ? 1 : 2;  // from the start of one group to the start of the next, in rows

// From one group of rows that a filter reads to the next one.
template <class P>
TRIMTAB_INLINE int group_step(const Conv& g) {
  return P::kDot == 1 ? g.dilation_h : P::kDot / kGroupStart<P>;
}

// A thread's channels, whole vectors of them; the last vector may overlap the one before it.
struct Channels {
  int first_vector, last_vector, first, count;
};

template <class S>
TRIMTAB_INLINE int channel_of(const Conv& g, int vector) {
  return least(vector * S::kLanes, greatest(0, g.oc - S::kLanes));
}

// What the pixels of one row of output read and write: the groups of rows that the filter covers, and their weights.
template <class P>
struct DepthwiseRow {
  const typename P::Acc* const* group;
  const typename P::B* weights;
  Channels channels;
  size_t first_pixel;
};

// Whether the products P are sums in 16 bits, which `widen` adds to the accumulators.
template <class P, class = void>
constexpr bool kSumsShort = false;
template <class P>
constexpr bool kSumsShort<P, std::void_t<decltype(&P::widen)>> = true;

// Adds the products with column k of a filter of KW; `sum` holds those of the columns before it that are not yet in `acc`.
template <class P, int KW, class V>
TRIMTAB_INLINE void add_column(V& acc, [[maybe_unused]] V& sum, V inputs, V weights, [[maybe_unused]] int k) {
  if constexpr (kSumsShort<P>) {
    sum = P::dot(k % kShortColumns == 0 ? V{} : sum, inputs, weights);
    if (k % kShortColumns == kShortColumns - 1 || k == KW - 1) acc = P::widen(acc, sum);
  } else {
    acc = P::dot(acc, inputs, weights);
  }
}

// N neighbouring pixels of one row, from pixel x. KW and STRIDE are the filter's width and the stride where they are
// known to be the layer's and the filter is not dilated, else 0.
template <class S, class P, int KW, int STRIDE, int N>
static void depthwise_strip(const Conv& g, const Store& store, const DepthwiseRow<P>& row, int x) {
  using V = typename P::V;
  constexpr int kStep = S::kLanes * P::kDot;
  const Channels& channels = row.channels;
  const ptrdiff_t column = channels.count, stride = g.stride_w * column, spacing = g.dilation_w * column;
  const int segments = g.segments, steps = g.steps;
  const auto* weights = row.weights + static_cast<size_t>(channels.first_vector) * segments * steps * kStep;
  for (int v = channels.first_vector; v < channels.last_vector; ++v) {
    const int channel = channel_of<S>(g, v);
    const ptrdiff_t from = x * stride + channel - channels.first;
    V acc[N];
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) acc[i] = S::template load<V>(static_cast<const typename P::Acc*>(g.start) + channel);
    for (int s = 0; s < segments; ++s) {
      const auto* const a = row.group[s] + from;
      if constexpr (KW > 0) {
        V w[KW], sum[N];
#pragma GCC unroll 8
        for (int k = 0; k < KW; ++k, weights += kStep) w[k] = P::weights(weights);
        // Column by column: neighbouring pixels share what they load.
#pragma GCC unroll 32
        for (int c = 0; c < (N - 1) * STRIDE + KW; ++c) {
          const V inputs = S::template load<V>(a + c * column);
#pragma GCC unroll 8
          for (int i = 0; i < N; ++i) {
            const int k = c - i * STRIDE;
            if (k >= 0 && k < KW) add_column<P, KW>(acc[i], sum[i], inputs, w[k], k);
          }
        }
      } else {
        for (int k = 0; k < steps; ++k, weights += kStep) {
          const V w = P::weights(weights);
          V sum;
#pragma GCC unroll 8
          for (int i = 0; i < N; ++i)
            add_column<P, 1>(acc[i], sum, S::template load<V>(a + i * stride + k * spacing), w, 0);
        }
      }
    }
    emit_vectors<S, N>(store, acc, (row.first_pixel + x) * g.oc + channel, g.oc, channel, g.oc - channel);
  }
}

template <class P>
using Strip = void (*)(const Conv&, const Store&, const DepthwiseRow<P>&, int);

template <class S, class P, int N>
static Strip<P> strip_kernel(const Conv& g) {
  if (g.dilation_w == 1 && g.steps == 3 && g.stride_w == 1) return &depthwise_strip<S, P, 3, 1, N>;
  if (g.dilation_w == 1 && g.steps == 3 && g.stride_w == 2) return &depthwise_strip<S, P, 3, 2, N>;
  if (g.dilation_w == 1 && g.steps == 5 && g.stride_w == 1) return &depthwise_strip<S, P, 5, 1, N>;
  if (g.dilation_w == 1 && g.steps == 5 && g.stride_w == 2) return &depthwise_strip<S, P, 5, 2, N>;
  return &depthwise_strip<S, P, 0, 0, N>;
}

// A strip may overlap the one before it.
template <class S, class P>
static void depthwise_row(const Conv& g, const Store& store, const DepthwiseRow<P>& row) {
  const Strip<P> eight = strip_kernel<S, P, 8>(g), four = strip_kernel<S, P, 4>(g);
  for (int x = 0; x < g.ow;) {
    const int pixels = g.ow - x >= 8 ? 8 : g.ow >= 4 ? 4 : 1, at = least(x, g.ow - pixels);
    (pixels == 8 ? eight : pixels == 4 ? four : &depthwise_strip<S, P, 0, 0, 1>)(g, store, row, at);
    x = at + pixels;
  }
}

template <class S, class P, class T>
TRIMTAB_INLINE typename P::V lanes_of(const T* const* row, size_t i) {
  if constexpr (P::kDot == 1) {
    return S::template load<typename P::V>(row[0] + i);
  } else {
    auto lanes = S::load_u8(row[0] + i);
#pragma GCC unroll 4
    for (int t = 1; t < P::kDot; ++t) lanes |= S::load_u8(row[t] + i) << (32 / P::kDot * t);
    return lanes;
  }
}

// `count` lanes of one group, from element `at` of its rows on; writes whole vectors.
template <class S, class P, class T>
TRIMTAB_INLINE void fill_lanes(const T* const* row, size_t at, size_t count, typename P::Acc* to) {
  size_t i = 0;
  if constexpr (S::kInterleaved > 0 && P::kDot > 1) {
    for (; i + S::kInterleaved <= count; i += S::kInterleaved) S::template interleave<P::kDot>(row, at + i, to + i);
  }
  for (; i < count; i += S::kLanes) S::store(to + i, lanes_of<S, P>(row, at + i));
}

// Interleaves the rows of one group, with padding at both ends.
template <class S, class P, class T>
static void fill_group(const Conv& g, const T* const* row, T zero, int channels, typename P::Acc* to) {
  using Acc = typename P::Acc;
  const int left = least(g.pad_left, g.scratch_w), inside = least(g.iw, g.scratch_w - left);
  Acc padding = static_cast<Acc>(zero);
  if constexpr (P::kDot > 1) {
    for (int t = 1; t < P::kDot; ++t) padding |= static_cast<Acc>(zero) << (32 / P::kDot * t);
  }
  for (int i = 0; i < left * channels; ++i) *to++ = padding;
  const bool whole = channels == g.ic;  // all pixels are one run
  const size_t runs = whole ? 1 : inside, run = whole ? static_cast<size_t>(inside) * channels : channels;
  const size_t pixel = g.ic;
  for (size_t x = 0; x < runs; ++x, to += run) fill_lanes<S, P>(row, x * pixel, run, to);
  for (int i = 0; i < (g.scratch_w - left - inside) * channels; ++i) *to++ = padding;
}

// Scratch: [groups under a row of output][a row that stands for those outside the image][ring]; see conv.cpp.
template <class P, class T>
struct DepthwiseScratch {
  const typename P::Acc** group;
  T* border;
  typename P::Acc* ring;

  DepthwiseScratch(const Conv& g, const Operand& in, char* scratch) {
    const auto lines = [](size_t bytes) { return (bytes + 63) / 64 * 64; };
    const size_t width = static_cast<size_t>(g.iw) * g.ic;
    group = reinterpret_cast<const typename P::Acc**>(scratch);
    border = reinterpret_cast<T*>(scratch + lines(g.segments * sizeof(void*)));
    ring = reinterpret_cast<typename P::Acc*>(reinterpret_cast<char*>(border) + lines(width * sizeof(T) + kSlack));
    std::memset(border, in.is_u8 ? in.zero : 0, width * sizeof(T));
  }
};

// Output rows [y0, y1) of one image.
template <class S, class P, class T>
static void depthwise_rows(const Conv& g, const Store& store, const T* image, size_t first_pixel, int y0, int y1,
                           const DepthwiseScratch<P, T>& scratch, const Channels& channels) {
  constexpr int kStart = kGroupStart<P>;
  const int top = y0 * g.stride_h - g.pad_top, rows = (y1 - y0 - 1) * g.stride_h + g.reach_h;
  const int step = group_step<P>(g), slots = (g.segments - 1) * step + 1;
  const size_t size = static_cast<size_t>(g.scratch_w) * channels.count + S::kLanes;  // filled in whole vectors
  int filled = 0;
  for (int y = y0; y < y1; ++y, first_pixel += g.ow) {
    const int first_row = (y - y0) * g.stride_h, first = first_row / kStart, phase = first_row % kStart;
    for (filled = greatest(filled, first); filled < first + slots; ++filled) {
      const T* row[P::kDot];
      for (int t = 0; t < P::kDot; ++t) {
        // Only weights of zero meet rows beyond the last.
        const int r = kStart * filled + t, at = top + r;
        const bool real = r < rows && at >= 0 && at < g.ih;
        row[t] = (real ? image + static_cast<size_t>(at) * g.iw * g.ic : scratch.border) + channels.first;
      }
      fill_group<S, P>(g, row, *scratch.border, channels.count, scratch.ring + filled % slots * size);
    }
    for (int s = 0; s < g.segments; ++s) scratch.group[s] = scratch.ring + (first + s * step) % slots * size;
    const char* const weights = static_cast<const char*>(g.weights) + phase * g.group_bytes;
    depthwise_row<S, P>(g, store,
                        {scratch.group, reinterpret_cast<const typename P::B*>(weights), channels, first_pixel});
  }
}

template <class S, class P, class T>
static void depthwise(const Conv& g, const Store& store, const Operand& in, const Task& task) {
  if constexpr (kHalves<S, P>) {
    if (g.half_panel) return depthwise<typename S::Half, HalfOf<S, P>, T>(g, store, in, task);
  }
  const bool by_block = shares_blocks(g, task);
  const int vectors = (g.oc + S::kLanes - 1) / S::kLanes;
  // The last vector may overlap the one before it: the same thread takes both.
  const int apart = greatest(1, g.oc / S::kLanes);
  Span mine = by_block ? Span{0, vectors} : share(apart, task.thread, task.threads);
  if (mine.first == mine.last) return;
  if (mine.last == apart) mine.last = vectors;
  const int first = channel_of<S>(g, mine.first), last = least(g.oc, channel_of<S>(g, mine.last - 1) + S::kLanes);
  const DepthwiseScratch<P, T> scratch(g, in, task.scratch);
  for_rows(g, task, by_block, [&](int n, int y0, int y1) {
    const T* const image = static_cast<const T*>(in.data) + static_cast<size_t>(n) * g.ih * g.iw * g.ic;
    depthwise_rows<S, P, T>(g, store, image, (static_cast<size_t>(n) * g.oh + y0) * g.ow, y0, y1, scratch,
                            {mine.first, mine.last, first, last - first});
  });
}

}  // namespace
}  // namespace trimtab
