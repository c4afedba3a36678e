#if defined(__x86_64__)
#include "isa_avx512.h"
#include "level.h"

namespace trimtab {

const Kernels& avx512_kernels() {
  static constexpr Kernels kTable = make_kernels<Avx512>("avx512_vnni");
  return kTable;
}

}  // namespace trimtab
#endif
