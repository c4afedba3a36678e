#include "chain.h"

#include <algorithm>

namespace trimtab {
namespace {

int round_down(int n, int unit) { return n / unit * unit; }
int rounded_up(int n, int unit) { return (n + unit - 1) / unit * unit; }

Operand moved(Operand o, ptrdiff_t elements) {
  if (o.data != nullptr) o.data = static_cast<char*>(o.data) + elements * (o.is_u8 ? 1 : 4);
  return o;
}

}  // namespace

Chain::Chain(const std::vector<std::shared_ptr<const ConvCall>>& calls, const std::vector<size_t>& elements,
             size_t window_bytes) {
  for (size_t i = 0; i < calls.size(); ++i) {
    const Conv& g = calls[i]->packed.conv;
    kernel_scratch_ = std::max(kernel_scratch_, calls[i]->packed.scratch_bytes);
    links_.push_back({calls[i], std::max(g.tile_side, 1), elements[i] * g.ow * g.oc, 0, 0});
  }
  const int unit = links_.back().unit, rows = links_.back().call->packed.conv.oh;
  band_ = unit;
  while (band_ < rows && plan_windows(band_ + unit) <= window_bytes) band_ += unit;
  scratch_bytes_ = kernel_scratch_ + plan_windows(band_);
}

// Lays the windows out for bands of this many rows; returns their bytes.
size_t Chain::plan_windows(int band) {
  size_t bytes = 0;
  for (size_t i = links_.size() - 1; i-- > 0; band = links_[i].most_rows) {
    const Conv& next = links_[i + 1].call->packed.conv;
    Link& link = links_[i];
    // Rounding both ends to units can add a unit less one row at each.
    const int needed = (band - 1) * next.stride_h + next.reach_h + 2 * (link.unit - 1);
    link.most_rows = std::min(needed, rounded_up(link.call->packed.conv.oh, link.unit));
    link.position = kernel_scratch_ + bytes;
    bytes += round_up(link.most_rows * link.row + kSlack, kLine);
  }
  return bytes;
}

// The work of one thread on one image.
class Chain::Band {
 public:
  Band(const Chain& chain, const Operand& in, const std::vector<Store>& stores, int image, char* scratch)
      : chain_(chain), in_(in), stores_(stores), held_(stores.size(), {0, 0}), scratch_(scratch) {
    const Conv& first = conv(0);
    in_ = moved(in, static_cast<ptrdiff_t>(image) * first.ih * first.iw * first.ic);
    for (size_t i = 0; i < stores_.size(); ++i) {
      const ptrdiff_t skipped = static_cast<ptrdiff_t>(image) * conv(i).oh * conv(i).ow * conv(i).oc;
      stores_[i].residual = moved(stores_[i].residual, skipped);
      stores_[i].out = moved(stores_[i].out, skipped);
    }
  }

  void run(Chain::Rows rows) { compute(chain_.links_.size() - 1, rows); }

 private:
  const Conv& conv(size_t i) const { return chain_.links_[i].call->packed.conv; }

  // The output of link i as if it were whole, of which only the rows that its window holds may be touched.
  Operand window(size_t i) const {
    Operand o = stores_[i].out;
    o.data = scratch_ + chain_.links_[i].position - held_[i].first * static_cast<ptrdiff_t>(chain_.links_[i].row);
    return o;
  }

  // Makes the window of link i hold these rows at least. They never come before those of an earlier call.
  void hold(size_t i, Chain::Rows rows) {
    const Chain::Link& link = chain_.links_[i];
    rows.first = round_down(std::clamp(rows.first, 0, conv(i).oh), link.unit);
    rows.last = std::min(rounded_up(std::clamp(rows.last, 0, conv(i).oh), link.unit), conv(i).oh);
    Chain::Rows& held = held_[i];
    rows.last = std::max(rows.last, std::max(held.last, rows.first));
    const int from = std::max(rows.first, held.last);
    if (rows.first < held.last && rows.first != held.first) {
      char* const data = scratch_ + link.position;
      std::memmove(data, data + (rows.first - held.first) * link.row, (held.last - rows.first) * link.row);
    }
    held = rows;
    if (from < rows.last) compute(i, {from, rows.last});
  }

  void compute(size_t i, Chain::Rows rows) {
    const Conv& g = conv(i);
    if (i > 0) {
      const int top = rows.first * g.stride_h - g.pad_top;
      hold(i - 1, {top, top + (rows.last - rows.first - 1) * g.stride_h + g.reach_h});
    }
    Store store = stores_[i];
    if (i + 1 < chain_.links_.size()) store.out = window(i);
    const ConvCall& call = *chain_.links_[i].call;
    call.kernel(g, store, i > 0 ? window(i - 1) : in_, {1, 0, 1, scratch_, rows.first, rows.last});
  }

  const Chain& chain_;
  Operand in_;
  std::vector<Store> stores_;
  std::vector<Chain::Rows> held_;  // in every window
  char* scratch_;
};

void Chain::run(const Operand& in, const std::vector<Store>& stores, const Task& t) const {
  const int unit = links_.back().unit, rows = links_.back().call->packed.conv.oh;
  const int units = (rows + unit - 1) / unit;  // of one image
  const int64_t all = int64_t{units} * t.images;
  int64_t next = all * t.thread / t.threads;
  const int64_t end = all * (t.thread + 1) / t.threads;
  while (next < end) {
    const auto image = static_cast<int>(next / units);
    const int64_t last = std::min<int64_t>(end, int64_t{image + 1} * units);
    const auto stop = std::min(rows, static_cast<int>(last - int64_t{image} * units) * unit);
    Band band(*this, in, stores, image, t.scratch);
    for (auto y = static_cast<int>(next % units) * unit; y < stop; y += band_)
      band.run({y, std::min(stop, y + band_)});
    next = last;
  }
}

}  // namespace trimtab
