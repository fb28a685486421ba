// SPDX-License-Identifier: MIT
#include <cuda_runtime.h>

#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>

#include "launch.h"
#include "shared.h"

namespace fastsn {

// clang-format off
#define FASTSN_DECLARE(name, Table, dtype)                                                    \
  extern "C" __global__ void                                                                  \
      fastsn_##name##dtype##_few(const __grid_constant__ Table<kFewProblems>);                \
  extern "C" __global__ void                                                                  \
      fastsn_##name##dtype##_many(const __grid_constant__ Table<kManyProblems>);
#define FASTSN_DECLARE_ALL(name, Table)                                                       \
  FASTSN_DECLARE(name, Table, _f64) FASTSN_DECLARE(name, Table, _f32)                         \
  FASTSN_DECLARE(name, Table, _bf16) FASTSN_DECLARE(name, Table, _f16)
#define FASTSN_OF(name, dtype)                                                                \
  {reinterpret_cast<const void*>(fastsn_##name##dtype##_few),                                 \
   reinterpret_cast<const void*>(fastsn_##name##dtype##_many)}
#define FASTSN_ALL_OF(name)                                                                   \
  {FASTSN_OF(name, _f64), FASTSN_OF(name, _f32), FASTSN_OF(name, _bf16), FASTSN_OF(name, _f16)}
// clang-format on

FASTSN_DECLARE_ALL(forward_rows, ForwardTableOf)
FASTSN_DECLARE_ALL(forward_cols, ForwardTableOf)
FASTSN_DECLARE_ALL(forward_finish, ForwardTableOf)
FASTSN_DECLARE_ALL(backward_dot, BackwardTableOf)
FASTSN_DECLARE_ALL(backward_store, BackwardTableOf)

namespace {

const void* function_of(int32_t kernel, int32_t dtype, int32_t many) {
  static const void* const functions[kKernels][4][2] = {
      FASTSN_ALL_OF(forward_rows), FASTSN_ALL_OF(forward_cols), FASTSN_ALL_OF(forward_finish),
      FASTSN_ALL_OF(backward_dot), FASTSN_ALL_OF(backward_store)};
  const int at = dtype == kFloat64 ? 0 : dtype == kFloat32 ? 1 : dtype == kBFloat16 ? 2 : 3;
  return functions[kernel][at][many];
}

// CUDA's default for a block; more has to be asked for, once per kernel and device.
constexpr int kDefaultShared = 48 * 1024;

void check(cudaError_t error, const std::string& what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // cleared, so that no later call reports it again
  throw std::runtime_error(what + ": " + cudaGetErrorString(error));
}

void allow_shared(const void* function, int bytes, int device, const char* name) {
  static std::mutex mutex;
  static std::set<std::pair<const void*, int>> allowed;
  const std::lock_guard<std::mutex> lock(mutex);
  if (allowed.count({function, device}) > 0) return;
  check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), name);
  allowed.insert({function, device});
}

std::string version(int number) {
  return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}

}  // namespace

// torch's guard has set the device in torch's CUDA runtime, but this module has its own.
void start(const Launch& launch, int device, void* stream) {
  const char* name = kernel_name(launch);
  check(cudaSetDevice(device), name);
  const void* function = function_of(launch.kernel, launch.dtype, launch.many);
  if (launch.shared_bytes > kDefaultShared) {
    allow_shared(function, launch.shared_bytes, device, name);
  }
  void* arguments[] = {const_cast<void*>(launch.parameter)};
  check(cudaLaunchKernel(function, dim3(launch.blocks), dim3(launch.threads), arguments,
                         launch.shared_bytes, static_cast<cudaStream_t>(stream)),
        name);
}

void fill_zeros(void* memory, int64_t bytes, int device, void* stream) {
  check(cudaSetDevice(device), "cudaSetDevice");
  check(cudaMemsetAsync(memory, 0, bytes, static_cast<cudaStream_t>(stream)), "cudaMemsetAsync");
}

void check_device(int device) {
  int driver = 0;
  check(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
  // The runtime in this module works with every driver of its major version, and with newer ones.
  if (driver / 1000 < CUDART_VERSION / 1000) {
    throw std::runtime_error(
        "expected a driver for CUDA " + std::to_string(CUDART_VERSION / 1000) +
        ".0 or newer, as fastsn._C_cuda was built with CUDA " + version(CUDART_VERSION) +
        ", got one for CUDA " + version(driver) +
        ": update the driver, or build fastsn with the CUDA toolkit of the driver's version");
  }
  check(cudaSetDevice(device), "cudaSetDevice");
  int most = 0;
  check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
        "cudaDeviceGetAttribute");
  for (int kernel = 0; kernel < kKernels; ++kernel) {
    for (int32_t dtype : {kFloat64, kFloat32, kBFloat16, kFloat16}) {
      const Launch launch{kernel, dtype, 1, 1, kThreads, shared_bytes(kernel, dtype)};
      const char* name = kernel_name(launch);
      if (launch.shared_bytes > most) {
        throw std::runtime_error(
            std::string(name) + ": expected " + std::to_string(launch.shared_bytes) +
            " bytes of shared memory for a block, got a device with " + std::to_string(most));
      }
      cudaFuncAttributes attributes;  // fails where no code was compiled for the device
      check(cudaFuncGetAttributes(&attributes, function_of(kernel, dtype, 1)), name);
    }
  }
}

}  // namespace fastsn
