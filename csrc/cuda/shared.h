// SPDX-License-Identifier: MIT
//
// How kernels divide their shared memory.
#pragma once

#include "launch.h"
#include "table.h"

namespace fastsn {

// At its beginning. Behind it, of the dtype A that sums are made in and all aligned to 16 bytes:
//   forward, products   A rows[kRowEntries], cols[column_entries], buffer[buffer_entries]
//   backward, store     A rows[2][kRowEntries], cols[2][column_entries]
struct alignas(16) SharedHead {
  double warps[kStats * kWarps];
  double norms[2][2][kStats];  // per view and side: of s or t, of the given vector; their product
  double new_lengths[2];       // per view: ||u|| ||v||
  double given_lengths[2];
  double divisor[2][2];  // per view: max(||s||, eps), max(||t||, eps)
  double factor;         // weight_sn = factor * weight; grad_weight = factor * G - pull * S
  double pull;
  int32_t last[2];  // per view: this block is the last of a strip
  int32_t keep_vectors;
};
static_assert(sizeof(SharedHead) % 16 == 0 && kRowEntries % 4 == 0, "16 bytes at once behind it");
static_assert(kThreads % kWarp == 0 && buffer_entries(true) % 4 == 0);

// What threads beside each other hold of the columns, a vector of 16 bytes' worth each.
constexpr int column_entries(int32_t dtype) {
  return kThreads * (dtype == kFloat64 ? 2 : dtype == kFloat32 ? 4 : 8);
}

constexpr int shared_bytes(int32_t kernel, int32_t dtype) {
  const int sum = dtype == kFloat64 ? 8 : 4;
  const int head = static_cast<int>(sizeof(SharedHead));
  const int cols = column_entries(dtype);
  if (kernel == kBackwardStore) return head + sum * 2 * (kRowEntries + cols);
  if (kernel == kForwardFinish || kernel == kBackwardDot) return head;
  return head + sum * (kRowEntries + cols + buffer_entries(dtype == kFloat64));
}

}  // namespace fastsn
