// SPDX-License-Identifier: MIT
//
// CUDA on the CPU, as far as portable.cuh asks for it: every CUDA thread is a fiber, and all fibers
// run in one system thread, one at a time, until they wait at a barrier. Runs are therefore exactly
// repeatable. ThreadSanitizer is told that fibers are threads which only barriers order: it reports
// every race that a GPU could have, at whatever time the fibers really ran.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>
#include <type_traits>

#include "../cuda/table.h"

#define FASTSN_DEVICE inline

namespace fastsn {

namespace shim {

// Runs `kernel` in blocks * kThreads fibers with `shared_bytes` of shared memory per block, some
// blocks at a time, in this order or the reverse one.
void launch(int blocks, int64_t shared_bytes, const std::function<void()>& kernel);
void set_order(int blocks_at_once, bool reversed);

// Lets one piece of order in the source be as if it were not there, to see whether that is noticed:
// "block sums.cuh:57" is the block barrier in that line, "arrive" what a counter orders between
// blocks. Null for none. An unknown name does nothing.
void omit_barrier(const char* name);

// The block barriers that were reached so far, as omit_barrier has them, one per line.
const char* barriers_reached();

enum class Scope { kWarp, kBlock };
void wait(Scope scope, const std::source_location& where);
double* warp_values();  // one per lane
void check_aligned(const void* address, size_t bytes);

}  // namespace shim

int thread_index();
int block_index();
unsigned char* shared_memory();

inline void block_barrier(std::source_location where = std::source_location::current()) {
  shim::wait(shim::Scope::kBlock, where);
}

// The value of the lane whose number differs in the bits of `distance`.
template <typename Value>
Value exchange(Value value, int distance,
               std::source_location where = std::source_location::current()) {
  double* shared = shim::warp_values();
  const int lane = thread_index() % kWarp;
  shared[lane] = value;
  shim::wait(shim::Scope::kWarp, where);
  const auto other = static_cast<Value>(shared[lane ^ distance]);
  shim::wait(shim::Scope::kWarp, where);
  return other;
}

uint32_t arrive(uint32_t* counter);

inline int quotient(const Divider& by, int x) {
  if (by.divisor == 1) return x;
  return static_cast<int>(static_cast<uint64_t>(static_cast<uint32_t>(x)) * by.magic >> 32);
}

// Memory that is not aligned as a GPU needs it is an error here, too.
template <typename Value>
Value load_bits(const void* from) {
  shim::check_aligned(from, sizeof(Value));
  return *static_cast<const Value*>(from);
}
template <typename Value>
void store_bits(void* to, const Value& value) {
  shim::check_aligned(to, sizeof(Value));
  *static_cast<Value*>(to) = value;
}
template <typename A, int kCount>
void put_pack(A* to, const A (&values)[kCount]) {
  shim::check_aligned(to, sizeof(A) * (kCount < 4 ? kCount : 4));
  for (int k = 0; k < kCount; ++k) to[k] = values[k];
}

struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

float widen(Float16 x);
float widen(BFloat16 x);
inline float widen(float x) { return x; }
inline double widen(double x) { return x; }

Float16 to_float16(float x);
BFloat16 to_bfloat16(float x);

template <typename To, typename From>
To narrow(From x) {
  if constexpr (sizeof(To) > 2) {
    return static_cast<To>(x);
  } else if constexpr (std::is_same_v<To, Float16>) {
    return to_float16(static_cast<float>(x));
  } else {
    return to_bfloat16(static_cast<float>(x));
  }
}

}  // namespace fastsn
