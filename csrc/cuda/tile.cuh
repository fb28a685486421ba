// SPDX-License-Identifier: MIT
//
// What a block has to know of its tile, and how its elements are reached.
#pragma once

#include "portable.cuh"
#include "shared.h"

namespace fastsn {

// The dtype sums are made in.
template <typename T>
struct Accumulate {
  using Type = float;
};
template <>
struct Accumulate<double> {
  using Type = double;
};
template <typename T>
using accumulate_t = typename Accumulate<T>::Type;

template <typename T>
constexpr int kPack = 16 / sizeof(T);
template <typename T>
constexpr int kColumnEntries = kThreads * kPack<T>;

template <typename T, int kCount>
struct alignas(kCount * sizeof(T) < 16 ? kCount * sizeof(T) : 16) Pack {
  T value[kCount];
};

template <int kCount>
struct Count {
  static constexpr int kValue = kCount;
};

FASTSN_DEVICE bool is_aligned(const void* data) {
  return (reinterpret_cast<uintptr_t>(data) & 15) == 0;
}

// kCount neighbors in global memory; one by one where they are not aligned.
template <int kCount, bool kAligned, typename T>
FASTSN_DEVICE Pack<T, kCount> load_pack(const T* from) {
  using Values = Pack<T, kCount>;
  if constexpr (kAligned && sizeof(Values) <= 16) {
    return load_bits<Values>(from);
  } else {
    Values values;
#pragma unroll
    for (int k = 0; k < kCount; ++k) values.value[k] = from[k];
    return values;
  }
}

template <bool kAligned, typename Out, int kCount, typename A>
FASTSN_DEVICE void store_pack(Out* to, const A (&values)[kCount]) {
  constexpr int kMost = kCount * sizeof(Out) > 16 ? 16 / sizeof(Out) : kCount;
#pragma unroll
  for (int first = 0; first < kCount; first += kMost) {
    Pack<Out, kMost> pack;
#pragma unroll
    for (int k = 0; k < kMost; ++k) pack.value[k] = narrow<Out>(values[first + k]);
    if constexpr (kAligned) {
      store_bits(to + first, pack);
    } else {
#pragma unroll
      for (int k = 0; k < kMost; ++k) to[first + k] = pack.value[k];
    }
  }
}

// The problem that the block works on. All threads must call it.
template <typename Table>
FASTSN_DEVICE int find_problem(const Table& table, Place& place) {
#pragma unroll 1
  for (int i = thread_index(); i < table.problems; i += kThreads) {
    const int end = i + 1 < table.problems ? table.problem[i + 1].first_tile : table.tiles;
    if (table.problem[i].first_tile <= block_index() && block_index() < end) place.problem = i;
  }
  block_barrier();
  return place.problem;
}

FASTSN_DEVICE Tile make_tile(const Problem& box) {
  Tile tile;
  tile.index = block_index() - box.first_tile;
  const int plane = tile.index / box.grid[2];
  tile.place[2] = tile.index - plane * box.grid[2];
  tile.place[0] = plane / box.grid[1];
  tile.place[1] = plane - tile.place[0] * box.grid[1];
#pragma unroll
  for (int axis = 0; axis < 3; ++axis) {
    tile.begin[axis] = tile.place[axis] * box.tile[axis];
    const int left = box.size[axis] - tile.begin[axis];
    tile.size[axis] = left < box.tile[axis] ? left : box.tile[axis];
  }
  tile.cols = tile.size[1] * tile.size[2];
  tile.row_stride = box.size[1] * box.size[2];
  tile.origin = static_cast<int64_t>(tile.begin[0]) * tile.row_stride +
                static_cast<int64_t>(tile.begin[1]) * box.size[2] + tile.begin[2];
  return tile;
}

FASTSN_DEVICE Form form_of(const Problem& box, int j) {
  if (box.axis[j] == 0) return kPlain;
  return box.axis[j] == 1 && box.size[2] > 1 ? kFold : kCross;
}

FASTSN_DEVICE int length_of(const Problem& box, int j, int side) {
  const int rows = box.size[box.axis[j]];
  if (side == kRows) return rows;
  return box.axis[j] == 0 ? box.size[1] * box.size[2]
                          : box.size[0] * box.size[box.axis[j] == 1 ? 2 : 1];
}

FASTSN_DEVICE Slice make_slice(const Problem& box, const Tile& tile, int j, int side) {
  const int axis = box.axis[j];
  const int high = axis == 0 ? 1 : 0;
  const int low = axis == 2 ? 1 : 2;
  // not indexed by what is known at run time only: that would need a stack
  const auto at = [](const int32_t (&values)[3], int k) {
    const int slow = values[0];
    const int middle = values[1];
    const int fast = values[2];
    return k == 0 ? slow : k == 1 ? middle : fast;
  };
  const int others = at(tile.place, high) * box.grid[low] + at(tile.place, low);
  Slice slice;
  slice.length = length_of(box, j, side);
  slice.width = slice.stride = 1;
  if (side == kRows) {
    slice.base = at(tile.begin, axis);
    slice.count = at(tile.size, axis);
    slice.strip = at(tile.place, axis);
    slice.slot = others;
    slice.slots = box.grid[high] * box.grid[low];
    return slice;
  }
  slice.strip = others;
  slice.slot = at(tile.place, axis);
  slice.slots = box.grid[axis];
  if (axis == 0) {
    slice.base = tile.begin[1] * box.size[2] + tile.begin[2];
    slice.count = tile.cols;
  } else {
    slice.width = axis == 1 ? tile.size[2] : 1;
    slice.stride = box.size[axis == 1 ? 2 : 1];
    slice.base = tile.begin[0] * slice.stride + at(tile.begin, axis == 1 ? 2 : 1);
    slice.count = tile.size[0] * slice.width;
  }
  return slice;
}

FASTSN_DEVICE bool is_contiguous(const Slice& slice) { return slice.width == slice.stride; }

FASTSN_DEVICE int index_of(const Slice& slice, int entry) {
  if (is_contiguous(slice)) return slice.base + entry;
  return slice.base + entry / slice.width * slice.stride + entry % slice.width;
}

// Fills in all of a place but the problem, which is known. For every thread behind the next barrier
// if all call it; a few do the work.
FASTSN_DEVICE void find_place(const Problem& box, Place& place) {
  const int own = thread_index();
  if (own >= 4) return;
  const Tile tile = make_tile(box);
  const int j = own / 2;
  if (j < box.views) place.slice[j][own % 2] = make_slice(box, tile, j, own % 2);
  if (own > 0) return;
  place.tile = tile;
  place.views = box.views;
#pragma unroll 1
  for (int k = 0; k < box.views; ++k) place.form[k] = form_of(box, k);
}

// Calls each(row, pack) for rows first, first + step, ... of a tile, with kCount neighbors of each;
// `data` is those of the first. Loads go ahead of the work.
template <int kCount, bool kAligned, typename T, typename Each>
FASTSN_DEVICE void for_rows(const T* data, int row_stride, int first, int end, int step,
                            Each each) {
  constexpr int kAhead = kCount > 4 ? 2 : 4;  // with 4 packs of 8 elements, registers run out
  const int64_t next = static_cast<int64_t>(row_stride) * step;
  int row = first;
#pragma unroll 1
  for (; row + (kAhead - 1) * step < end; row += kAhead * step) {
    Pack<T, kCount> packs[kAhead];
#pragma unroll
    for (int k = 0; k < kAhead; ++k, data += next) packs[k] = load_pack<kCount, kAligned>(data);
#pragma unroll
    for (int k = 0; k < kAhead; ++k) each(row + k * step, packs[k]);
  }
#pragma unroll 1
  for (; row < end; row += step, data += next) each(row, load_pack<kCount, kAligned>(data));
}

}  // namespace fastsn
