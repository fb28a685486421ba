// SPDX-License-Identifier: MIT
//
// csrc/cuda/launch.h for the CPU: the kernels in the shim.
#include "../cuda/launch.h"

#include <cstring>
#include <stdexcept>
#include <string>

#include "../cuda/backward.cuh"
#include "../cuda/forward.cuh"

namespace fastsn {

namespace {

int launches = 0;
bool running = true;
int until_refused = -1;

template <typename T>
void run(const Launch& launch) {
  const auto forward = static_cast<const ForwardTable*>(launch.parameter);
  const auto backward = static_cast<const BackwardTable*>(launch.parameter);
  shim::launch(launch.blocks, launch.shared_bytes, [&] {
    if (launch.kernel == kForwardRows) forward_products<T, kRows>(*forward);
    if (launch.kernel == kForwardCols) forward_products<T, kCols>(*forward);
    if (launch.kernel == kForwardFinish) forward_finish<T>(*forward);
    if (launch.kernel == kBackwardDot) backward_dot<T>(*backward);
    if (launch.kernel == kBackwardStore) backward_store<T>(*backward);
  });
}

}  // namespace

void start(const Launch& launch, int, void*) {
  if (until_refused == 0) throw std::runtime_error(std::string(kernel_name(launch)) + ": refused");
  until_refused -= until_refused > 0;
  ++launches;
  if (!running) return;
  if (launch.dtype == kFloat32) return run<float>(launch);
  if (launch.dtype == kFloat16) return run<Float16>(launch);
  if (launch.dtype == kBFloat16) return run<BFloat16>(launch);
  run<double>(launch);
}

void fill_zeros(void* memory, int64_t bytes, int, void*) { std::memset(memory, 0, bytes); }

void check_device(int) {}

}  // namespace fastsn

// The device to be simulated: how many blocks it has room for and in which order it takes them. One
// of no blocks runs nothing, which leaves the work of the host.
extern "C" void fastsn_host_device(int blocks, int reversed) {
  fastsn::running = blocks > 0;
  if (blocks > 0) fastsn::shim::set_order(blocks, reversed != 0);
}

extern "C" int fastsn_host_launches() { return fastsn::launches; }

// The next launch but so many is refused, and all behind it; -1: none.
extern "C" void fastsn_host_refuse(int launches) { fastsn::until_refused = launches; }
