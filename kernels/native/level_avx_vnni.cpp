#if defined(__x86_64__)
#include "isa_avx_vnni.h"
#include "level.h"

namespace trimtab {

const Kernels& avx_vnni_kernels() {
  static constexpr Kernels kTable = make_kernels<AvxVnni>("avx_vnni");
  return kTable;
}

}  // namespace trimtab
#endif
