#include "padding.h"

#include <algorithm>

#include "memory.h"

namespace trimtab {
namespace {

// A depthwise layer takes vectors of one pixel after the other, and in each the last one, if it is not whole, overlaps the
// one before; loads of whole ones cross no lines of the cache. Measured, 3x3 at 28x28: at the amx level 15 channels stored
// as 16 0.93x of the time (float 0.73x), 24 as 32 1.0x (0.86x), 28 as 32 0.97x (0.77x), 60 as 64 0.95x (0.77x). MobileNetV2
// with 10 to 15 of 16 channels, as a whole: 0.94x to 0.96x (float 0.92x to 0.97x), at avx2 0.98x (0.97x).
constexpr double kDepthwiseShare = 3 / 4.0;

// Rows of tiles that begin anywhere are read from two lines of the cache, and stores of part of a vector are masked.
// Measured, 3x3: 6 to 15 channels stored as 16 0.76x to 0.97x, 22 to 31 as 32 0.88x to 0.99x, 54 to 63 as 64 0.89x to
// 0.98x; 50 as 64 1.07x; with a step more in each row of the filter, 17 as 32 1.2x. 1x1: 26 to 31 as 32 0.89x to 0.97x, 49 to 63 as
// 64 0.72x to 0.82x, 84 to 127 as a multiple of 16 0.89x to 0.98x, 66 as 80 0.99x, 18 as 32 1.06x.
constexpr int kFewestTiled = 6, kTiledMore = 10;
constexpr double kFlatShare = 4 / 5.0;

// Steps of whole tiles that a row of a filter takes.
int tile_steps(const Kernels& k, int filter, int channels) {
  const int step = kTileSteps * k.dot;
  return (filter * channels + step - 1) / step;
}

bool tiles_gain(const Kernels& k, const Channels& c, int padded) {
  if (c.filters.empty()) return false;
  const bool longer = std::any_of(c.filters.begin(), c.filters.end(), [&](int filter) {
    return tile_steps(k, filter, padded) > tile_steps(k, filter, c.count);
  });
  if (longer) return false;
  const bool flat = *std::min_element(c.filters.begin(), c.filters.end()) == 1;
  return flat ? c.count >= kFlatShare * padded : c.count >= kFewestTiled && padded - c.count <= kTiledMore;
}

}  // namespace

int stored_channels(const Kernels& k, const Channels& c) {
  const int padded = static_cast<int>(round_up(c.count, k.lanes));
  const bool gains = c.depthwise ? c.count >= kDepthwiseShare * padded : c.integer && k.has_tiles && tiles_gain(k, c, padded);
  return gains ? padded : c.count;
}

}  // namespace trimtab
