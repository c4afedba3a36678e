#include "compensated.h"

#include <algorithm>

#include "nearest.h"

namespace trimtab {
namespace {

// Rows that go through the inputs together, so that what is read of a matrix serves all of them.
constexpr size_t kRows = 8;

void add_multiple(float factor, const float* __restrict x, float* __restrict y, size_t count) {
  for (size_t k = 0; k < count; ++k) y[k] += factor * x[k];
}

}  // namespace

Levels::Levels(const int8_t* levels, size_t count) : levels_(levels, levels + count) {
  for (size_t k = 1; k < count; ++k) middles_.push_back((levels_[k] + levels_[k - 1]) / 2);
  consecutive_ = levels_.back() - levels_.front() + 1 == static_cast<float>(count);
}

float Levels::nearest(float ratio) const {
  if (consecutive_) return nearest_integer(std::min(std::max(ratio, levels_.front()), levels_.back()));
  return levels_[std::upper_bound(middles_.begin(), middles_.end(), ratio) - middles_.begin()];
}

void round_in_order(const WeightRows& rows, const Levels& levels, const float* factor, float* rounded) {
  const size_t inputs = rows.inputs;
  std::vector<float> owed(kRows * inputs);
  for (size_t first = 0; first < rows.outputs; first += kRows) {
    const size_t count = std::min(kRows, rows.outputs - first);
    std::fill(owed.begin(), owed.end(), 0.0f);
    for (size_t i = 0; i < inputs; ++i) {
      const float* const row = factor + i * inputs;
      for (size_t r = 0; r < count; ++r) {
        const size_t at = (first + r) * inputs + i;
        const float scale = rows.scale[first + r];
        float* const mine = owed.data() + r * inputs;
        rounded[at] = levels.nearest((rows.weights[at] - mine[i] / row[i]) / scale);
        add_multiple(rounded[at] * scale - rows.weights[at], row + i + 1, mine + i + 1, inputs - i - 1);
      }
    }
  }
}

void descend(const WeightRows& rows, const Levels& levels, const float* gram, int sweeps, float* rounded,
             float* missing) {
  const size_t inputs = rows.inputs;
  for (size_t first = 0; first < rows.outputs; first += kRows) {
    const size_t count = std::min(kRows, rows.outputs - first);
    bool moved = true;
    for (int sweep = 0; sweep < sweeps && moved; ++sweep) {
      moved = false;
      for (size_t i = 0; i < inputs; ++i) {
        const float* const row = gram + i * inputs;
        for (size_t r = 0; r < count; ++r) {
          const size_t start = (first + r) * inputs;
          float* const now = rounded + start + i;
          const float scale = rows.scale[first + r];
          const float best = levels.nearest(*now + missing[start + i] / (row[i] * scale));
          if (best == *now) continue;
          add_multiple((*now - best) * scale, row, missing + start, inputs);
          *now = best;
          moved = true;
        }
      }
    }
  }
}

}  // namespace trimtab
