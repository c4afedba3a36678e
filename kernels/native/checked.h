// What a checked build (TRIMTAB_CHECKED: that of `make sanitize`) proves beyond the sanitizers: no step writes outside
// of its output, and no result depends on bytes that nothing wrote.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "memory.h"

namespace trimtab {

#if defined(TRIMTAB_CHECKED)
constexpr bool kChecked = true;
#else
constexpr bool kChecked = false;
#endif

// Not a number as float32, 255 as uint8: whatever reads it shows it.
inline void fill_with_junk(const Memory& memory) {
  if (kChecked) std::memset(memory.data(), 0xff, memory.bytes());
}

class WriteCheck {
 public:
  void before(const Memory& arena) { seen_.assign(arena.data(), arena.data() + arena.bytes()); }

  // Ends the program if a byte outside of [offset, offset + size) has changed since before().
  void after(const Memory& arena, const std::string& step, size_t offset, size_t size) const {
    for (size_t i = 0; i < arena.bytes(); ++i) {
      if (i == offset) i += size;
      if (i < arena.bytes() && arena.data()[i] != seen_[i]) {
        std::fprintf(stderr, "step %s wrote byte %zu of the arena; its output is %zu bytes from %zu\n", step.c_str(), i,
                     size, offset);
        std::abort();
      }
    }
  }

 private:
  std::vector<char> seen_;
};

}  // namespace trimtab
