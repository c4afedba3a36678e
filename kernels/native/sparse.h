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
  start_tile<S>(start, acc);
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
  spill_tile<S>(acc, to.acc);
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
  const int panels = panels_of<S>(g).per_group, group = index / panels;
  const SparsePanel& sparse = g.sparse[index];
  const auto* b = static_cast<const typename P::B*>(g.weights) + sparse.first_weight;
  const auto* base = block.base + group * (g.ic / g.groups);
  for_tiles<S, Acc>(g, store, block.first_pixel, block.pixels, group, index % panels,
                    [&](int height, int vectors, int first, const Acc* start, const Target<Acc>& to) {
    sparse_kernel<S, P>(height, vectors)(base, block.offset + first, sparse.blocks, sparse.count, b, start, to);
  });
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
