// SPDX-License-Identifier: MIT
//
// csrc/cuda/launch.cu with a runtime that is made up: `check DEVICE`, or `start DEVICE` for one
// launch. Exits with 1 and the message if it throws.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>

#include "launch.cu"

int main(int, char** arguments) {
  using namespace fastsn;
  const int device = std::atoi(arguments[2]);
  try {
    if (std::strcmp(arguments[1], "check") == 0) {
      check_device(device);
    } else {
      const Launch launch{
          kForwardRows, kFloat32, 0, 3, kThreads, shared_bytes(kForwardRows, kFloat32),
          nullptr,      0,        0};
      fill_zeros(nullptr, 16, device, nullptr);
      start(launch, device, nullptr);
      start(launch, device, nullptr);
    }
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
    return 1;
  }
}
