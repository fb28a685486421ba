// SPDX-License-Identifier: MIT
//
// The one door to the device: every launch of every kernel goes through it, as plain data.
//
// How a simulator hooks in: link csrc/cuda/ops.cpp (compiled with FASTSN_HOST, so that it serves
// CPU tensors as torch.ops.fastsn_cuda_host) with definitions of the functions below in place of
// launch.cu. `kernel_name` (kernel_name.cpp) is the kernel's symbol in the PTX of forward.cu and
// backward.cu, unmangled; all kernels take one parameter by value, the first `parameter_bytes` at
// `parameter`, of which those from `used_bytes` on are never read. Launches run one after the
// other. csrc/host/launch.cpp does so for the shim.
#pragma once

#include <cstdint>

namespace fastsn {

enum Kernel : int32_t {
  kForwardRows = 0,    // s = M v: part sums, added up by the block that comes last
  kForwardCols = 1,    // t = M^T u, likewise
  kForwardFinish = 2,  // sigma, the vectors, weight_sn
  kBackwardDot = 3,    // c = <G, weight_sn>: one part sum per block
  kBackwardStore = 4,  // the gradient of the weight
  kKernels = 5,
};

// A plain launch: no block waits for another, blocks may run in any order, one or many at a time.
struct Launch {
  int32_t kernel;           // a Kernel
  int32_t dtype;            // of the weights (table.h), which the kernel is compiled for
  int32_t many;             // 1: the variant whose parameter has room for kManyProblems
  int32_t blocks;           // along x
  int32_t threads;          // of a block, along x
  int32_t shared_bytes;     // dynamic shared memory of a block
  const void* parameter;    // a ForwardTable or BackwardTable (table.h), on the host
  int64_t parameter_bytes;  // that the kernel takes
  int64_t used_bytes;       // that mean something
};

// "fastsn_forward_rows_f32_few": the symbol of the kernel. Valid until the next call of the thread.
const char* kernel_name(const Launch& launch);

// Enqueues a launch on a stream of a device, which is made the current one. Throws
// std::runtime_error, with the name of the kernel, where it is refused.
void start(const Launch& launch, int device, void* stream);

// Enqueues the filling of memory with zeros.
void fill_zeros(void* memory, int64_t bytes, int device, void* stream);

// Throws where the kernels cannot run on a device.
void check_device(int device);

}  // namespace fastsn
