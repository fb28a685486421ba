// SPDX-License-Identifier: MIT
//
// Backward, in two phases with a grid barrier between them:
//
//   first walk over the tiles    c = <G, W_sn>, one part sum per tile
//   second walk                  dL/dW = (scale G - (c - g sigma) S) / sigma,  S = sum_d alpha_d
// fold_d(u_d v_d^T)
//
// G is the gradient of weight_sn and g that of sigma. Only G is needed twice, so only its tiles are
// kept in shared memory. fastsn/reference.py derives the formula.
#pragma once

#include "vectors.cuh"
#include "walk.cuh"

namespace fastsn {

template <typename A>
struct alignas(16) BackwardShared {
  double warps[kWarps];
  WalkShared walk;
  A u[2][kTileVector];  // per view: the slices of alpha u and of v that a tile meets
  A v[2][kTileVector];
  A g_factor;  // grad_weight = g_factor * G - s_factor * sum_d alpha_d u_d v_d^T
  A s_factor;
};

// A tile's part of c.
template <typename T, typename A, int kMost>
FASTSN_DEVICE void multiply(const BackwardTableOf<kMost>& table, const Tile& tile, const T* slot,
                            BackwardShared<A>& shared) {
  const BackwardProblem& weight = table.problem[tile.problem];
  const T* weight_sn = static_cast<const T*>(weight.weight_sn);
  A product = 0;
  if (tile.aligned(weight_sn, kPack<T>)) {
    using Values = Pack<T, kPack<T>>;
#pragma unroll 2
    for (int e = thread_index() * kPack<T>; e < tile.elements; e += kThreads * kPack<T>) {
      const Values w = *reinterpret_cast<const Values*>(weight_sn + tile.offset(e));
      const Values g = *reinterpret_cast<const Values*>(slot + e);
#pragma unroll
      for (int k = 0; k < kPack<T>; ++k) product += widen(g.value[k]) * widen(w.value[k]);
    }
  } else {
    for (int e = thread_index(); e < tile.elements; e += kThreads) {
      product += widen(slot[e]) * widen(weight_sn[tile.offset(e)]);
    }
  }
  double total[1] = {product};
  block_sum(total, shared.warps);
  if (thread_index() == 0) {
    static_cast<double*>(table.products)[weight.first_tile + tile.index] = total[0];
  }
}

// Fills the factors of one weight, and writes its grad_scale if asked. One warp must call it.
template <typename A, int kMost>
FASTSN_DEVICE void find_factors(const BackwardTableOf<kMost>& table, const Tile& tile, bool write,
                                BackwardShared<A>& shared) {
  const int index = table.first_problem + tile.problem;
  double c[1];
  sum_records(static_cast<const double*>(table.products) + table.problem[tile.problem].first_tile,
              tile.tiles, c);
  if (thread_index() != 0) return;
  const double sigma = static_cast<const A*>(table.sigmas)[index];
  const double scale = load_scale(table, tile.problem);
  double pull = c[0];
  if (table.grad_sigmas != nullptr) {
    pull -= static_cast<const A*>(table.grad_sigmas)[index] * sigma;
  }
  shared.g_factor = static_cast<A>(sigma == 0 ? 0 : scale / sigma);
  shared.s_factor = static_cast<A>(sigma == 0 ? 0 : pull / sigma);
  if (write) {
    const bool zero = sigma == 0 || scale == 0;
    static_cast<A*>(table.grad_scales)[index] = static_cast<A>(zero ? 0 : c[0] / scale);
  }
}

// Gathers the slices of vectors that a tile meets.
template <typename A, int kMost>
FASTSN_DEVICE void stage(const BackwardTableOf<kMost>& table, const Tile& tile,
                         BackwardShared<A>& shared) {
  const BackwardProblem& weight = table.problem[tile.problem];
  const A* vectors = static_cast<const A*>(table.vectors) + table.first_entry;
  const A* view_stats =
      static_cast<const A*>(table.view_stats) + 2 * (table.first_view + weight.first_view);
#pragma unroll 1
  for (int j = 0; j < weight.views; ++j) {
    const Part& part = tile.part[j];
    const A* u = vectors + part.vector[kRows].place;
    const A* v = vectors + part.vector[kCols].place;
    const int cols = part.vector[kCols].length;
    const A alpha = view_stats[2 * j + 1];
    for (int r = thread_index(); r < part.rows; r += kThreads) {
      shared.u[j][r] = alpha * u[part.first_row + r];
    }
    for (int m = thread_index(); m < part.cols; m += kThreads) {
      shared.v[j][m] = v[torch_index(weight.split[j], kCols, cols, part.column(m))];
    }
  }
}

// values[k] -= factor * u[row] * v[column] for the elements of a part from `first` on.
template <typename A, int kCount>
FASTSN_DEVICE void subtract_product(const Part& part, const A* u, const A* v, A factor, int first,
                                    A (&values)[kCount]) {
  const int inner = part.inner.value();
  const int before = part.inner.quotient(first);  // the runs of `inner` elements before it
  const int outer = part.by_rows.quotient(before);
  int row = before - outer * part.rows;
  int i = first - before * inner;
  int m = outer * inner + i;
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    values[k] -= factor * u[row] * v[m];
    ++m;
    if (++i == inner) {
      i = 0;
      m -= inner;
      if (++row == part.rows) {
        row = 0;
        m += inner;
      }
    }
  }
}

template <typename T, int kMost>
FASTSN_DEVICE void backward(const BackwardTableOf<kMost>& table) {
  using A = accumulate_t<T>;
  auto& shared = *reinterpret_cast<BackwardShared<A>*>(shared_memory());
  T* slots = reinterpret_cast<T*>(shared_memory() + sizeof(BackwardShared<A>));
  TileWalk<T, BackwardTableOf<kMost>> walk(table, shared.walk, slots);
#pragma unroll 1
  for (;;) {
    const bool last = walk.begin() == 1;
    while (walk.next()) {
      const Tile& tile = walk.tile();
      if (last) {
        const bool write = tile.index == 0;
        if (thread_index() < kWarp && (walk.at_new_problem() || write)) {
          find_factors(table, tile, write, shared);
        }
        stage(table, tile, shared);
      }
      const T* slot = walk.wait();
      if (last) {
        const BackwardProblem& weight = table.problem[tile.problem];
        store_tile(tile, slot, weight.grad_weight, table.grad_dtype, [&](auto& values, int e) {
          const A s_factor = shared.s_factor;
          for (A& value : values) value *= shared.g_factor;
          for (int j = 0; j < weight.views; ++j) {
            subtract_product(tile.part[j], shared.u[j], shared.v[j], s_factor, e, values);
          }
        });
      } else {
        multiply(table, tile, slot, shared);
      }
      block_barrier();
    }
    if (last) break;
    grid_barrier();
  }
}

}  // namespace fastsn
