// SPDX-License-Identifier: MIT
//
// Part sums become sums: whichever block is the last to write its part for a strip adds up all of
// them, always in the same order, and records the squares that norms are made of.
#pragma once

#include "sums.cuh"

namespace fastsn {

// s or t, in memory order.
template <typename A>
FASTSN_DEVICE A* sums_of(const ForwardCall& call, const Slice& slice) {
  return in_workspace<A>(call, slice.sums);
}

// Where a tile writes its part of s or t: the part sums of the whole vector.
template <typename A>
FASTSN_DEVICE A* part_of(const ForwardCall& call, const Slice& slice) {
  return in_workspace<A>(call, slice.part);
}

// Fills in the slices of forward. Sums begin at multiples of kPartsUnit entries: each vector may
// take as many more as that needs.
template <typename A>
FASTSN_DEVICE void find_sums(const ForwardCall& call, const ForwardProblem& weight, int j, int side,
                             Slice& slice) {
  const int place = weight.place[j][side];
  const int before = 2 * (weight.first_view + j) + (place > weight.place[j][1 - side]);
  const int64_t first = place + int64_t{kPartsUnit - 1} * before;
  slice.sums = call.sums + first / kPartsUnit * kPartsUnit * static_cast<int>(sizeof(A));
  const int64_t part = static_cast<int64_t>(weight.part[j][side]) * kPartsUnit +
                       static_cast<int64_t>(slice.slot) * slice.length;
  slice.part = slice.slots == 1 ? slice.sums : call.parts + part * static_cast<int>(sizeof(A));
}

template <typename A>
FASTSN_DEVICE void find_place(const ForwardCall& call, const ForwardProblem& weight, Place& place) {
  find_place(weight, place);
  const int j = thread_index() / 2;
  const int side = thread_index() % 2;
  if (j < weight.views) find_sums<A>(call, weight, j, side, place.slice[j][side]);
}

template <int kCount, typename A>
FASTSN_DEVICE Pack<A, kCount> add_parts(const A* parts, int length, int first, int slots,
                                        int step) {
  Pack<A, kCount> total = {};
#pragma unroll 4
  for (int slot = first; slot < slots; slot += step) {
    const auto part = load_bits<Pack<A, kCount>>(parts + static_cast<int64_t>(slot) * length);
#pragma unroll
    for (int k = 0; k < kCount; ++k) total.value[k] += part.value[k];
  }
  return total;
}

template <typename A>
FASTSN_DEVICE void add_strip(const ForwardCall& call, const ForwardProblem& weight, int j, int side,
                             const Slice& slice, A* buffer, SharedHead& shared) {
  constexpr int kUnit = 16 / sizeof(A);
  const bool evaluation = call.iterations == 0;
  const bool alone = slice.slots == 1;  // the part is the sum
  const int length = slice.length;
  A* sums = sums_of<A>(call, slice);
  const A* parts = part_of<A>(call, slice) - static_cast<int64_t>(slice.slot) * length;
  double stats[kStats] = {};
  const auto accept = [&](int index, A total) {
    if (!alone) sums[index] = total;
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
  if (splits > 1) {
    const int own = thread_index() / slice.count;
    const int index = index_of(slice, thread_index() - own * slice.count);
    A total = 0;
    if (own < splits)
      total = add_parts<1>(parts + index, length, own, slice.slots, splits).value[0];
    buffer[thread_index()] = total;
    block_barrier();
    if (own == 0) {
#pragma unroll 1
      for (int k = 1; k < splits; ++k) total += buffer[k * slice.count + thread_index()];
      accept(index, total);
    }
  } else if (!evaluation && is_contiguous(slice) && slice.base % kUnit == 0 &&
             slice.count % kUnit == 0 && (alone || length % kUnit == 0)) {
#pragma unroll 1
    for (int e = kUnit * thread_index(); e < slice.count; e += kUnit * kThreads) {
      const int index = slice.base + e;
      Pack<A, kUnit> total;
      if (alone) {
        total = load_bits<Pack<A, kUnit>>(sums + index);
      } else {
        total = add_parts<kUnit>(parts + index, length, 0, slice.slots, 1);
        store_bits(sums + index, total);
      }
#pragma unroll
      for (int k = 0; k < kUnit; ++k) {
        const double wide = total.value[k];
        stats[kSquares] += wide * wide;
      }
    }
  } else {
#pragma unroll 1
    for (int e = thread_index(); e < slice.count; e += kThreads) {
      const int index = index_of(slice, e);
      accept(index, add_parts<1>(parts + index, length, 0, slice.slots, 1).value[0]);
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
FASTSN_DEVICE void finish_strips(const ForwardCall& call, const ForwardProblem& weight, int side,
                                 A* buffer, SharedHead& shared) {
  block_barrier();
  if (thread_index() < weight.views) {
    const int j = thread_index();
    const Slice& slice = shared.place.slice[j][side];
    bool last = slice.slots == 1;
    if (!last) {
      uint32_t* counter =
          in_workspace<uint32_t>(call, call.counters) + weight.strip[j][side] + slice.strip;
      last = arrive(counter) + 1 == static_cast<uint32_t>(slice.slots);
      if (last) *counter = 0;  // as the next launch needs it
    }
    shared.last[j] = last;
  }
  block_barrier();
#pragma unroll 1
  for (int j = 0; j < weight.views; ++j) {
    if (shared.last[j] == 0) continue;
    const Slice slice = shared.place.slice[j][side];
    add_strip<A>(call, weight, j, side, slice, buffer, shared);
  }
}

}  // namespace fastsn
