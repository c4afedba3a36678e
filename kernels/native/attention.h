// Scaled dot-product attention, head by head: keys and values packed once, then a few queries at a time.
#pragma once

#include "epilogue.h"

namespace trimtab {
namespace {

// c[row][0..2 lanes) = sum over k of a[row][k] * b[k][0..2 lanes), for kQueries rows.
template <class S>
static void panel_product(const float* a, size_t a_row, const float* b, int k, float* c, size_t c_row) {
  using V = typename S::Float::V;
  V sum[kQueries][2];
#pragma GCC unroll 8
  for (int r = 0; r < kQueries; ++r) sum[r][0] = sum[r][1] = S::set(0.0f);
  for (int i = 0; i < k; ++i, b += 2 * S::kLanes) {
    const V low = S::template load<V>(b), high = S::template load<V>(b + S::kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kQueries; ++r) {
      const V left = S::set(a[r * a_row + i]);
      sum[r][0] = S::Float::dot(sum[r][0], left, low);
      sum[r][1] = S::Float::dot(sum[r][1], left, high);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kQueries; ++r) {
    S::store(c + r * c_row, sum[r][0]);
    S::store(c + r * c_row + S::kLanes, sum[r][1]);
  }
}

// All panels of b, `columns` wide in total.
template <class S>
static void rows_product(const float* a, size_t a_row, const float* b, int k, float* c, int columns) {
  for (int n = 0; n < columns; n += 2 * S::kLanes)
    panel_product<S>(a, a_row, b + static_cast<size_t>(n) * k, k, c + n, columns);
}

// `count` real values from element i, in whole vectors.
template <class S>
TRIMTAB_INLINE void copy_real(const Operand& o, size_t i, int count, float factor, float* to) {
  for (int c = 0; c < count; c += S::kLanes)
    S::store(to + c, load_real<S>(o, i + c, least(S::kLanes, count - c)) * S::set(factor));
}

// One head's part of a tensor: `count` features of each token.
struct Head {
  size_t first, step;  // elements
  int count;
};

// Feature by feature, a panel of tokens at a time: [panel][feature][token].
template <class S>
static void pack_keys(const Operand& k, const Head& head, int tokens, float* row, float* packed) {
  constexpr int kPanel = 2 * S::kLanes;
  for (int t = 0; t < tokens; ++t) {
    copy_real<S>(k, head.first + t * head.step, head.count, 1.0f, row);
    float* to = packed + static_cast<size_t>(t / kPanel) * kPanel * head.count + t % kPanel;
    for (int i = 0; i < head.count; ++i) to[static_cast<size_t>(i) * kPanel] = row[i];
  }
}

// Token by token, a panel of features at a time: [panel][token][feature].
template <class S>
static void pack_values(const Operand& v, const Head& head, int tokens, float* packed) {
  constexpr int kPanel = 2 * S::kLanes;
  for (int first = 0; first < head.count; first += kPanel) {
    for (int t = 0; t < tokens; ++t, packed += kPanel)
      copy_real<S>(v, head.first + t * head.step + first, least(kPanel, head.count - first), 1.0f, packed);
  }
}

// e^(x - max) over `columns` scores, of which those past `tokens` do not count; returns their sum.
template <class S>
static float exponentials(float* score, int tokens, int columns) {
  using F = typename S::F;
  for (int t = tokens; t < columns; ++t) score[t] = -__builtin_inff();
  F most = S::template load<F>(score);
  for (int t = S::kLanes; t < columns; t += S::kLanes) {
    const F x = S::template load<F>(score + t);
    most = x > most ? x : most;
  }
  float max = most[0];
  for (int i = 1; i < S::kLanes; ++i) max = most[i] > max ? most[i] : max;
  F sum = S::set(0.0f);
  for (int t = 0; t < columns; t += S::kLanes) {
    const F e = exponential<S>(S::template load<F>(score + t) - S::set(max));
    S::store(score + t, e);
    sum += e;
  }
  float total = sum[0];
  for (int i = 1; i < S::kLanes; ++i) total += sum[i];
  return total;
}

constexpr int panels(int count, int lanes) { return (count + 2 * lanes - 1) / (2 * lanes) * 2 * lanes; }

// Scratch: [packed keys][packed values][queries][scores][sums of values]; Program::add_attention reserves it so.
template <class S>
static void attention(const AttentionArgs& g, const Operand& q, const Operand& k, const Operand& v, const Store& s,
                      const Task& task) {
  const int columns = panels(g.tokens, S::kLanes), depth = panels(g.depth, S::kLanes);
  const int width = panels(g.width, S::kLanes), units = task.images * g.heads;
  float* const keys = reinterpret_cast<float*>(task.scratch);
  float* const values = keys + static_cast<size_t>(columns) * g.depth;
  float* const queries = values + static_cast<size_t>(width) * g.tokens;
  float* const scores = queries + kQueries * depth;
  float* const sums = scores + static_cast<size_t>(kQueries) * columns;
  const size_t deep = static_cast<size_t>(g.heads) * g.depth, wide = static_cast<size_t>(g.heads) * g.width;
  for (int unit = task.thread; unit < units; unit += task.threads) {
    const size_t token = static_cast<size_t>(unit / g.heads) * g.tokens, head = unit % g.heads;
    const Head in{token * deep + head * g.depth, deep, g.depth}, out{token * wide + head * g.width, wide, g.width};
    std::memset(keys, 0, static_cast<size_t>(columns) * g.depth * sizeof(float));
    pack_keys<S>(k, in, g.tokens, queries, keys);
    pack_values<S>(v, out, g.tokens, values);
    for (int t = 0; t < g.tokens; t += kQueries) {
      const int count = least(kQueries, g.tokens - t);  // rows past `count` are computed from what lies there
      for (int r = 0; r < count; ++r)
        copy_real<S>(q, in.first + (t + r) * deep, g.depth, g.scale, queries + r * depth);
      rows_product<S>(queries, depth, keys, g.depth, scores, columns);
      float total[kQueries];
      for (int r = 0; r < count; ++r)
        total[r] = exponentials<S>(scores + static_cast<size_t>(r) * columns, g.tokens, columns);
      rows_product<S>(scores, columns, values, g.tokens, sums, width);
      for (int r = 0; r < count; ++r) {
        for (int c = 0; c < g.width; c += S::kLanes) {
          const auto x = S::template load<typename S::F>(sums + r * width + c) * S::set(1.0f / total[r]);
          store_real<S>(s.out, out.first + (t + r) * wide + c, x, least(S::kLanes, g.width - c));
        }
      }
    }
  }
}

}  // namespace
}  // namespace trimtab
