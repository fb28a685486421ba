// SPDX-License-Identifier: MIT
//
// Sums, all in an order that depends on shapes only: over a tile, over a block, over records.
#pragma once

#include "tile.cuh"

namespace fastsn {

// Sums of neighboring outputs, made together.
template <typename A, int kCount>
using Sums = Pack<A, kCount>;

template <typename A, int kCount>
FASTSN_DEVICE void add_to(Sums<A, kCount>& sums, const Sums<A, kCount>& more) {
#pragma unroll
  for (int k = 0; k < kCount; ++k) sums.value[k] += more.value[k];
}

// store(i, sum(i, 0, 1)) for i < outputs, where sum(i, first, step) takes every step-th term. A
// warp for each output: for terms that are neighbors in memory.
template <int kCount, typename A, typename Sum, typename Store>
FASTSN_DEVICE void sum_by_warp(int outputs, Sum sum, Store store) {
  const int lane = thread_index() % kWarp;
  for (int i = thread_index() / kWarp; i < outputs; i += kWarps) {
    Sums<A, kCount> total = sum(i, lane, kWarp);
#pragma unroll
    for (int k = 0; k < kCount; ++k) total.value[k] = warp_sum(total.value[k]);
    if (lane == 0) store(i, total);
  }
}

// The same with a thread, or a few, for each output: for outputs that are neighbors in memory.
// `partial` has kPartial entries, and is free again after the next block barrier.
template <int kCount, typename A, typename Sum, typename Store>
FASTSN_DEVICE void sum_by_thread(int outputs, A* partial, Sum sum, Store store) {
  constexpr int kMost = 8;  // more would wait longer for the few that add up what the others found
  Divider by_outputs;
  by_outputs.set(outputs);
  const int fit = by_outputs.quotient(kPartial / kCount < kThreads ? kPartial / kCount : kThreads);
  const int split = fit <= 1 ? 1 : fit < kMost ? fit : kMost;
  const int part = split == 1 ? 0 : by_outputs.quotient(thread_index());
  const int own = thread_index() - part * outputs;
  auto* partials = reinterpret_cast<Sums<A, kCount>*>(partial);
  for (int i = part < split ? own : outputs; i < outputs; i += kThreads) {
    const Sums<A, kCount> total = sum(i, part, split);
    if (split == 1) {
      store(i, total);
    } else {
      partials[thread_index()] = total;
    }
  }
  if (split == 1) return;
  block_barrier();
  if (part == 0) {
    Sums<A, kCount> total = partials[own];
#pragma unroll 1
    for (int k = 1; k < split; ++k) add_to(total, partials[k * outputs + own]);
    store(own, total);
  }
}

// Whether neighboring threads should take neighboring rows of a part, and not columns: those lie
// denser in shared memory.
FASTSN_DEVICE bool rows_are_dense(const Part& part) {
  return part.inner.value() <= 4 && part.rows >= kWarp;
}

// store(r, sum_m part(r, m) x[m]) for the rows r of a part, kCount columns at a time.
template <int kCount, typename T, typename A, typename Store>
FASTSN_DEVICE void multiply_rows_by(const Part& part, const T* slot, const A* x, A* partial,
                                    Store store) {
  const int inner = part.inner.value();
  const int outer_step = part.rows * inner;
  const auto sum = [&](int row, int first, int step) {
    // column m = o * inner + i, followed without a division at every step
    const int step_o = part.inner.quotient(step * kCount);
    const int step_i = step * kCount - step_o * inner;
    const int o = part.inner.quotient(first * kCount);
    int i = first * kCount - o * inner;
    const T* data = slot + row * inner + o * outer_step;
    Sums<A, 1> total = {};
    for (int m = first * kCount; m < part.cols; m += step * kCount) {
      const auto w = *reinterpret_cast<const Pack<T, kCount>*>(data + i);
      const auto v = *reinterpret_cast<const Pack<A, kCount>*>(x + m);
#pragma unroll
      for (int k = 0; k < kCount; ++k) total.value[0] += widen(w.value[k]) * v.value[k];
      data += step_o * outer_step;
      i += step_i;
      if (i >= inner) {
        i -= inner;
        data += outer_step;
      }
    }
    return total;
  };
  const auto store_one = [&](int row, const Sums<A, 1>& total) { store(row, total.value[0]); };
  if (rows_are_dense(part)) {
    sum_by_thread<1>(part.rows, partial, sum, store_one);
  } else {
    sum_by_warp<1, A>(part.rows, sum, store_one);
  }
}

// store(m, sum_r part(r, m) x[r]) for the columns m of a part, kCount columns at a time.
template <int kCount, typename T, typename A, typename Store>
FASTSN_DEVICE void multiply_cols_by(const Part& part, const T* slot, const A* x, A* partial,
                                    Store store) {
  const int inner = part.inner.value();
  const auto sum = [&](int n, int first, int step) {
    const int m = n * kCount;
    const int o = part.inner.quotient(m);
    const T* data = slot + o * (part.rows - 1) * inner + m;  // row 0 of column m
    Sums<A, kCount> total = {};
#pragma unroll 4
    for (int r = first; r < part.rows; r += step) {
      const auto w = *reinterpret_cast<const Pack<T, kCount>*>(data + r * inner);
#pragma unroll
      for (int k = 0; k < kCount; ++k) total.value[k] += widen(w.value[k]) * x[r];
    }
    return total;
  };
  const auto store_all = [&](int n, const Sums<A, kCount>& total) {
#pragma unroll
    for (int k = 0; k < kCount; ++k) store(n * kCount + k, total.value[k]);
  };
  if (rows_are_dense(part)) {
    sum_by_warp<kCount, A>(part.cols / kCount, sum, store_all);
  } else {
    sum_by_thread<kCount>(part.cols / kCount, partial, sum, store_all);
  }
}

// Four columns at a time where they are neighbors in memory: that is a quarter of the instructions.
template <typename T, typename A, typename Store>
FASTSN_DEVICE void multiply_rows(const Part& part, const T* slot, const A* x, A* partial,
                                 Store store) {
  if (part.inner.value() % 4 == 0) {
    multiply_rows_by<4>(part, slot, x, partial, store);
  } else {
    multiply_rows_by<1>(part, slot, x, partial, store);
  }
}

template <typename T, typename A, typename Store>
FASTSN_DEVICE void multiply_cols(const Part& part, const T* slot, const A* x, A* partial,
                                 Store store) {
  if (part.inner.value() % 4 == 0) {
    multiply_cols_by<4>(part, slot, x, partial, store);
  } else {
    multiply_cols_by<1>(part, slot, x, partial, store);
  }
}

// The sums of kCount values over all threads of a block, for the first warp. `warps` has room for
// kWarps of them, and is free again after the next block barrier.
template <int kCount>
FASTSN_DEVICE void block_sum(double (&value)[kCount], double* warps) {
  const int warp = thread_index() / kWarp;
  const int lane = thread_index() % kWarp;
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    const double total = warp_sum(value[k]);
    if (lane == 0) warps[warp * kCount + k] = total;
  }
  block_barrier();
  if (warp == 0) {
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      value[k] = warp_sum(lane < kWarps ? warps[lane * kCount + k] : 0.0);
    }
  }
}

// The sums of `count` records of kCount doubles, for every thread of a warp. All must call it.
template <int kCount>
FASTSN_DEVICE void sum_records(const double* records, int count, double (&total)[kCount]) {
#pragma unroll
  for (int k = 0; k < kCount; ++k) total[k] = 0;
#pragma unroll 2
  for (int i = thread_index() % kWarp; i < count; i += kWarp) {
#pragma unroll
    for (int k = 0; k < kCount; ++k) total[k] += records[i * kCount + k];
  }
#pragma unroll
  for (int k = 0; k < kCount; ++k) total[k] = warp_sum(total[k]);
}

}  // namespace fastsn
