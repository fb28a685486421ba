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

// Runs `kernel` in blocks * kThreads fibers with `shared_bytes` of shared memory per block.
void launch(int blocks, int64_t shared_bytes, const std::function<void()>& kernel);

// Lets one barrier of the source be as if it were not there, to see whether that is noticed:
// "grid 1" is the second grid barrier that a thread reaches in the process, "block walk.cuh:57" the
// block barrier in that line. Null for none. An unknown name does nothing.
void omit_barrier(const char* name);

// The block barriers that were reached so far, as omit_barrier has them, one per line.
const char* barriers_reached();

enum class Scope { kWarp, kBlock, kGrid };
void wait(Scope scope, const std::source_location& where);
double* warp_values();  // one per lane
void copy_early(bool yes);
void add_copy(void* to, const void* from);
void end_copy_group();
void finish_copies(int pending_groups);

}  // namespace shim

int thread_index();
int block_index();
int block_count();
unsigned char* shared_memory();

inline void block_barrier(std::source_location where = std::source_location::current()) {
  shim::wait(shim::Scope::kBlock, where);
}

inline void grid_barrier(std::source_location where = std::source_location::current()) {
  shim::wait(shim::Scope::kGrid, where);
}

// As on the GPU, the sum of a butterfly: the same order, and the same bits in every lane.
template <typename Value>
Value warp_sum(Value value, std::source_location where = std::source_location::current()) {
  double* shared = shim::warp_values();
  const int lane = thread_index() % kWarp;
  shared[lane] = value;
  shim::wait(shim::Scope::kWarp, where);
  Value values[kWarp];
  for (int k = 0; k < kWarp; ++k) values[k] = static_cast<Value>(shared[k]);
  shim::wait(shim::Scope::kWarp, where);
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    Value sums[kWarp];
    for (int k = 0; k < kWarp; ++k) sums[k] = values[k] + values[k ^ distance];
    for (int k = 0; k < kWarp; ++k) values[k] = sums[k];
  }
  return values[lane];
}

// Copies are made as late as CUDA allows, when their group is waited for, so that a wait left out
// or too weak shows in the results; or as early, so that one into memory still in use shows.
inline void copy_async(void* shared, const void* global) { shim::add_copy(shared, global); }
inline void copy_async_commit() { shim::end_copy_group(); }
template <int kPending>
void copy_async_wait() {
  shim::finish_copies(kPending);
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
