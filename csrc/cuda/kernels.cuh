// SPDX-License-Identifier: MIT
//
// Kernels under names that need no demangling: "fastsn_forward_rows_f32_few" and so on, as
// kernel_name.cpp has them, for every dtype and both sizes of the parameter.
#pragma once

#include "table.h"

// clang-format off
#define FASTSN_KERNEL(name, Type, dtype, Table, size, most, blocks, body)                     \
  namespace of_##name##dtype##size {                                                          \
  using T = Type;                                                                             \
  extern "C" __global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 2 : blocks)         \
      fastsn_##name##dtype##size(const __grid_constant__ Table<most> table) { body; }         \
  }

#define FASTSN_KERNELS_FOR(name, Type, dtype, Table, blocks, body)                            \
  FASTSN_KERNEL(name, Type, dtype, Table, _few, kFewProblems, blocks, body)                   \
  FASTSN_KERNEL(name, Type, dtype, Table, _many, kManyProblems, blocks, body)

#define FASTSN_KERNELS(name, Table, blocks, body)                                             \
  FASTSN_KERNELS_FOR(name, float, _f32, Table, blocks, body)                                  \
  FASTSN_KERNELS_FOR(name, double, _f64, Table, blocks, body)                                 \
  FASTSN_KERNELS_FOR(name, Float16, _f16, Table, blocks, body)                                \
  FASTSN_KERNELS_FOR(name, BFloat16, _bf16, Table, blocks, body)
// clang-format on
