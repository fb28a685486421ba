// SPDX-License-Identifier: MIT
//
// Tiles: what a block has to know of one, how it gets into shared memory, and how it leaves.
#pragma once

#include "portable.cuh"

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

// Neighbors in memory, moved by one instruction where they fill up to 16 bytes.
template <typename T, int kCount>
struct alignas(kCount * sizeof(T) < 16 ? kCount * sizeof(T) : 16) Pack {
  T value[kCount];
};

template <typename T>
constexpr int kPack = 16 / sizeof(T);

// Division of small numbers by one that many threads share: exact while x * divisor < 2^32.
struct Divider {
  uint32_t divisor;
  uint32_t magic;

  FASTSN_DEVICE void set(int by) {
    divisor = by;
    magic = 0xffffffffu / divisor + 1;
  }
  FASTSN_DEVICE int value() const { return static_cast<int>(divisor); }
  FASTSN_DEVICE int quotient(int x) const {
    const uint64_t product = static_cast<uint64_t>(static_cast<uint32_t>(x)) * magic;
    return divisor == 1 ? x : static_cast<int>(product >> 32);
  }
};

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

// A vector of an unfolding: u with s, or v with t.
struct Vector {
  int length;
  int tiles;       // that make part sums of each entry
  int place;       // among the entries of the launch
  int first_part;  // of [tiles][length], among the part sums of its problem, in kPartsUnit
};

FASTSN_DEVICE int part_units(const Vector& vector) {
  const int64_t parts = static_cast<int64_t>(vector.tiles) * vector.length;
  return static_cast<int>((parts + kPartsUnit - 1) / kPartsUnit);
}

// Describes the vectors of view 0 of a problem, or from those, of view 1.
FASTSN_DEVICE void next_vectors(const Problem& problem, int j, Vector (&vector)[2]) {
  Vector& rows = vector[kRows];
  Vector& cols = vector[kCols];
  const int place = j == 0 ? problem.place : problem.place + rows.length + cols.length;
  const int first_part = j == 0 ? 0 : cols.first_part + part_units(cols);
  const int axis = problem.axis[j];
  const int high = axis == 0 ? 1 : 0;
  const int low = axis == 2 ? 1 : 2;
  rows.length = problem.size[axis];
  cols.length = problem.size[high] * problem.size[low];
  rows.tiles = problem.grid[high] * problem.grid[low];
  cols.tiles = problem.grid[axis];
  rows.place = place + (problem.v_first ? cols.length : 0);
  cols.place = place + (problem.v_first ? 0 : rows.length);
  rows.first_part = first_part;
  cols.first_part = first_part + part_units(rows);
}

// A tile as the part of one unfolding that it is: dense [outer, rows, inner] in shared memory,
// where column m of the part is (m / inner, m % inner).
struct Part {
  int rows;
  Divider inner;
  int cols;         // outer * inner
  Divider by_rows;  // division by `rows`
  int first_row;
  int row_tile;  // place among the tiles along the rows, and among those along the columns
  int col_tile;
  int high_begin;  // the columns run along two axes of the box, `high` the slower one
  int low_begin;
  int low_size;
  int low_total;
  Vector vector[2];

  // The unfolding's column, in memory order, of the part's column m.
  FASTSN_DEVICE int column(int m) const {
    return (high_begin + m / low_size) * low_total + low_begin + m % low_size;
  }
};

struct Tile {
  int problem;
  int index;     // among the tiles of its problem
  int tiles;     // that its problem has
  int grid[3];   // place among them
  int begin[3];  // of the box
  int size[3];
  int elements;
  Part part[2];

  // Where its elements are in the weight's memory. In shared memory they are dense.
  Divider row;
  Divider plane;
  int row_step;
  int64_t plane_step;
  int64_t origin;
  int alignment;  // runs of memory begin and end at multiples of its lowest set bit

  FASTSN_DEVICE int64_t offset(int element) const {
    const int in_plane = plane.quotient(element);
    const int rest = element - in_plane * plane.value();
    const int in_row = row.quotient(rest);
    return origin + in_plane * plane_step + in_row * row_step + (rest - in_row * row.value());
  }

  // Whether this tile of a tensor at `data` can be moved `count` elements at a time.
  FASTSN_DEVICE bool aligned(const void* data, int count) const {
    return (alignment & (count - 1)) == 0 && (reinterpret_cast<uintptr_t>(data) & 15) == 0;
  }
};

FASTSN_DEVICE void make_part(const Problem& box, int axis, const Tile& tile, Part& part) {
  const int high = axis == 0 ? 1 : 0;
  const int low = axis == 2 ? 1 : 2;
  part.rows = tile.size[axis];
  part.inner.set(axis == 0 ? tile.size[1] * tile.size[2] : axis == 1 ? tile.size[2] : 1);
  part.cols = tile.size[high] * tile.size[low];
  part.by_rows.set(part.rows);
  part.first_row = tile.begin[axis];
  part.row_tile = tile.grid[axis];
  part.col_tile = tile.grid[high] * box.grid[low] + tile.grid[low];
  part.high_begin = tile.begin[high];
  part.low_begin = tile.begin[low];
  part.low_size = tile.size[low];
  part.low_total = box.size[low];
}

// Describes tile `index` of a launch. One thread's work.
template <typename Table>
FASTSN_DEVICE void make_tile(const Table& table, int index, Tile& tile) {
  tile.problem =
      find_last(table.problems, index, [&](int i) { return table.problem[i].first_tile; });
  const Problem& box = table.problem[tile.problem];
  tile.index = index - box.first_tile;
  tile.tiles = box.grid[0] * box.grid[1] * box.grid[2];
  const int plane = tile.index / box.grid[2];
  tile.grid[2] = tile.index - plane * box.grid[2];
  tile.grid[0] = plane / box.grid[1];
  tile.grid[1] = plane - tile.grid[0] * box.grid[1];
#pragma unroll 1
  for (int axis = 0; axis < 3; ++axis) {
    tile.begin[axis] = tile.grid[axis] * box.tile[axis];
    const int left = box.size[axis] - tile.begin[axis];
    tile.size[axis] = left < box.tile[axis] ? left : box.tile[axis];
  }
#pragma unroll 1
  for (int j = 0; j < box.views; ++j) {
    make_part(box, box.axis[j], tile, tile.part[j]);
    Part& part = tile.part[j];
    if (j == 1) {
      part.vector[kRows] = tile.part[0].vector[kRows];
      part.vector[kCols] = tile.part[0].vector[kCols];
    }
    next_vectors(box, j, part.vector);
  }
  const int rows = tile.size[1];
  const int cols = tile.size[2];
  tile.elements = tile.size[0] * rows * cols;
  tile.row.set(cols);
  tile.plane.set(rows * cols);
  tile.row_step = box.size[2];
  tile.plane_step = static_cast<int64_t>(box.size[1]) * box.size[2];
  tile.origin = tile.begin[0] * tile.plane_step +
                static_cast<int64_t>(tile.begin[1]) * tile.row_step + tile.begin[2];
  const bool whole_rows = cols == box.size[2];
  const int run = whole_rows ? rows * cols : cols;
  const bool planes = whole_rows || rows == 1;  // runs begin at multiples of plane_step
  const int64_t step = !planes ? tile.row_step : tile.size[0] == 1 ? 0 : tile.plane_step;
  tile.alignment = static_cast<int>((tile.origin | run | step) & 0xff);
}

template <typename T>
FASTSN_DEVICE void load_tile(const Tile& tile, const T* data, T* slot) {
  if (tile.aligned(data, kPack<T>)) {
    for (int e = thread_index() * kPack<T>; e < tile.elements; e += kThreads * kPack<T>) {
      copy_async(slot + e, data + tile.offset(e));
    }
  } else {
    for (int e = thread_index(); e < tile.elements; e += kThreads) {
      slot[e] = data[tile.offset(e)];
    }
  }
}

template <typename Out, int kCount, typename A>
FASTSN_DEVICE void store_pack(Out* out, const A (&values)[kCount]) {
  Pack<Out, kCount> pack;
#pragma unroll
  for (int k = 0; k < kCount; ++k) pack.value[k] = narrow<Out>(values[k]);
  *reinterpret_cast<Pack<Out, kCount>*>(out) = pack;
}

// Calls transform(values, e) with the values in a tile's slot from element e on, and stores what
// that leaves in `values`; kCount at a time.
template <int kCount, typename T, typename Transform>
FASTSN_DEVICE void store_packs(const Tile& tile, const T* slot, void* out, int32_t out_dtype,
                               Transform transform) {
#pragma unroll 1
  for (int e = thread_index() * kCount; e < tile.elements; e += kThreads * kCount) {
    const auto in = *reinterpret_cast<const Pack<T, kCount>*>(slot + e);
    accumulate_t<T> values[kCount];
#pragma unroll
    for (int k = 0; k < kCount; ++k) values[k] = widen(in.value[k]);
    transform(values, e);
    const int64_t place = tile.offset(e);
    if constexpr (sizeof(T) == 8) {
      store_pack(static_cast<double*>(out) + place, values);
    } else if (out_dtype == kFloat32) {
      store_pack(static_cast<float*>(out) + place, values);
    } else if (out_dtype == kFloat16) {
      store_pack(static_cast<Float16*>(out) + place, values);
    } else {
      store_pack(static_cast<BFloat16*>(out) + place, values);
    }
  }
}

template <typename T, typename Transform>
FASTSN_DEVICE void store_tile(const Tile& tile, const T* slot, void* out, int32_t out_dtype,
                              Transform transform) {
  if (tile.aligned(out, kPack<T>)) {
    store_packs<kPack<T>>(tile, slot, out, out_dtype, transform);
  } else {
    store_packs<1>(tile, slot, out, out_dtype, transform);
  }
}

}  // namespace fastsn
