// SPDX-License-Identifier: MIT
//
// The part of the CUDA runtime that csrc/cuda calls, on the machine's one device: what nvcc makes
// of the sources' host side runs as it is, and its launches run here. Memory that the binding
// allocates is made known.
#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <utility>

#include "kernels.h"

namespace ptx {
namespace {

std::map<const void*, std::string> functions;  // by the host's stub
std::map<const void*, s64> most_shared;        // that a function asked for
constexpr s64 kSharedWithoutAsking = 48 << 10;

// A device of compute capability 9.0, as large as an H100 or H200.
constexpr int kProcessors = 132;
constexpr s64 kSharedPerBlock = 227 << 10, kSharedPerProcessor = 228 << 10, kSharedReserved = 1024;
constexpr int kThreadsPerProcessor = 2048, kBlocksPerProcessor = 32;

struct Configuration {
  dim3 grid, block;
  size_t shared;
  cudaStream_t stream;
} configuration;

cudaError_t last_error = cudaSuccess;
cudaError_t fail(cudaError_t error) { return last_error = error; }

cudaError_t start(const void* function, dim3 grid, dim3 block, void** parameters, size_t shared) {
  const auto found = functions.find(function);
  if (found == functions.end()) return fail(cudaErrorInvalidDeviceFunction);
  const auto asked = most_shared.find(function);
  const s64 most = asked == most_shared.end() ? kSharedWithoutAsking : asked->second;
  const bool flat = grid.y == 1 && grid.z == 1 && block.y == 1 && block.z == 1;
  if (grid.x == 0 || block.x == 0 || block.x > 1024 || !flat || static_cast<s64>(shared) > most) {
    return fail(cudaErrorInvalidValue);
  }
  try {
    launch(found->second, grid.x, block.x, static_cast<s64>(shared), parameters);
  } catch (const std::exception& error) {
    reports().text(std::string("launch failed: ") + error.what() + "\n");
    return fail(cudaErrorLaunchFailure);
  }
  return cudaSuccess;
}

void write_by_host(const void* address) {
  if (Allocation* own = memory().find(reinterpret_cast<u64>(address))) own->write_by_host();
}

}  // namespace
}  // namespace ptx

extern "C" {

// Called by what nvcc generates for a file of sources.
void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char* stub, char*, const char* name, int, uint3*, uint3*,
                            dim3*, dim3*, int*) {
  ptx::functions[stub] = name;
}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
cudaError_t __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t stream) {
  ptx::configuration = {grid, block, shared, stream};
  return cudaSuccess;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  *grid = ptx::configuration.grid;
  *block = ptx::configuration.block;
  *shared = ptx::configuration.shared;
  *static_cast<cudaStream_t*>(stream) = ptx::configuration.stream;
  return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* stub) {
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(stub));
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** parameters,
                               size_t shared, cudaStream_t) {
  return ptx::start(kernel, grid, block, parameters, shared);
}

cudaError_t cudaLaunchKernel(const void* stub, dim3 grid, dim3 block, void** parameters,
                             size_t shared, cudaStream_t) {
  return ptx::start(stub, grid, block, parameters, shared);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* stub,
                                void** parameters) {
  return ptx::start(stub, config->gridDim, config->blockDim, parameters, config->dynamicSmemBytes);
}
cudaError_t cudaFuncSetAttribute(const void* stub, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value > ptx::kSharedPerBlock) return ptx::fail(cudaErrorInvalidValue);
  ptx::most_shared[stub] = value;
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int threads,
                                                          size_t shared) {
  const ptx::s64 by_shared =
      ptx::kSharedPerProcessor / (static_cast<ptx::s64>(shared) + ptx::kSharedReserved);
  const ptx::s64 by_threads = ptx::kThreadsPerProcessor / threads;
  *blocks = static_cast<int>(std::min({by_shared, by_threads, ptx::s64{ptx::kBlocksPerProcessor}}));
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = ptx::kProcessors;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = ptx::kSharedPerBlock;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = ptx::kSharedPerProcessor;
      return cudaSuccess;
    case cudaDevAttrReservedSharedMemoryPerBlock:
      *value = ptx::kSharedReserved;
      return cudaSuccess;
    default:
      return ptx::fail(cudaErrorNotSupported);
  }
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaPeekAtLastError() { return ptx::last_error; }
cudaError_t cudaGetLastError() { return std::exchange(ptx::last_error, cudaSuccess); }
const char* cudaGetErrorString(cudaError_t) { return "refused by the machine of tests/ptx"; }
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  std::memset(memory, value, bytes);
  ptx::write_by_host(memory);
  return cudaSuccess;
}

// The linker puts this in the place of torch's function (--wrap), which allocates for the binding.
AOTITorchError __real_aoti_torch_empty_strided(int64_t, const int64_t*, const int64_t*, int32_t,
                                               int32_t, int32_t, AtenTensorHandle*);
AOTITorchError __wrap_aoti_torch_empty_strided(int64_t rank, const int64_t* sizes,
                                               const int64_t* strides, int32_t dtype,
                                               int32_t device_type, int32_t device,
                                               AtenTensorHandle* tensor) {
  static int number = 0;
  const AOTITorchError error =
      __real_aoti_torch_empty_strided(rank, sizes, strides, dtype, device_type, device, tensor);
  void* data = nullptr;
  int64_t bytes = 0;
  if (error || aoti_torch_get_data_ptr(*tensor, &data) ||
      aoti_torch_get_storage_size(*tensor, &bytes)) {
    return AOTI_TORCH_FAILURE;
  }
  const bool half = dtype == aoti_torch_dtype_float16() || dtype == aoti_torch_dtype_bfloat16();
  if (bytes == 0) return error;
  std::memset(data, 0xff, bytes);
  ptx::memory().add(data, bytes, half ? 2 : 4, false, "allocation " + std::to_string(number++));
  return error;
}

}  // extern "C"
