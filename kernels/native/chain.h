// Convolutions that only read each other, run as one step: a band of the last one's rows at a time, so that what lies
// between them is a few rows that stay in cache, never a whole tensor.
#pragma once

#include <memory>
#include <vector>

#include "conv.h"

namespace trimtab {

// A packed convolution and the kernel for it.
struct ConvCall {
  PackedConv packed;
  void (*kernel)(const Conv&, const Store&, const Operand& in, const Task&);
};

class Chain {
 public:
  // `elements`: bytes of one stored element of every call's output. Bands are as high as all windows together stay
  // within `window_bytes`.
  Chain(const std::vector<std::shared_ptr<const ConvCall>>& calls, const std::vector<size_t>& elements,
        size_t window_bytes);

  size_t scratch_bytes() const { return scratch_bytes_; }  // per thread

  // Results are those of the calls one after the other. `in` is the first one's input; stores[i] is call i's, whose
  // `out` needs no data except the last one's.
  void run(const Operand& in, const std::vector<Store>& stores, const Task& task) const;

 private:
  // One call, and the window that holds the rows of its output which the next call needs.
  struct Link {
    std::shared_ptr<const ConvCall> call;
    int unit;         // its rows are computed in multiples of this many, so that all sums are those of a whole run
    size_t row;       // bytes of one row of its output
    int most_rows;    // in the window
    size_t position;  // of the window, in scratch
  };
  struct Rows {
    int first, last;
  };
  class Band;

  size_t plan_windows(int band);

  std::vector<Link> links_;
  int band_ = 1;  // rows of the last output that are computed at a time
  size_t kernel_scratch_ = 0, scratch_bytes_ = 0;
};

}  // namespace trimtab
