// Which output rows a thread computes, and the input rows under them in scratch, with their border of zeros.
#pragma once

#include "epilogue.h"

namespace trimtab {
namespace {

// One block of output rows of one image: `pixels` output pixels whose inputs lie at base + offset[pixel].
template <class A>
struct Block {
  const A* base;
  const int32_t* offset;
  int pixels;
  size_t first_pixel;  // in the output, over all images
};

struct Span {
  int first, last;
};

TRIMTAB_INLINE Span share(int count, int thread, int threads) {
  return {static_cast<int>(int64_t{count} * thread / threads),
          static_cast<int>(int64_t{count} * (thread + 1) / threads)};
}

// The output rows of a task. A pointwise convolution is one image of n * h * w rows.
struct Rows {
  int images, first, last;
};

TRIMTAB_INLINE Rows rows_of(const Conv& g, const Task& task) {
  const int last = least(task.last_row, g.oh);
  if (!g.pointwise) return {task.images, task.first_row, last};
  return {1, task.first_row * g.ow, ((task.images - 1) * g.oh + last) * g.ow};
}

// How many blocks the rows of one image make.
TRIMTAB_INLINE int blocks_of(const Conv& g, const Rows& rows) {
  return (rows.last - rows.first + g.block_rows - 1) / g.block_rows;
}

// Threads share the blocks of rows; where there are fewer blocks than threads, they share the output channels.
TRIMTAB_INLINE bool shares_blocks(const Conv& g, const Task& task) {
  const Rows rows = rows_of(g, task);
  return rows.images * blocks_of(g, rows) >= task.threads;
}

// The elements of a row of scratch that lie inside the image.
TRIMTAB_INLINE int inner_width(const Conv& g) {
  return least(g.iw, greatest(0, g.scratch_w - g.pad_left)) * g.ic;
}

// A float32 input that becomes bf16 as it is copied: to nearest even, after clamping to what bf16 holds, so that steps
// which go beyond a segment meet its zero weights with finite numbers.
struct Rounded {
  float value;
};

// Its upper half is the bf16 number.
TRIMTAB_INLINE uint32_t round_bf16(Rounded x) {
  constexpr float kLargest = 0x1.fep127f;
  const float above = x.value > -kLargest ? x.value : -kLargest, within = above < kLargest ? above : kLargest;
  uint32_t bits;
  std::memcpy(&bits, &within, sizeof bits);
  return bits + 0x7fff + (bits >> 16 & 1);
}

// To bf16, or to the float32 that it is.
template <class A>
static void copy_inputs(A* to, const Rounded* from, size_t count, int32_t) {
  for (size_t i = 0; i < count; ++i) {
    const uint32_t bits = round_bf16(from[i]) & 0xffff0000;
    if constexpr (sizeof(A) == sizeof bits)
      std::memcpy(to + i, &bits, sizeof bits);
    else
      to[i] = static_cast<A>(bits >> 16);
  }
}

template <class A, class T>
static void copy_inputs(A* to, const T* from, size_t count, int32_t zero) {
  if constexpr (sizeof(A) == sizeof(T)) {
    std::memcpy(to, from, count * sizeof(A));
  } else {
    for (size_t i = 0; i < count; ++i) to[i] = static_cast<A>(from[i] - zero);
  }
}

// Copies the input rows under output rows [y0, y1), with padding, as A: float, (q - zero) or q itself.
template <class A, class T>
static void fill_scratch(const Conv& g, const T* image, int y0, int y1, A* scratch, A padding, int32_t zero) {
  const int row = g.scratch_w * g.ic, left = g.pad_left * g.ic;
  const int width = least(g.iw, g.scratch_w - g.pad_left) * g.ic;
  const int top = y0 * g.stride_h - g.pad_top, rows = (y1 - y0 - 1) * g.stride_h + g.reach_h;
  if (left == 0 && width == row && g.iw == g.scratch_w && top >= 0 && top + rows <= g.ih) {
    copy_inputs(scratch, image + static_cast<size_t>(top) * row, static_cast<size_t>(rows) * row, zero);
    return;
  }
  for (int r = 0; r < rows; ++r, scratch += row) {
    const int y = top + r;
    const bool inside = y >= 0 && y < g.ih && width > 0;
    const int before = inside ? left : row, after = inside ? row - left - width : 0;
    for (int i = 0; i < before; ++i) scratch[i] = padding;
    if (inside) copy_inputs(scratch + left, image + static_cast<size_t>(y) * g.iw * g.ic, width, zero);
    for (int i = 0; i < after; ++i) scratch[row - after + i] = padding;
  }
}

// The next multiple of `unit`.
TRIMTAB_INLINE int rounded_up(int n, int unit) { return (n + unit - 1) / unit * unit; }

// Calls body(image, y0, y1) for every block of this thread's output rows.
template <class Body>
TRIMTAB_INLINE void for_rows(const Conv& g, const Task& task, bool split, const Body& body) {
  const Rows rows = rows_of(g, task);
  const int blocks = blocks_of(g, rows);
  const Span units = split ? share(rows.images * blocks, task.thread, task.threads) : Span{0, rows.images * blocks};
  for (int unit = units.first; unit < units.last; ++unit) {
    const int y0 = rows.first + unit % blocks * g.block_rows;
    body(unit / blocks, y0, least(rows.last, y0 + g.block_rows));
  }
}

// Calls body(block) for every block of this thread.
template <class A, class T, class Body>
TRIMTAB_INLINE void for_blocks(const Conv& conv, const Operand& in, const Task& task, bool split, A padding,
                               const Body& body) {
  Conv g = conv;
  if (g.pointwise) {
    g.ih = g.oh = task.images * g.oh * g.ow;
    g.iw = g.ow = g.scratch_w = 1;
  }
  int32_t* offset = reinterpret_cast<int32_t*>(task.scratch);
  const size_t table = (static_cast<size_t>(g.block_rows) * g.ow * sizeof(int32_t) + 63) / 64 * 64;
  A* const scratch = reinterpret_cast<A*>(task.scratch + table);
  const int row = (g.direct ? g.iw : g.scratch_w) * g.ic;
  const Rows rows = rows_of(conv, task);
  for (int y = 0, i = 0; y < least(g.block_rows, rows.last - rows.first); ++y)
    for (int x = 0; x < g.ow; ++x) offset[i++] = y * g.stride_h * row + x * g.stride_w * g.ic;
  const T* const data = static_cast<const T*>(in.data);
  for_rows(conv, task, split, [&](int n, int y0, int y1) {
    const T* image = data + static_cast<size_t>(n) * g.ih * g.iw * g.ic;
    const A* base = scratch;
    if (g.direct)
      base = reinterpret_cast<const A*>(image + static_cast<size_t>(y0) * g.stride_h * row);
    else
      // Whole tiles: what lies beyond the last row reaches all outputs of a large one.
      fill_scratch<A, T>(g, image, y0, y0 + rounded_up(y1 - y0, greatest(g.tile_side, 1)), scratch, padding, in.zero);
    // The last pixels' steps go beyond what was filled.
    if constexpr (std::is_same_v<T, Rounded>)
      std::memset(scratch + (static_cast<size_t>(y1 - y0 - 1) * g.stride_h + g.reach_h) * row, 0, kSlack);
    body(Block<A>{base, offset, (y1 - y0) * g.ow, (static_cast<size_t>(n) * g.oh + y0) * g.ow});
  });
}

}  // namespace
}  // namespace trimtab
