#if defined(__x86_64__)
#include "isa_amx.h"
#include "level.h"

namespace trimtab {

const Kernels& amx_kernels() {
  static constexpr Kernels kTable = make_kernels<Amx>("amx");
  return kTable;
}

}  // namespace trimtab
#endif
