#include "isa_emulated.h"
#include "level.h"

namespace trimtab {

const Kernels& emulated_avx_vnni_kernels() {
  static constexpr Kernels kTable = make_kernels<EmulatedAvxVnni>("emulated-avx_vnni");
  return kTable;
}

}  // namespace trimtab
