// What repairs look at in a network's tensors; kernels/observe.py describes the functions.
#pragma once

#include <cstddef>
#include <cstdint>

namespace trimtab {

// Images (n, h, w, c), and the outputs of a convolution on them.
struct Window {
  size_t h, w, c;
  int64_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, top, left;
};

// One output position of one image.
struct Position {
  int64_t image, row, column;
};

// Fills `field` (c, kernel_h, kernel_w) with what an output position reads, zeros where it reads padding.
void read_field(const Window& window, const float* images, const Position& position, float* field);

// The smallest and the largest of `count` > 0 numbers.
struct Extremes {
  float low, high;
};
Extremes extremes_of(const float* values, size_t count);

// The sum of squared errors of values stored as the multiples `low` to `high`, |each| < 2^22, of a step.
double storage_error(const float* values, size_t count, float step, float low, float high);

}  // namespace trimtab
