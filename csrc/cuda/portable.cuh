// SPDX-License-Identifier: MIT
//
// All that the kernels need of CUDA. csrc/host/shim.h has the same names for the CPU, so that the
// kernels' source can be run, and its barriers tested, on a machine without a GPU.
#pragma once

#ifdef FASTSN_HOST
#include "../host/shim.h"
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstring>

#include "table.h"

#define FASTSN_DEVICE __device__ __forceinline__

namespace fastsn {

using Float16 = __half;
using BFloat16 = __nv_bfloat16;

FASTSN_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
FASTSN_DEVICE int block_index() { return static_cast<int>(blockIdx.x); }

FASTSN_DEVICE unsigned char* shared_memory() {
  extern __shared__ __align__(16) unsigned char memory[];
  return memory;
}

FASTSN_DEVICE void block_barrier() { __syncthreads(); }

// The value of the lane whose number differs in the bits of `distance`. All lanes must call it.
template <typename Value>
FASTSN_DEVICE Value exchange(Value value, int distance) {
  return __shfl_xor_sync(0xffffffffu, value, distance);
}
// The intrinsic for floats turns them into bits and back.
FASTSN_DEVICE float exchange(float value, int distance) {
  float other;
  asm volatile("shfl.sync.bfly.b32 %0, %1, %2, 31, 0xffffffff;"
               : "=f"(other)
               : "f"(value), "r"(distance));
  return other;
}

// Adds 1 to a counter in global memory and returns what it was. What this block wrote before, and
// blocks that counted before it, is visible to this block behind its next barrier.
FASTSN_DEVICE uint32_t arrive(uint32_t* counter) {
  uint32_t old;
  asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], 1;"
               : "=r"(old)
               : "l"(__cvta_generic_to_global(counter))
               : "memory");
  return old;
}

FASTSN_DEVICE int quotient(const Divider& by, int x) {
  return by.divisor == 1 ? x : static_cast<int>(__umulhi(static_cast<uint32_t>(x), by.magic));
}

// Neighbors in global memory, moved by one instruction. Through the L2 cache: each is needed once,
// or was written by other blocks. The compiler splits stores of plain structs. Floats move as
// floats, and not as bits, so that nothing has to turn the one into the other.
template <int kBytes>
struct Bits;
template <>
struct Bits<16> {
  using Type = uint4;
};
template <>
struct Bits<8> {
  using Type = uint2;
};
template <>
struct Bits<4> {
  using Type = unsigned int;
};
template <>
struct Bits<2> {
  using Type = unsigned short;
};
template <typename Value>
struct Moved : Bits<sizeof(Value)> {};
template <>
struct Moved<float> {
  using Type = float;
};
template <>
struct Moved<double> {
  using Type = double;
};
template <typename T, int kCount>
struct Pack;
template <>
struct Moved<Pack<float, 4> > {
  using Type = float4;
};
template <>
struct Moved<Pack<double, 2> > {
  using Type = double2;
};

template <typename Value>
FASTSN_DEVICE Value load_bits(const void* from) {
  using Type = typename Moved<Value>::Type;
  const Type moved = __ldcg(static_cast<const Type*>(from));
  Value value;
  memcpy(&value, &moved, sizeof(value));
  return value;
}

template <typename Value>
FASTSN_DEVICE void store_bits(void* to, const Value& value) {
  typename Moved<Value>::Type moved;
  memcpy(&moved, &value, sizeof(value));
  __stwb(static_cast<decltype(moved)*>(to), moved);
}

// Neighbors in shared memory. The compiler splits these, too.
template <typename A, int kCount>
FASTSN_DEVICE void put_pack(A* to, const A (&values)[kCount]) {
  if constexpr (sizeof(A) == 4 && kCount == 4) {
    asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(
                     static_cast<unsigned>(__cvta_generic_to_shared(to))),
                 "f"(values[0]), "f"(values[1]), "f"(values[2]), "f"(values[3])
                 : "memory");
  } else {
#pragma unroll
    for (int k = 0; k < kCount; ++k) to[k] = values[k];
  }
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
