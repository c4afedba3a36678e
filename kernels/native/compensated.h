// Rounding of a layer's weights where errors of some make up for those of others; kernels/compensated.py says how.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace trimtab {

// The sorted values that weights may take, in units of their channel's scale.
class Levels {
 public:
  Levels(const int8_t* levels, size_t count);

  // The level nearest to a ratio; halves go to the even one of consecutive integers, to the larger one of others.
  float nearest(float ratio) const;

 private:
  std::vector<float> levels_, middles_;
  bool consecutive_;
};

// One layer: (outputs, inputs) float32 weights, and a scale for each output.
struct WeightRows {
  const float* weights;
  const float* scale;
  size_t outputs, inputs;
};

// Input by input, each weight becomes the level that, with all later weights free, is best for the output. `factor`
// (inputs, inputs) is the upper triangular R with R R^T the inputs' covariance; `rounded` (outputs, inputs) is filled.
void round_in_order(const WeightRows& rows, const Levels& levels, const float* factor, float* rounded);

// Input by input, `sweeps` times or until none moves, each weight becomes the level that is best given all others.
// `missing` (outputs, inputs) is (weights - rounded * scale) times the covariance `gram`, before and afterwards.
void descend(const WeightRows& rows, const Levels& levels, const float* gram, int sweeps, float* rounded,
             float* missing);

}  // namespace trimtab
