// SPDX-License-Identifier: MIT
#include "forward.cuh"
#include "kernels.cuh"

namespace fastsn {

// Blocks per multiprocessor (65,536 registers) that the compiler has to leave room for.
FASTSN_KERNELS(forward_rows, ForwardTableOf, 2, (forward_products<T, kRows>(table)))
FASTSN_KERNELS(forward_cols, ForwardTableOf, 2, (forward_products<T, kCols>(table)))
FASTSN_KERNELS(forward_finish, ForwardTableOf, 4, (forward_finish<T>(table)))

}  // namespace fastsn
