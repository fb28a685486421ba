// SPDX-License-Identifier: MIT
#include "cooperative.cuh"
#include "forward.cuh"
#include "launch.h"

namespace fastsn {

template <typename T, int kMost>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor<T>)
    forward_kernel(const __grid_constant__ ForwardTableOf<kMost> table) {
  forward<T>(table);
}

template <typename T>
constexpr int kFixed = sizeof(ForwardShared<accumulate_t<T>>);
static_assert(kFixed<double> + kRing * kSlotBytes <= 99 * 1024, "fits every GPU from sm_80 on");
static_assert(2 * (kFixed<float> + 6 * kSlotBytes + 1024) <= 228 * 1024, "six slots on sm_90");

template <typename T>
void launch_forward_as(ForwardTable& table, int device, void* stream) {
  if (table.problems <= kFewProblems) {
    launch_cooperative<T>(forward_kernel<T, kFewProblems>, kFixed<T>, table, device, stream);
  } else {
    launch_cooperative<T>(forward_kernel<T, kManyProblems>, kFixed<T>, table, device, stream);
  }
}

void launch_forward(ForwardTable& table, int32_t dtype, int device, void* stream) {
  if (dtype == kFloat32) return launch_forward_as<float>(table, device, stream);
  if (dtype == kFloat16) return launch_forward_as<Float16>(table, device, stream);
  if (dtype == kBFloat16) return launch_forward_as<BFloat16>(table, device, stream);
  launch_forward_as<double>(table, device, stream);
}

// The kernel that needs most stands for all.
void check_device(int device) {
  capacity<double>(forward_kernel<double, kManyProblems>, kFixed<double>, device);
}

}  // namespace fastsn
