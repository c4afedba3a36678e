#include "isa_emulated.h"
#include "level.h"

namespace trimtab {

const Kernels& emulated_avx512_kernels() {
  static constexpr Kernels kTable = make_kernels<EmulatedAvx512>("emulated-avx512_vnni");
  return kTable;
}

}  // namespace trimtab
