// SPDX-License-Identifier: MIT
//
// The choice of instruction set, at run time.
#pragma once

#include <vector>

#include "kernels.h"

namespace fastsn::cpu {

struct Level {
  const char* name;
  const Tables* tables;
};

// What this processor has, worst first. The last one is in use until set_level chooses another.
const std::vector<Level>& levels();
const Level& level();
void set_level(const Level& level);  // one of levels()

template <typename R>
const Kernels<R>& kernels();

}  // namespace fastsn::cpu
