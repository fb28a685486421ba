// SPDX-License-Identifier: MIT
//
// As much of CUDA's runtime as csrc/cuda/launch.cu needs, with a driver and a device that a test
// makes up: every call is written to stdout, and FAIL names one that fails.
#pragma once

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#define __global__
#define __grid_constant__

#ifndef CUDART_VERSION
#define CUDART_VERSION 13000
#endif

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaDeviceAttr { cudaDevAttrMaxSharedMemoryPerBlockOptin = 97 };
struct CUstream_st;
using cudaStream_t = CUstream_st*;
struct cudaFuncAttributes {
  int numRegs;
};
struct dim3 {
  explicit dim3(unsigned size) : x(size) {}
  unsigned x;
};

namespace fake {

inline int number(const char* name, int otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::atoi(text);
}

inline cudaError_t call(const char* name, int number = -1) {
  std::printf(number < 0 ? "%s\n" : "%s %d\n", name, number);
  const char* fail = std::getenv("FAIL");
  return fail != nullptr && std::strcmp(fail, name) == 0 ? cudaErrorInvalidValue : cudaSuccess;
}

}  // namespace fake

inline const char* cudaGetErrorString(cudaError_t) { return "made up"; }
inline cudaError_t cudaGetLastError() { return fake::call("cudaGetLastError"); }
inline cudaError_t cudaSetDevice(int device) { return fake::call("cudaSetDevice", device); }
inline cudaError_t cudaDriverGetVersion(int* version) {
  *version = fake::number("DRIVER", 13000);
  return fake::call("cudaDriverGetVersion");
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int device) {
  *value = fake::number("SHARED", 232448);
  return fake::call("cudaDeviceGetAttribute", device);
}
inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, const void*) {
  return fake::call("cudaFuncGetAttributes");
}
inline cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int bytes) {
  return fake::call("cudaFuncSetAttribute", bytes);
}
inline cudaError_t cudaLaunchKernel(const void*, dim3 blocks, dim3, void**, std::size_t,
                                    cudaStream_t) {
  return fake::call("cudaLaunchKernel", static_cast<int>(blocks.x));
}
inline cudaError_t cudaMemsetAsync(void*, int, std::size_t bytes, cudaStream_t) {
  return fake::call("cudaMemsetAsync", static_cast<int>(bytes));
}
