#include "cpu.h"

#include <cstring>
#include <thread>

#if defined(__linux__)
#include <unistd.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#endif
#endif

namespace trimtab {
namespace {

#if defined(__x86_64__)

bool bit(unsigned word, int index) { return (word >> index) & 1; }

uint64_t enabled_state() {
  uint32_t low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t{high} << 32) | low;
}

// Linux hands out the tile state only to processes that ask for it.
bool tiles_permitted() {
#if defined(__linux__)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

struct Features {
  bool avx2 = false, avx_vnni = false, avx512_vnni = false, amx = false, avx512_bf16 = false, amx_bf16 = false;
};

Features detect_features() {
  Features f;
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !bit(c, 27)) return f;
  const bool fma = bit(c, 12);
  const uint64_t state = enabled_state();
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (state & 0x6) != 0x6) return f;
  f.avx2 = fma && bit(b, 5);
  const bool foundation = bit(b, 16) && bit(b, 17) && bit(b, 30) && bit(b, 31);
  f.avx512_vnni = f.avx2 && foundation && bit(c, 11) && (state & 0xe6) == 0xe6;
  f.amx = f.avx512_vnni && bit(d, 24) && bit(d, 25) && (state & 0x60000) == 0x60000 && tiles_permitted();
  f.amx_bf16 = f.amx && bit(d, 22);
  if (!f.avx2 || !__get_cpuid_count(7, 1, &a, &b, &c, &d)) return f;
  f.avx_vnni = bit(a, 4);
  f.avx512_bf16 = f.avx512_vnni && bit(a, 5);
  return f;
}

std::string vendor_name() {
  unsigned a, b, c, d;
  if (!__get_cpuid(0, &a, &b, &c, &d)) return "unknown";
  char name[12];
  std::memcpy(name, &b, 4);
  std::memcpy(name + 4, &d, 4);
  std::memcpy(name + 8, &c, 4);
  return std::string(name, sizeof name);
}

std::string model_name() {
  unsigned words[12];
  for (unsigned i = 0; i < 3; ++i) {
    unsigned* w = words + 4 * i;
    if (!__get_cpuid(0x80000002 + i, w, w + 1, w + 2, w + 3)) return "unknown";
  }
  const char* text = reinterpret_cast<const char*>(words);
  std::string name(text, strnlen(text, sizeof words));
  name.erase(name.find_last_not_of(' ') + 1);
  return name;
}

const Features& features() {
  static const Features found = detect_features();
  return found;
}

#endif

}  // namespace

Cpu detect_cpu() {
  Cpu cpu{"unknown", "unknown", {}, static_cast<int>(std::thread::hardware_concurrency())};
#if defined(__x86_64__)
  cpu.vendor = vendor_name();
  cpu.model = model_name();
  if (features().avx2) cpu.features.insert(cpu.features.end(), {"avx2", "fma"});
  if (features().avx_vnni) cpu.features.push_back("avx_vnni");
  if (features().avx512_vnni) cpu.features.insert(cpu.features.end(), {"avx512f", "avx512bw", "avx512vl", "avx512_vnni"});
  if (features().avx512_bf16) cpu.features.push_back("avx512_bf16");
  if (features().amx) cpu.features.insert(cpu.features.end(), {"amx_tile", "amx_int8"});
  if (features().amx_bf16) cpu.features.push_back("amx_bf16");
#endif
  return cpu;
}

size_t second_cache() {
  constexpr long kUsual = 512 * 1024;
#if defined(_SC_LEVEL2_CACHE_SIZE)
  static const long told = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (told > 0) return static_cast<size_t>(told);
#endif
  return kUsual;
}

std::vector<std::string> available_levels() {
  std::vector<std::string> levels;
#if defined(__x86_64__)
  if (features().amx) levels.push_back("amx");
  if (features().avx512_vnni) levels.push_back("avx512_vnni");
  if (features().avx_vnni) levels.push_back("avx_vnni");
  if (features().avx2) levels.push_back("avx2");
#endif
  levels.push_back("portable");
  return levels;
}

std::vector<std::string> emulated_levels() { return {"emulated-amx", "emulated-avx512_vnni", "emulated-avx_vnni"}; }

const Kernels* find_kernels(const std::string& level) {
#if defined(__x86_64__)
  if (level == "amx" && features().amx) return &amx_kernels(features().amx_bf16 && features().avx512_bf16);
  if (level == "avx512_vnni" && features().avx512_vnni) return &avx512_kernels(features().avx512_bf16);
  if (level == "avx_vnni" && features().avx_vnni) return &avx_vnni_kernels();
  if (level == "avx2" && features().avx2) return &avx2_kernels();
#endif
  if (level == "portable") return &portable_kernels();
  if (level == "emulated-avx_vnni") return &emulated_avx_vnni_kernels();
  if (level == "emulated-avx512_vnni") return &emulated_avx512_kernels();
  if (level == "emulated-amx") return &emulated_amx_kernels();
  return nullptr;
}

}  // namespace trimtab
