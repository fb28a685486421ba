// SPDX-License-Identifier: MIT
//
// Part sums become sums: whichever block is the last to write its part for a strip adds up all of
// them, always in the same order, and records the squares that norms are made of.
#pragma once

#include "sums.cuh"

namespace fastsn {

// s or t, in memory order.
template <typename A>
FASTSN_DEVICE A* sums_of(const ForwardCall& call, const Problem& weight, int j, int side) {
  return in_workspace<A>(call, call.sums) + weight.place[j][side];
}

// Where a tile writes its part of s or t.
template <typename A>
FASTSN_DEVICE A* part_of(const ForwardCall& call, const ForwardProblem& weight, int j, int side,
                         int slot) {
  return in_workspace<A>(call, call.parts) +
         static_cast<int64_t>(weight.part[j][side]) * kPartsUnit +
         static_cast<int64_t>(slot) * length_of(weight, j, side);
}

template <typename A>
FASTSN_DEVICE A add_parts(const A* parts, int length, int first, int slots, int step) {
  A total = 0;
#pragma unroll 8
  for (int slot = first; slot < slots; slot += step) {
    total += load_bits<A>(parts + static_cast<int64_t>(slot) * length);
  }
  return total;
}

template <typename A>
FASTSN_DEVICE void add_strip(const ForwardCall& call, const ForwardProblem& weight, int j, int side,
                             const Slice& slice, A* buffer, SharedHead& shared) {
  const bool evaluation = call.iterations == 0;
  const int length = length_of(weight, j, side);
  const A* parts = part_of<A>(call, weight, j, side, 0);
  A* sums = sums_of<A>(call, weight, j, side);
  double stats[kStats] = {};
  const auto accept = [&](int index, A total) {
    sums[index] = total;
    const double wide = total;
    stats[kSquares] += wide * wide;
    if (!evaluation) return;
    const int place = torch_index(weight.split[j], side, length, index);
    const double old = load_as<double>(weight.given[j][side], weight.given_dtype[j][side], place);
    stats[kGivenSquares] += old * old;
    stats[kDotGiven] += wide * old;
  };
  const int fit = kThreads / slice.count;
  const int splits = fit < slice.slots ? fit : slice.slots;
  if (splits <= 1) {
#pragma unroll 1
    for (int e = thread_index(); e < slice.count; e += kThreads) {
      const int index = slice.index(e);
      accept(index, add_parts(parts + index, length, 0, slice.slots, 1));
    }
  } else {
    const int own = thread_index() / slice.count;
    const int index = slice.index(thread_index() - own * slice.count);
    A total = 0;
    if (own < splits) total = add_parts(parts + index, length, own, slice.slots, splits);
    buffer[thread_index()] = total;
    block_barrier();
    if (own == 0) {
#pragma unroll 1
      for (int k = 1; k < splits; ++k) total += buffer[k * slice.count + thread_index()];
      accept(index, total);
    }
  }
  double* record = stats_of(call, weight.strip[j][side] + slice.strip);
  if (evaluation) {
    block_sum(stats, shared.warps);
    if (thread_index() == 0) {
#pragma unroll
      for (int k = 0; k < kStats; ++k) record[k] = stats[k];
    }
  } else {
    double squares[1] = {stats[kSquares]};
    block_sum(squares, shared.warps);
    if (thread_index() == 0) record[kSquares] = squares[0];
  }
  block_barrier();
}

// Called by all threads once the block has written all its parts.
template <typename A>
FASTSN_DEVICE void finish_strips(const ForwardCall& call, const ForwardProblem& weight,
                                 const Tile& tile, int side, A* buffer, SharedHead& shared) {
  block_barrier();
  if (thread_index() == 0) {
#pragma unroll 1
    for (int j = 0; j < weight.views; ++j) {
      const Slice slice(weight, tile, j, side);
      uint32_t* counter =
          in_workspace<uint32_t>(call, call.counters) + weight.strip[j][side] + slice.strip;
      const bool last = arrive(counter) + 1 == static_cast<uint32_t>(slice.slots);
      if (last) *counter = 0;  // as the next launch needs it
      shared.last[j] = last;
    }
  }
  block_barrier();
#pragma unroll 1
  for (int j = 0; j < weight.views; ++j) {
    if (shared.last[j] == 0) continue;
    add_strip<A>(call, weight, j, side, Slice(weight, tile, j, side), buffer, shared);
  }
}

}  // namespace fastsn
