// Memory on cache-line boundaries; large pieces on huge pages, which hardware prefetchers run through without stops.
// In a checked build (TRIMTAB_CHECKED: that of `make sanitize`) the very end is guarded.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(TRIMTAB_CHECKED)
#include <sanitizer/asan_interface.h>
#endif

namespace trimtab {

constexpr size_t kLine = 64, kHugePage = 2 << 20;

constexpr size_t round_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

class Memory {
 public:
  Memory() = default;
  explicit Memory(size_t bytes) : bytes_(bytes) {
    const size_t unit = bytes < kHugePage ? kLine : kHugePage, whole = round_up(bytes + kLine, unit);
    void* p = std::aligned_alloc(unit, whole);
    if (p == nullptr) throw std::bad_alloc();
#if defined(__linux__)
    if (unit == kHugePage) madvise(p, whole, MADV_HUGEPAGE);
#endif
    std::memset(p, 0, whole);
    data_.reset(static_cast<char*>(p));
#if defined(TRIMTAB_CHECKED)
    ASAN_POISON_MEMORY_REGION(data() + bytes, whole - bytes);
#endif
  }
  char* data() const { return data_.get(); }
  size_t bytes() const { return bytes_; }

 private:
  struct Free {
    void operator()(char* p) const { std::free(p); }
  };
  std::unique_ptr<char, Free> data_;
  size_t bytes_ = 0;
};

}  // namespace trimtab
