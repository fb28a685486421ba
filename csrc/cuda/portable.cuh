// SPDX-License-Identifier: MIT
//
// All that the kernels need of CUDA. csrc/host/shim.h has the same names for the CPU, so that the
// kernels' source can be run, and its barriers tested, on a machine without a GPU.
#pragma once

#ifdef FASTSN_HOST
#include "../host/shim.h"
#else

#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_pipeline.h>

#include "table.h"

#define FASTSN_DEVICE __device__ __forceinline__

namespace fastsn {

using Float16 = __half;
using BFloat16 = __nv_bfloat16;

// Read anew wherever it is used: else the compiler derives a dozen values from it at the start and
// keeps them in registers through all phases.
FASTSN_DEVICE int thread_index() {
  int index;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
  return index;
}
FASTSN_DEVICE int block_index() { return static_cast<int>(blockIdx.x); }
FASTSN_DEVICE int block_count() { return static_cast<int>(gridDim.x); }

FASTSN_DEVICE unsigned char* shared_memory() {
  extern __shared__ __align__(16) unsigned char memory[];
  return memory;
}

FASTSN_DEVICE void block_barrier() { __syncthreads(); }

// Also makes what any thread wrote before it visible to every thread after it.
FASTSN_DEVICE void grid_barrier() { cooperative_groups::this_grid().sync(); }

// The sum over a warp, the same bits in every lane. All threads of the warp must call it.
template <typename Value>
FASTSN_DEVICE Value warp_sum(Value value) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, distance);
  }
  return value;
}

// Copies 16 aligned bytes to shared memory in the background. They have arrived for the thread that
// asked once it waited for their group, and for the block after a barrier behind that.
FASTSN_DEVICE void copy_async(void* shared, const void* global) {
  __pipeline_memcpy_async(shared, global, 16);
}
FASTSN_DEVICE void copy_async_commit() { __pipeline_commit(); }
template <int kPending>  // groups that may still be on their way
FASTSN_DEVICE void copy_async_wait() {
  __pipeline_wait_prior(kPending);
}

FASTSN_DEVICE float widen(Float16 x) { return __half2float(x); }
FASTSN_DEVICE float widen(BFloat16 x) { return __bfloat162float(x); }
FASTSN_DEVICE float widen(float x) { return x; }
FASTSN_DEVICE double widen(double x) { return x; }

template <typename To, typename From>
FASTSN_DEVICE To narrow(From x) {
  return static_cast<To>(x);
}
template <>
FASTSN_DEVICE Float16 narrow<Float16, float>(float x) {
  return __float2half_rn(x);
}
template <>
FASTSN_DEVICE BFloat16 narrow<BFloat16, float>(float x) {
  return __float2bfloat16_rn(x);
}

}  // namespace fastsn

#endif  // FASTSN_HOST
