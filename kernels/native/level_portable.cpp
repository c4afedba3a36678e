#include "isa_portable.h"
#include "level.h"

namespace trimtab {

const Kernels& portable_kernels() {
  static constexpr Kernels kTable = make_kernels<Portable>("portable");
  return kTable;
}

}  // namespace trimtab
