// With how many channels tensors are stored.
#pragma once

#include <vector>

#include "table.h"

namespace trimtab {

// The channels that some tensors have in common: how many, whether all of them are stored as uint8, whether depthwise
// layers read them, and the width of the filter of every dense layer that does.
struct Channels {
  int count;
  bool integer, depthwise;
  std::vector<int> filters;
};

// How many are stored so that the layers around them are quickest; those that come new are zeros.
int stored_channels(const Kernels& kernels, const Channels& channels);

}  // namespace trimtab
