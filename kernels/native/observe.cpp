#include "observe.h"

#include <algorithm>
#include <limits>

#include "nearest.h"

namespace trimtab {
namespace {

constexpr size_t kLanes = 16;

// Errors that float32 sums take in before they go into one of float64.
constexpr size_t kChunk = 32 * kLanes;

}  // namespace

void read_field(const Window& window, const float* images, const Position& position, float* field) {
  const size_t taps = window.kernel_h * window.kernel_w;
  size_t tap = 0;
  for (int64_t y = 0; y < window.kernel_h; ++y) {
    const int64_t row = position.row * window.stride_h + y * window.dilation_h - window.top;
    for (int64_t x = 0; x < window.kernel_w; ++x, ++tap) {
      const int64_t column = position.column * window.stride_w + x * window.dilation_w - window.left;
      if (row < 0 || row >= static_cast<int64_t>(window.h) || column < 0 || column >= static_cast<int64_t>(window.w)) {
        for (size_t c = 0; c < window.c; ++c) field[c * taps + tap] = 0.0f;
        continue;
      }
      const float* const pixel = images + ((position.image * window.h + row) * window.w + column) * window.c;
      for (size_t c = 0; c < window.c; ++c) field[c * taps + tap] = pixel[c];
    }
  }
}

Extremes extremes_of(const float* values, size_t count) {
  float low[kLanes], high[kLanes];
  std::fill(low, low + kLanes, std::numeric_limits<float>::infinity());
  std::fill(high, high + kLanes, -std::numeric_limits<float>::infinity());
  const size_t whole = count / kLanes * kLanes;
  for (size_t i = 0; i < whole; i += kLanes) {
    for (size_t k = 0; k < kLanes; ++k) {
      const float value = values[i + k];
      low[k] = value < low[k] ? value : low[k];
      high[k] = value > high[k] ? value : high[k];
    }
  }
  for (size_t i = whole; i < count; ++i) {
    low[0] = std::min(low[0], values[i]);
    high[0] = std::max(high[0], values[i]);
  }
  return {*std::min_element(low, low + kLanes), *std::max_element(high, high + kLanes)};
}

double storage_error(const float* values, size_t count, float step, float low, float high) {
  const auto error = [=](float value) {
    const float ratio = value / step;
    const float above = ratio > low ? ratio : low;
    const float within = above < high ? above : high;
    const float missing = nearest_integer(within) * step - value;
    return missing * missing;
  };
  double sum = 0.0;
  size_t start = 0;
  for (; start + kChunk <= count; start += kChunk) {
    float lanes[kLanes] = {};
    for (size_t i = start; i < start + kChunk; i += kLanes) {
      for (size_t k = 0; k < kLanes; ++k) lanes[k] += error(values[i + k]);
    }
    for (const float lane : lanes) sum += lane;
  }
  for (; start < count; ++start) sum += error(values[start]);
  return sum;
}

}  // namespace trimtab
