// SPDX-License-Identifier: MIT
//
// The choice of instruction set, at run time.
#include "levels.h"

#include <atomic>

namespace fastsn::cpu {
namespace {

std::vector<Level> find_levels() {
  std::vector<Level> found{{"baseline", &kBaselineTables}};
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    found.push_back({"avx2", &kAvx2Tables});
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      found.push_back({"avx512", &kAvx512Tables});
    }
  }
#endif
  return found;
}

std::atomic<const Level*>& current() {
  static std::atomic<const Level*> level{&levels().back()};
  return level;
}

}  // namespace

const std::vector<Level>& levels() {
  static const std::vector<Level> found = find_levels();
  return found;
}

const Level& level() { return *current().load(std::memory_order_relaxed); }

void set_level(const Level& level) { current().store(&level, std::memory_order_relaxed); }

template <>
const Kernels<float>& kernels<float>() {
  return level().tables->single;
}

template <>
const Kernels<double>& kernels<double>() {
  return level().tables->twofold;
}

}  // namespace fastsn::cpu
