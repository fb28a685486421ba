// SPDX-License-Identifier: MIT
//
// Cooperative launches: all blocks of a grid are on the device at once, so that they can wait for
// each other. How many those are is asked once per kernel and device.
#pragma once

#include <cuda_runtime.h>

#include <map>
#include <mutex>
#include <stdexcept>
#include <string>

#include "plan.h"

namespace fastsn {

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // cleared, so that no later call reports it again
  throw std::runtime_error(std::string("fastsn: ") + what + ": " + cudaGetErrorString(error));
}

struct Capacity {
  int blocks;
  int slots;  // per block
};

inline int attribute(cudaDeviceAttr name, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, name, device), "cudaDeviceGetAttribute");
  return value;
}

// `wanted` blocks per multiprocessor, so that one works while the other waits, if that leaves each
// a ring of slots; else one. fixed_bytes: the shared memory of a block besides its slots.
inline Capacity measure_capacity(const void* kernel, int wanted, int fixed_bytes, int device) {
  if (attribute(cudaDevAttrCooperativeLaunch, device) == 0) {
    throw std::runtime_error("fastsn: expected a device with cooperative launch, got device " +
                             std::to_string(device) + " without");
  }
  const int per_block = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  const int per_processor = attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
  const int reserved = attribute(cudaDevAttrReservedSharedMemoryPerBlock, device);
  const int share = std::min(per_block, per_processor / wanted - reserved);
  int slots = (share - fixed_bytes) / kSlotBytes;
  if (slots < kRing) slots = (per_block - fixed_bytes) / kSlotBytes;
  const int bytes = fixed_bytes + std::max(slots, kRing) * kSlotBytes;
  if (bytes > per_block) {
    throw std::runtime_error("fastsn: expected " + std::to_string(bytes) +
                             " bytes of shared memory for a block, got device " +
                             std::to_string(device) + " with " + std::to_string(per_block));
  }
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
        "cudaFuncSetAttribute");
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                             cudaSharedmemCarveoutMaxShared),
        "cudaFuncSetAttribute");
  int fit = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&fit, kernel, kThreads, bytes),
        "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
  if (fit == 0) {
    throw std::runtime_error("fastsn: expected room for a block of " + std::to_string(kThreads) +
                             " threads on a multiprocessor of device " + std::to_string(device) +
                             ", got none");
  }
  return {fit * attribute(cudaDevAttrMultiProcessorCount, device), slots};
}

// Sums in double take twice the registers and shared memory.
template <typename T>
constexpr int kBlocksPerProcessor = sizeof(T) == 8 ? 1 : 2;

template <typename T, typename Parameter>
Capacity capacity(void (*kernel)(Parameter), int fixed_bytes, int device) {
  static std::mutex mutex;
  static std::map<int, Capacity> known;  // this kernel's, by device
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(device);
  if (found != known.end()) return found->second;
  const void* function = reinterpret_cast<const void*>(kernel);
  const Capacity own = measure_capacity(function, kBlocksPerProcessor<T>, fixed_bytes, device);
  return known.emplace(device, own).first->second;
}

// The kernel's parameter is the beginning of the table, as far as its problems go.
template <typename T, typename Parameter, typename Table>
void launch_cooperative(void (*kernel)(Parameter), int fixed_bytes, Table& table, int device,
                        void* stream) {
  // torch's guard has done so in torch's CUDA runtime, but this module has its own
  check(cudaSetDevice(device), "cudaSetDevice");
  const Capacity most = capacity<T>(kernel, fixed_bytes, device);
  const Residency residency(table.tiles, most.blocks, most.slots);
  table.kept = residency.kept;
  void* arguments[] = {&table};
  check(cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(kernel), dim3(residency.blocks),
                                    dim3(kThreads), arguments,
                                    fixed_bytes + residency.slots * kSlotBytes,
                                    static_cast<cudaStream_t>(stream)),
        "cudaLaunchCooperativeKernel");
}

}  // namespace fastsn
