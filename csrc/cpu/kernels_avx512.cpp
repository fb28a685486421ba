// SPDX-License-Identifier: MIT
//
// The inner loops for x86 processors with AVX-512.
#if defined(__x86_64__)

#define FASTSN_VECTOR_BYTES 64

// Before the switch, so that no inline function of these is compiled for AVX-512.
#include "kernels.h"

#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#endif

#include "kernels_impl.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif

namespace fastsn::cpu {

const Tables kAvx512Tables = {table<float>(), table<double>()};

}  // namespace fastsn::cpu

#endif
