// SPDX-License-Identifier: MIT
#include "forward.cuh"
#include "kernels.cuh"

namespace fastsn {

// Four blocks on a multiprocessor of sm_90 (65,536 registers); sums in double take twice as many.
FASTSN_KERNELS(forward_rows, ForwardTableOf, 3, (forward_products<T, kRows>(table)))
FASTSN_KERNELS(forward_cols, ForwardTableOf, 3, (forward_products<T, kCols>(table)))
FASTSN_KERNELS(forward_finish, ForwardTableOf, 4, (forward_finish<T>(table)))

}  // namespace fastsn
