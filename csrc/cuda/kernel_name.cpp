// SPDX-License-Identifier: MIT
#include <string>

#include "launch.h"
#include "table.h"

namespace fastsn {

const char* kernel_name(const Launch& launch) {
  constexpr const char* kernels[kKernels] = {"forward_rows", "forward_cols", "forward_finish",
                                             "backward_dot", "backward_store"};
  const char* dtype = launch.dtype == kFloat64    ? "_f64"
                      : launch.dtype == kFloat32  ? "_f32"
                      : launch.dtype == kBFloat16 ? "_bf16"
                                                  : "_f16";
  thread_local std::string name;
  name = std::string("fastsn_") + kernels[launch.kernel] + dtype + (launch.many ? "_many" : "_few");
  return name.c_str();
}

}  // namespace fastsn
