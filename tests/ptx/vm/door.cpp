// SPDX-License-Identifier: MIT
//
// csrc/cuda/launch.h for CPU tensors: launches run on the machine, and memory that the binding
// allocates is made known to it.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <cstring>
#include <stdexcept>

#include "cuda/launch.h"
#include "kernels.h"

namespace fastsn {

namespace {
constexpr int64_t kMostShared = 227 << 10;  // of a block, on sm_90
}

void start(const Launch& launch, int, void*) {
  const std::string name = kernel_name(launch);
  if (launch.shared_bytes > kMostShared) {
    throw std::runtime_error(name + ": expected at most " + std::to_string(kMostShared) +
                             " bytes of shared memory, got " + std::to_string(launch.shared_bytes));
  }
  ptx::launch(name, static_cast<ptx::u32>(launch.blocks), static_cast<ptx::u32>(launch.threads),
              launch.shared_bytes, &launch.parameter, launch.parameter_bytes, launch.used_bytes);
}

void fill_zeros(void* memory, int64_t bytes, int, void*) {
  std::memset(memory, 0, bytes);
  ptx::memory().write_by_host(memory, bytes);
}

void check_device(int) {}

}  // namespace fastsn

// The linker puts this in the place of torch's function (--wrap).
extern "C" {
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
  if (bytes == 0) return AOTI_TORCH_SUCCESS;
  std::memset(data, 0xff, bytes);
  const bool half = dtype == aoti_torch_dtype_float16() || dtype == aoti_torch_dtype_bfloat16();
  ptx::memory().add(data, bytes, half ? 2 : 4, false, "allocation " + std::to_string(number++));
  return AOTI_TORCH_SUCCESS;
}
}  // extern "C"
