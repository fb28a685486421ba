// SPDX-License-Identifier: MIT
//
// Sums over the threads of a block, and norms out of what is kept of strips.
#pragma once

#include "tile.cuh"
#include "vectors.cuh"

namespace fastsn {

// The sum over a warp, the same bits in every lane. All threads of the warp must call it.
template <typename Value>
FASTSN_DEVICE Value warp_sum(Value value) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) value += exchange(value, distance);
  return value;
}

// The sums of kCount values over all threads of a block, for thread 0. `warps` has room for kWarps
// of them, and is free again after the next block barrier.
template <int kCount>
FASTSN_DEVICE void block_sum(double (&value)[kCount], double* warps) {
  const int warp = thread_index() / kWarp;
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    const double total = warp_sum(value[k]);
    if (thread_index() % kWarp == 0) warps[warp * kCount + k] = total;
  }
  block_barrier();
  if (thread_index() == 0) {
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      double total = warps[k];
#pragma unroll
      for (int other = 1; other < kWarps; ++other) total += warps[other * kCount + k];
      value[k] = total;
    }
  }
}

// The sums of the first kCount of `step` doubles in each of `count` records, for every thread of a
// warp. All must call it.
template <int kCount>
FASTSN_DEVICE void sum_records(const double* records, int count, int step,
                               double (&total)[kCount]) {
#pragma unroll
  for (int k = 0; k < kCount; ++k) total[k] = 0;
#pragma unroll 4
  for (int i = thread_index() % kWarp; i < count; i += kWarp) {
#pragma unroll
    for (int k = 0; k < kCount; ++k) total[k] += records[static_cast<int64_t>(i) * step + k];
  }
#pragma unroll
  for (int k = 0; k < kCount; ++k) total[k] = warp_sum(total[k]);
}

template <typename V>
FASTSN_DEVICE V* in_workspace(const ForwardCall& call, int64_t bytes) {
  return reinterpret_cast<V*>(static_cast<char*>(call.workspace) + bytes);
}

FASTSN_DEVICE double* stats_of(const ForwardCall& call, int strip) {
  return in_workspace<double>(call, 0) + static_cast<int64_t>(strip) * kStats;
}

FASTSN_DEVICE int strips_of(const Problem& box, int j, int side) {
  const int axis = box.axis[j];
  if (side == kRows) return box.grid[axis];
  return box.grid[axis == 0 ? 1 : 0] * box.grid[axis == 2 ? 1 : 2];
}

// Fills shared.norms for a weight, with a warp for each vector of the sides asked for, and what the
// vectors are divided by. An evaluation has kept more of s, and of t only the given v.
FASTSN_DEVICE void find_norms(const ForwardCall& call, const ForwardProblem& weight, int first_side,
                              int last_side, bool evaluation, SharedHead& shared) {
  const int sides = last_side - first_side + 1;
#pragma unroll 1
  for (int k = thread_index() / kWarp; k < sides * weight.views; k += kWarps) {
    const int j = k / sides;
    const int side = first_side + k % sides;
    const double* records = stats_of(call, weight.strip[j][side]);
    const int count = strips_of(weight, j, side);
    double* norms = shared.norms[j][side];
    const bool writes = thread_index() % kWarp == 0;
    if (!evaluation) {
      double total[1];
      sum_records(records, count, kStats, total);
      if (writes) {
        const double length = sqrt(total[0]);
        norms[kSquares] = length;
        shared.divisor[j][side] = clamp_length(length, call.eps);
      }
    } else if (side == kRows) {
      double total[kStats];
      sum_records(records, count, kStats, total);
      if (writes) {
        norms[kSquares] = sqrt(total[kSquares]);
        norms[kGivenSquares] = sqrt(total[kGivenSquares]);
        norms[kDotGiven] = total[kDotGiven];
      }
    } else {
      double total[1];
      sum_records(records + kGivenSquares, count, kStats, total);
      if (writes) norms[kGivenSquares] = sqrt(total[0]);
      if (writes) norms[kSquares] = 0;
    }
  }
}

}  // namespace fastsn
