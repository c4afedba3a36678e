// What this processor offers, and which levels it can run.
#pragma once

#include <string>
#include <vector>

#include "table.h"

namespace trimtab {

struct Cpu {
  std::string vendor, model;
  std::vector<std::string> features;
  int logical;
};

Cpu detect_cpu();
size_t second_cache();  // bytes that one core has to itself, nearly: those of its second cache
std::vector<std::string> available_levels();  // best first
std::vector<std::string> emulated_levels();
const Kernels* find_kernels(const std::string& level);  // null where this machine lacks it

}  // namespace trimtab
