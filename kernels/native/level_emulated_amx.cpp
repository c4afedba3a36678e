#include "isa_emulated.h"
#include "level.h"

namespace trimtab {

const Kernels& emulated_amx_kernels() {
  static constexpr Kernels kTable = make_kernels<EmulatedAmx>("emulated-amx");
  return kTable;
}

}  // namespace trimtab
