#if defined(__x86_64__)
#include "isa_avx2.h"
#include "level.h"

namespace trimtab {

const Kernels& avx2_kernels() {
  static constexpr Kernels kTable = make_kernels<Avx2>("avx2");
  return kTable;
}

}  // namespace trimtab
#endif
