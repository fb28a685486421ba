// SPDX-License-Identifier: MIT
//
// t of an unfolding whose rows are groups of columns: t[row, k] = sum_i tile[row, i, k] u[i], from
// rows of the tile in shared memory. In what follows `inner` is the number of columns in a group.
#pragma once

#include "tile.cuh"

namespace fastsn {

// How rows lie in shared memory. Entries are moved within a row so that what a warp reads at once
// is in different banks.
struct FoldLayout {
  bool nine;   // a row is a lane's work; needs groups of 9
  bool quads;  // four neighbors of a group are a thread's work
  bool swapped;
  int stride;  // entries from row to row
  int rows;    // at once

  template <typename A, int kCount>
  FASTSN_DEVICE static FoldLayout make(const Problem& weight, const Tile& tile) {
    constexpr bool kNarrow = sizeof(A) == 4 && kCount > 1;
    constexpr int kNine = 4 * 9 * 4;  // entries of 4 lanes with 4 groups each
    const int inner = tile.size[2];
    const int groups = tile.size[1];
    FoldLayout layout;
    layout.stride = static_cast<int>(weight.packs.divisor) * kCount;
    layout.nine = kNarrow && inner == 9 && layout.stride <= kNine;
    layout.quads = kNarrow && inner % 4 == 0 && inner == weight.size[2];
    layout.swapped = layout.quads && inner == 16 && groups % 2 == 0;
    if (layout.nine) layout.stride = kNine;
    layout.rows =
        buffer_entries(sizeof(A) == 8) / layout.stride / weight.row_step * weight.row_step;
    return layout;
  }

  FASTSN_DEVICE int place(int row, int col) const {
    if (nine) return row * stride + (col ^ (row / 2 % 4 * 4));
    if (swapped) return row * stride + (col ^ (row % 2 * 16));
    return row * stride + col;
  }
};

// Groups of 9: a lane has a row and four of its groups; four lanes make a row.
template <typename Store>
FASTSN_DEVICE void fold_nines(const FoldLayout& layout, int rows, int groups, const float* buffer,
                              const float* u, float* spare, Store store) {
  constexpr int kOnce = kThreads / 4;
  const int lane = thread_index() % kWarp;
  const int part = lane / 8;
  float x[4];
#pragma unroll
  for (int k = 0; k < 4; ++k) x[k] = 4 * part < groups ? u[4 * part + k] : 0;
#pragma unroll 1
  for (int first = 0; first < rows; first += kOnce) {
    const int own = thread_index() / kWarp * 8 + lane % 8;
    const int row = first + own < rows ? first + own : 0;
    float total[9] = {};
    if (4 * part < groups) {
      // the j-th pack of the four groups is in a place that depends on j % 4 and steps with j / 4
      const float* from[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) from[k] = buffer + layout.place(row, 36 * part + 4 * k);
#pragma unroll
      for (int j = 0; j < 9; ++j) {
        const auto w = *reinterpret_cast<const Pack<float, 4>*>(from[j % 4] + j / 4 * 16);
#pragma unroll
        for (int k = 0; k < 4; ++k) total[(4 * j + k) % 9] += w.value[k] * x[(4 * j + k) / 9];
      }
    }
#pragma unroll
    for (int k = 0; k < 9; ++k) {
      total[k] += exchange(total[k], 8);
      total[k] += exchange(total[k], 16);
    }
    if (part == 0) {
#pragma unroll
      for (int k = 0; k < 9; ++k) spare[own * 9 + k] = total[k];
    }
    block_barrier();
    const int count = (rows - first < kOnce ? rows - first : kOnce) * 9;
    for (int e = thread_index(); e < count; e += kThreads) store(first * 9 + e, spare[e]);
    if (first + kOnce < rows) block_barrier();
  }
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
// for every 4 threads.
template <typename A, typename Store, typename Store4>
FASTSN_DEVICE void fold_rows(const FoldLayout& layout, const Tile& tile, int rows, const A* buffer,
                             const A* u, A* spare, Store store, Store4 store4) {
  const int groups = tile.size[1];
  const int inner = tile.size[2];
  if constexpr (sizeof(A) == 4) {
    if (layout.nine) return fold_nines(layout, rows, groups, buffer, u, spare, store);
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
