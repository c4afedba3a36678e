// Memory on cache-line boundaries.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

namespace trimtab {

constexpr size_t kLine = 64;

constexpr size_t round_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

class Memory {
 public:
  Memory() = default;
  explicit Memory(size_t bytes) : bytes_(bytes) {
    void* p = std::aligned_alloc(kLine, round_up(bytes + kLine, kLine));
    if (p == nullptr) throw std::bad_alloc();
    std::memset(p, 0, round_up(bytes + kLine, kLine));
    data_.reset(static_cast<char*>(p));
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
