// SPDX-License-Identifier: MIT
//
// csrc/cuda/launch.h for the CPU: the kernels in the shim, on a device of any size.
#include "../cuda/launch.h"

#include "../cuda/backward.cuh"
#include "../cuda/forward.cuh"
#include "../cuda/plan.h"

namespace fastsn {

namespace {

int device_blocks = 2;
int device_slots = 4;
int launches = 0;

template <template <typename> class Shared, typename T, typename Table>
void run(Table& table, void (*kernel)(const Table&)) {
  ++launches;
  if (device_blocks == 0) return;
  const Residency residency(table.tiles, device_blocks, device_slots);
  table.kept = residency.kept;
  const int64_t shared_bytes =
      sizeof(Shared<accumulate_t<T>>) + int64_t{residency.slots} * kSlotBytes;
  shim::launch(residency.blocks, shared_bytes, [&] { kernel(table); });
}

}  // namespace

void launch_forward(ForwardTable& table, int32_t dtype, int, void*) {
  if (dtype == kFloat32) return run<ForwardShared, float>(table, forward<float, kManyProblems>);
  if (dtype == kFloat16) return run<ForwardShared, Float16>(table, forward<Float16, kManyProblems>);
  if (dtype == kBFloat16)
    return run<ForwardShared, BFloat16>(table, forward<BFloat16, kManyProblems>);
  run<ForwardShared, double>(table, forward<double, kManyProblems>);
}

void launch_backward(BackwardTable& table, int32_t dtype, int, void*) {
  if (dtype == kFloat32) return run<BackwardShared, float>(table, backward<float, kManyProblems>);
  if (dtype == kFloat16)
    return run<BackwardShared, Float16>(table, backward<Float16, kManyProblems>);
  if (dtype == kBFloat16)
    return run<BackwardShared, BFloat16>(table, backward<BFloat16, kManyProblems>);
  run<BackwardShared, double>(table, backward<double, kManyProblems>);
}

void check_device(int) {}

}  // namespace fastsn

// The device to be simulated: room for `blocks` blocks of `slots` slots of shared memory each. One
// of no blocks runs nothing, which leaves the work of the host.
extern "C" void fastsn_host_device(int blocks, int slots) {
  fastsn::device_blocks = blocks;
  fastsn::device_slots = slots;
}

extern "C" int fastsn_host_launches() { return fastsn::launches; }
