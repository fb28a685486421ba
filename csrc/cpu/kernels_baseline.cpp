// SPDX-License-Identifier: MIT
//
// The inner loops for any processor of the platform.
#define FASTSN_VECTOR_BYTES 16
#include "kernels_impl.h"

namespace fastsn::cpu {

const Tables kBaselineTables = {table<float>(), table<double>()};

}  // namespace fastsn::cpu
