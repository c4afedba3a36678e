// Pruned layers: steps of a panel whose weights are all zero are left out. A block is one step (`dot` inputs) by one
// panel of output channels.
#pragma once

#include "gemm.h"

namespace trimtab {
namespace {

// MR pixels times NV vectors of output channels over the blocks of one panel; their inputs lie at offset[i] + blocks[n].
template <class S, class P, int MR, int NV>
static void micro_sparse(const typename P::A* base, const int32_t* offset, const int32_t* blocks, int count,
                         const typename P::B* b, const typename P::Acc* start, const Target<typename P::Acc>& to) {
  using V = typename P::V;
  V acc[MR][NV];
#pragma GCC unroll 8
  for (int j = 0; j < NV; ++j) {
    V first;
    std::memcpy(&first, start + j * S::kLanes, sizeof first);
#pragma GCC unroll 8
    for (int i = 0; i < MR; ++i) acc[i][j] = first;
  }
  const typename P::A* a[MR];
#pragma GCC unroll 8
  for (int i = 0; i < MR; ++i) a[i] = base + offset[i];
  for (int n = 0; n < count; ++n) {
    V right[NV];
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) right[j] = P::weights(b + j * S::kLanes * P::kDot);
    b += NV * S::kLanes * P::kDot;
    const ptrdiff_t at = blocks[n];
#pragma GCC unroll 8
    for (int i = 0; i < MR; ++i) {
      const V left = P::broadcast(a[i] + at);
#pragma GCC unroll 8
      for (int j = 0; j < NV; ++j) acc[i][j] = P::dot(acc[i][j], left, right[j]);
    }
  }
  if (to.finish != Finish::kMemory) return finish_tile<S>(acc, to);
#pragma GCC unroll 8
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) std::memcpy(to.acc + (i * NV + j) * S::kLanes, &acc[i][j], sizeof(V));
  }
}

template <class P>
using MicroSparse = void (*)(const typename P::A*, const int32_t*, const int32_t*, int, const typename P::B*,
                             const typename P::Acc*, const Target<typename P::Acc>&);

template <class S, class P, int NV>
TRIMTAB_INLINE MicroSparse<P> sparse_of_height(int height) {
  if (height == S::kRows) return &micro_sparse<S, P, S::kRows, NV>;
  return height == 4   ? &micro_sparse<S, P, 4, NV>
         : height == 2 ? &micro_sparse<S, P, 2, NV>
                       : &micro_sparse<S, P, 1, NV>;
}

template <class S, class P>
static MicroSparse<P> sparse_kernel(int height, int vectors) {
  if constexpr (S::kVectors > 2) {
    if (vectors == 4) return sparse_of_height<S, P, 4>(height);
    if (vectors == 3) return sparse_of_height<S, P, 3>(height);
  }
  return vectors == 2 ? sparse_of_height<S, P, 2>(height) : sparse_of_height<S, P, 1>(height);
}

// `index` counts the panels of all groups.
template <class S, class P>
static void sparse_panel(const Conv& g, const Store& store, const Block<typename P::A>& block, int index) {
  using Acc = typename P::Acc;
  constexpr int kWidth = S::kVectors * S::kLanes;
  const Panels shape = panels_of<S>(g);
  const int group = index / shape.per_group, panel = index % shape.per_group;
  const int vectors = least(S::kVectors, shape.vectors - panel * S::kVectors), row = vectors * S::kLanes;
  const SparsePanel& sparse = g.sparse[index];
  const auto* b = static_cast<const typename P::B*>(g.weights) + sparse.first_weight;
  const int channel = group * g.group_width + panel * kWidth, per_group = g.oc / g.groups;
  const int columns = least(row, per_group - panel * kWidth);
  alignas(64) Acc acc[S::kRows * kWidth];
  Target<Acc> to{columns == row ? finish_of<Acc>(store) : Finish::kMemory, &store, acc, 0, static_cast<size_t>(g.oc),
                 channel, nullptr, 0};
  for (int m = 0; m < block.pixels;) {
    const int height = tile_height<S>(block.pixels - m, block.pixels);
    const int first = least(m, block.pixels - height);
    to.first = (block.first_pixel + first) * g.oc + group * per_group + panel * kWidth;
    sparse_kernel<S, P>(height, vectors)(block.base + group * (g.ic / g.groups), block.offset + first, sparse.blocks,
                                         sparse.count, b, static_cast<const Acc*>(g.start) + channel, to);
    if (to.finish == Finish::kMemory) emit<S>(store, acc, row, height, columns, to.first, g.oc, channel);
    m = first + height;
  }
}

template <class S, class P, class T>
static void conv_sparse(const Conv& g, const Store& store, const Operand& in, const Task& task) {
  using A = typename P::A;
  const bool by_block = shares_blocks(g, task);
  const int panels = g.groups * panels_of<S>(g).per_group;
  const Span mine = by_block ? Span{0, panels} : share(panels, task.thread, task.threads);
  const A padding = sizeof(A) == 1 ? static_cast<A>(in.zero) : A{0};
  for_blocks<A, T>(g, in, task, by_block, padding, [&](const Block<A>& block) {
    for (int p = mine.first; p < mine.last; ++p) sparse_panel<S, P>(g, store, block, p);
  });
}

}  // namespace
}  // namespace trimtab
