// SPDX-License-Identifier: MIT
//
// t of an unfolding whose rows are groups of columns: t[row, k] = sum_i tile[row, i, k] u[i], from
// rows of the tile in shared memory. In what follows `inner` is the number of columns in a group.
#pragma once

#include "tile.cuh"

namespace fastsn {

// How rows lie in shared memory: densely. Entries are moved within a row where what a warp reads at
// once would be in the same banks.
struct FoldLayout {
  bool nine;   // four groups of a row are a lane's work; needs groups of 9
  bool quads;  // four neighbors of a group are a thread's work
  bool swapped;
  int stride;  // entries from row to row
  int rows;    // at once

  template <typename A, int kCount>
  FASTSN_DEVICE static FoldLayout make(const Problem& weight, const Tile& tile) {
    constexpr bool kNarrow = sizeof(A) == 4 && kCount > 1;
    const int inner = tile.size[2];
    FoldLayout layout;
    layout.stride = static_cast<int>(weight.packs.divisor) * kCount;
    layout.nine = kNarrow && inner == 9 && inner == weight.size[2] && layout.stride <= kNines;
    layout.quads = kNarrow && inner % 4 == 0 && inner == weight.size[2];
    layout.swapped = layout.quads && inner == 16 && tile.size[1] % 2 == 0;
    if (layout.nine) layout.stride = kNines;
    layout.rows = buffer_entries(sizeof(A) == 8) / layout.stride;
    return layout;
  }

  // Where a pack of a row begins.
  FASTSN_DEVICE int place(int row, int col) const {
    const int place = row * stride + col;
    return swapped ? place ^ ((row & 1) << 4) : place;
  }

  static constexpr int kNines = 4 * 9 * 4;  // entries of 4 lanes with 4 groups each
};

// Groups of 9, four of which are 9 packs of 4: a quarter of a row. Two lanes have a row; with the
// next rows' they read from different banks, because every other pair of rows begins at its other
// half. Calls each(h, row, quarter) twice, then end(row, valid), which all threads call.
template <typename Each, typename End>
FASTSN_DEVICE void for_nines(int rows, int groups, Each each, End end) {
  const int own = thread_index() / 2;
  const int quarter = thread_index() % 2 * 2;
  const int turn = own / 2 % 2;
#pragma unroll 1
  for (int first = 0; first < rows; first += kThreads / 2) {
    const int row = first + own;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int at = quarter + (h ^ turn);
      if (row < rows && 4 * at < groups) each(h, row, at);
    }
    end(row, row < rows);
  }
}

// The j-th pack of a quarter.
FASTSN_DEVICE Pack<float, 4> pack_of_nines(const float* quarter, int j) {
  return *reinterpret_cast<const Pack<float, 4>*>(quarter + 4 * j);
}

template <typename Store>
FASTSN_DEVICE void fold_nines(int rows, int groups, const float* buffer, const float* u,
                              float* spare, Store store) {
  float total[9] = {};
  for_nines(
      rows, groups,
      [&](int, int row, int quarter) {
        const float* from = buffer + row * FoldLayout::kNines + quarter * 36;
        const auto x = *reinterpret_cast<const Pack<float, 4>*>(u + 4 * quarter);
#pragma unroll
        for (int j = 0; j < 9; ++j) {
          const auto w = pack_of_nines(from, j);
#pragma unroll
          for (int k = 0; k < 4; ++k)
            total[(4 * j + k) % 9] += w.value[k] * x.value[(4 * j + k) / 9];
        }
      },
      [&](int row, bool valid) {
#pragma unroll
        for (int k = 0; k < 9; ++k) total[k] += exchange(total[k], 1);
        if (valid && thread_index() % 2 == 0) {
#pragma unroll
          for (int k = 0; k < 9; ++k) spare[row * 9 + k] = total[k];
        }
#pragma unroll
        for (int k = 0; k < 9; ++k) total[k] = 0;
      });
  block_barrier();
  for (int e = thread_index(); e < rows * 9; e += kThreads) store(e, spare[e]);
}

// Four neighbors of a group of a row are a thread's work. `store4` takes four entries at once.
template <bool kSwapped, typename Store4>
FASTSN_DEVICE void fold_quads(const FoldLayout& layout, int rows, int groups, int inner,
                              const float* buffer, const float* u, Store4 store4) {
  using Values = Pack<float, 4>;
  const int quads = inner / 4;
  for (int e = thread_index(); e < rows * quads; e += kThreads) {
    const int row = e / quads;
    const float* from = buffer + row * layout.stride + (e - row * quads) * 4;
    Values total = {};
    const auto add = [&](const float* at, float x) {
      const Values w = *reinterpret_cast<const Values*>(at);
#pragma unroll
      for (int k = 0; k < 4; ++k) total.value[k] += w.value[k] * x;
    };
    if constexpr (kSwapped) {
      const int even = row % 2 * 16;
#pragma unroll 4
      for (int i = 0; i < groups; i += 2, from += 32) {
        add(from + even, u[i]);
        add(from + (16 - even), u[i + 1]);
      }
    } else {
#pragma unroll 4
      for (int i = 0; i < groups; ++i, from += inner) add(from, u[i]);
    }
    store4(4 * e, total.value);
  }
}

// store(e, t) for the entries e = row * inner + k of `rows` rows; `spare` has room for 9 entries
// of each row.
template <typename A, typename Store, typename Store4>
FASTSN_DEVICE void fold_rows(const FoldLayout& layout, const Tile& tile, int rows, const A* buffer,
                             const A* u, A* spare, Store store, Store4 store4) {
  const int groups = tile.size[1];
  const int inner = tile.size[2];
  if constexpr (sizeof(A) == 4) {
    if (layout.nine) return fold_nines(rows, groups, buffer, u, spare, store);
    if (layout.swapped) return fold_quads<true>(layout, rows, groups, inner, buffer, u, store4);
    if (layout.quads) return fold_quads<false>(layout, rows, groups, inner, buffer, u, store4);
  }
  for (int e = thread_index(); e < rows * inner; e += kThreads) {
    const int row = e / inner;
    const A* from = buffer + row * layout.stride + (e - row * inner);
    A total = 0;
#pragma unroll 4
    for (int i = 0; i < groups; ++i, from += inner) total += *from * u[i];
    store(e, total);
  }
}

}  // namespace fastsn
