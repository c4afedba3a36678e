#if defined(__x86_64__)
#include "isa_avx512.h"
#include "level.h"

namespace trimtab {

const Kernels& avx512_kernels(bool bf16) {
  static constexpr Kernels kTable = make_kernels<Avx512>("avx512_vnni", false);
  static constexpr Kernels kWithBf16 = make_kernels<Avx512>("avx512_vnni", true);
  return bf16 ? kWithBf16 : kTable;
}

}  // namespace trimtab
#endif
