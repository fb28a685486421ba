// SPDX-License-Identifier: MIT
//
// Starting the kernels: what the binding needs to know of them. Defined in forward.cu and
// backward.cu, and for the CPU in csrc/host/launch.cpp.
#pragma once

#include "table.h"

namespace fastsn {

// Enqueue one launch on a CUDA stream of the current device. `dtype` is that of the weights (in
// backward: of weight_sn). They set table.kept. Throw std::runtime_error where CUDA fails.
void launch_forward(ForwardTable& table, int32_t dtype, int device, void* stream);
void launch_backward(BackwardTable& table, int32_t dtype, int device, void* stream);

// Throws where the kernels cannot run on a CUDA device, which must be the current one.
void check_device(int device);

}  // namespace fastsn
