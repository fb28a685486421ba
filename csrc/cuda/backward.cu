// SPDX-License-Identifier: MIT
#include "backward.cuh"
#include "kernels.cuh"

namespace fastsn {

FASTSN_KERNELS(backward_dot, BackwardTableOf, 4, (backward_dot<T>(table)))
FASTSN_KERNELS(backward_store, BackwardTableOf, 2, (backward_store<T>(table)))

}  // namespace fastsn
