// SPDX-License-Identifier: MIT
#include "backward.cuh"
#include "cooperative.cuh"
#include "launch.h"

namespace fastsn {

template <typename T, int kMost>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor<T>)
    backward_kernel(const __grid_constant__ BackwardTableOf<kMost> table) {
  backward<T>(table);
}

template <typename T>
constexpr int kFixed = sizeof(BackwardShared<accumulate_t<T>>);
static_assert(kFixed<double> + kRing * kSlotBytes <= 99 * 1024, "fits every GPU from sm_80 on");

template <typename T>
void launch_backward_as(BackwardTable& table, int device, void* stream) {
  if (table.problems <= kFewProblems) {
    launch_cooperative<T>(backward_kernel<T, kFewProblems>, kFixed<T>, table, device, stream);
  } else {
    launch_cooperative<T>(backward_kernel<T, kManyProblems>, kFixed<T>, table, device, stream);
  }
}

void launch_backward(BackwardTable& table, int32_t dtype, int device, void* stream) {
  if (dtype == kFloat32) return launch_backward_as<float>(table, device, stream);
  if (dtype == kFloat16) return launch_backward_as<Float16>(table, device, stream);
  if (dtype == kBFloat16) return launch_backward_as<BFloat16>(table, device, stream);
  launch_backward_as<double>(table, device, stream);
}

}  // namespace fastsn
