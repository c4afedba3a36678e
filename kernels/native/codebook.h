// Weights of few distinct values, stored narrower than int8: which layers have them, and how they are packed.
#pragma once

#include "conv.h"

namespace trimtab {

// Whether the layer runs on codes, and if so on which: Method::kPacked, Method::kLookup, or Method::kRows for neither.
Method choose_codes(const ConvSpec& spec, const Kernels& kernels, const Operand& in, int batch);

// Describes the codes of a layer whose method says that it has them.
Codes describe_codes(const ConvSpec& spec, const Kernels& kernels, const Operand& in, Method method);

// Lays out p.weights; the segments are planned.
void pack_codes(const ConvSpec& spec, PackedConv& p, const Kernels& kernels);

// Adds what the kernels need in each thread's scratch; the blocks are planned.
void plan_codes(PackedConv& p);

}  // namespace trimtab
