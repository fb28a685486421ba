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

// The last entry of an ascending list whose first value is 0 that is not above `index`.
template <typename First>
FASTSN_DEVICE int find_last(int count, int index, First first) {
  int low = 0;
  int high = count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (first(middle) <= index ? low : high) = middle;
  }
  return low;
}

// The problem that a block works on.
template <typename Table>
FASTSN_DEVICE int find_problem(const Table& table) {
  return find_last(table.problems, block_index(),
                   [&](int i) { return table.problem[i].first_tile; });
}

// The block's tile: rows of `cols` neighbors in memory, `row_stride` apart.
struct Tile {
  int index;     // among the tiles of its problem
  int place[3];  // in the grid
  int begin[3];  // in the box
  int size[3];
  int cols;
  int row_stride;
  int64_t origin;

  FASTSN_DEVICE explicit Tile(const Problem& box) {
    index = block_index() - box.first_tile;
    const int plane = index / box.grid[2];
    place[2] = index - plane * box.grid[2];
    place[0] = plane / box.grid[1];
    place[1] = plane - place[0] * box.grid[1];
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
      begin[axis] = place[axis] * box.tile[axis];
      const int left = box.size[axis] - begin[axis];
      size[axis] = left < box.tile[axis] ? left : box.tile[axis];
    }
    cols = size[1] * size[2];
    row_stride = box.size[1] * box.size[2];
    origin = static_cast<int64_t>(begin[0]) * row_stride +
             static_cast<int64_t>(begin[1]) * box.size[2] + begin[2];
  }
};

// How an unfolding lies in the rows and columns of tiles.
enum Form : int {
  kPlain,  // its rows are rows
  kCross,  // its rows are columns, and a row is one column of it
  kFold,   // its rows are groups of columns, and a row is as many columns of it as a group has
};

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

// The entries of s or t, or of u or v, that belong to a tile.
struct Slice {
  int base;
  int count;
  int width;   // neighbors
  int stride;  // from one row of neighbors to the next
  int strip;   // of the tiles that have the same slice, among the strips of the vector
  int slot;    // of the tile, among those
  int slots;

  FASTSN_DEVICE int index(int entry) const {
    if (width == stride) return base + entry;
    return base + entry / width * stride + entry % width;
  }

  FASTSN_DEVICE Slice(const Problem& box, const Tile& tile, int j, int side) {
    const int axis = box.axis[j];
    const int high = axis == 0 ? 1 : 0;
    const int low = axis == 2 ? 1 : 2;
    // not indexed by what is known at run time only: that would need a stack
    const auto at = [](const int (&values)[3], int k) {
      const int slow = values[0];
      const int middle = values[1];
      const int fast = values[2];
      return k == 0 ? slow : k == 1 ? middle : fast;
    };
    const int others = at(tile.place, high) * box.grid[low] + at(tile.place, low);
    const int other_slots = box.grid[high] * box.grid[low];
    width = stride = 1;
    if (side == kRows) {
      base = at(tile.begin, axis);
      count = at(tile.size, axis);
      strip = at(tile.place, axis);
      slot = others;
      slots = other_slots;
      return;
    }
    strip = others;
    slot = at(tile.place, axis);
    slots = box.grid[axis];
    if (axis == 0) {
      base = tile.begin[1] * box.size[2] + tile.begin[2];
      count = tile.cols;
    } else {
      width = axis == 1 ? tile.size[2] : 1;
      stride = box.size[axis == 1 ? 2 : 1];
      base = tile.begin[0] * stride + at(tile.begin, axis == 1 ? 2 : 1);
      count = tile.size[0] * width;
    }
  }
};

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
