#if defined(__x86_64__)
#include "isa_amx.h"
#include "level.h"

namespace trimtab {

const Kernels& amx_kernels(bool bf16) {
  static constexpr Kernels kTable = make_kernels<Amx>("amx", false);
  static constexpr Kernels kWithBf16 = make_kernels<Amx>("amx", true);
  return bf16 ? kWithBf16 : kTable;
}

}  // namespace trimtab
#endif
