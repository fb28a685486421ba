// SPDX-License-Identifier: MIT
//
// Backward, two launches:
//
//   dot    c = <G, W_sn>, one part sum per block
//   store  dL/dW = (scale G - (c - g sigma) S) / sigma,  S = sum_d alpha_d fold_d(u_d v_d^T)
//
// G is the gradient of weight_sn and g that of sigma. backends/reference.py derives the formula.
#pragma once

#include "finish.cuh"

namespace fastsn {

template <typename T, int kMost>
FASTSN_DEVICE void backward_dot(const BackwardTableOf<kMost>& table) {
  using A = accumulate_t<T>;
  constexpr int kCount = kPack<T>;
  auto& shared = *reinterpret_cast<SharedHead*>(shared_memory());
  const BackwardProblem& weight = table.problem[find_problem(table, shared.place)];
  const T* grad = static_cast<const T*>(weight.data);
  const T* weight_sn = static_cast<const T*>(weight.weight_sn);
  A product = 0;
  for_piece<T>(
      weight, block_index() - weight.first_tile, is_aligned(grad) && is_aligned(weight_sn),
      [&](int64_t e, auto ahead) {
        constexpr int kAhead = decltype(ahead)::kValue;
        Pack<T, kCount> g[kAhead];
        Pack<T, kCount> w[kAhead];
#pragma unroll
        for (int k = 0; k < kAhead; ++k) {
          g[k] = load_pack<kCount, true>(grad + e + k * kThreads * kCount);
          w[k] = load_pack<kCount, true>(weight_sn + e + k * kThreads * kCount);
        }
#pragma unroll
        for (int k = 0; k < kAhead; ++k) {
#pragma unroll
          for (int i = 0; i < kCount; ++i) product += widen(g[k].value[i]) * widen(w[k].value[i]);
        }
      },
      [&](int64_t e) { product += widen(grad[e]) * widen(weight_sn[e]); });
  double total[1] = {product};
  block_sum(total, shared.warps);
  if (thread_index() == 0) static_cast<double*>(table.products)[block_index()] = total[0];
}

// Fills the factors of one weight, and writes its grad_scale if asked. One warp must call it.
template <typename A, int kMost>
FASTSN_DEVICE void find_factors(const BackwardTableOf<kMost>& table, int problem, bool writes,
                                SharedHead& shared) {
  const BackwardProblem& weight = table.problem[problem];
  const int index = table.first_problem + problem;
  double c[1];
  sum_records(static_cast<const double*>(table.products) + weight.first_tile,
              weight.grid[0] * weight.grid[1] * weight.grid[2], 1, c);
  if (thread_index() % kWarp != 0) return;
  const double sigma = static_cast<const A*>(table.sigmas)[index];
  double scale = weight.scale;
  if (table.scales != nullptr) scale = load_as<double>(table.scales, table.scale_dtype, index);
  double pull = c[0];
  if (table.grad_sigmas != nullptr) {
    pull -= static_cast<const A*>(table.grad_sigmas)[index] * sigma;
  }
  shared.factor = sigma == 0 ? 0 : scale / sigma;
  shared.pull = sigma == 0 ? 0 : pull / sigma;
  if (writes) {
    const bool zero = sigma == 0 || scale == 0;
    static_cast<A*>(table.grad_scales)[index] = static_cast<A>(zero ? 0 : c[0] / scale);
  }
}

// The gradient of a tile. A thread has a pack of columns and every so many rows, as in
// products.cuh; of every unfolding it needs a number or a group for each row, in shared memory, and
// one for each column, which stay in registers.
template <typename T>
struct Gradient {
  using A = accumulate_t<T>;

  const BackwardCall& call;
  const BackwardProblem& weight;
  const Place& place;
  const Tile tile;
  A* rows;  // per view: alpha u or alpha v
  A* cols;  // per view: the other, times minus the pull

  // Copies what rows have of a view.
  FASTSN_DEVICE void stage_rows(int j, A alpha, A* to) const {
    const int side = place.form[j] == kPlain ? kRows : kCols;
    const Slice slice = place.slice[j][side];
    const A* vector = vector_of(j, side);
    if (is_contiguous(slice) && weight.split[j] == 0) {
      return scale_entries(vector + slice.base, slice.count, alpha, to);
    }
#pragma unroll 1
    for (int e = thread_index(); e < slice.count; e += kThreads) {
      to[e] = alpha * vector[torch_index(weight.split[j], side, slice.length, index_of(slice, e))];
    }
  }

  FASTSN_DEVICE static void scale_entries(const A* from, int count, A factor, A* to) {
    from += thread_index();
    to += thread_index();
#pragma unroll 4
    for (int e = thread_index(); e < count; e += kThreads) {
      *to = factor * *from;
      from += kThreads;
      to += kThreads;
    }
  }

  // Copies what columns have of a view.
  FASTSN_DEVICE void stage_cols(int j, int first, int count, A factor, A* to) const {
    const int form = place.form[j];
    const int side = form == kPlain ? kCols : kRows;
    const Slice slice = place.slice[j][side];
    const A* vector = vector_of(j, side);
    if (form != Form::kFold && is_contiguous(slice) && weight.split[j] == 0) {
      return scale_entries(vector + slice.base + first, count, factor, to);
    }
#pragma unroll 1
    for (int m = thread_index(); m < count; m += kThreads) {
      const int e = form == Form::kFold ? quotient(weight.inner, first + m) : first + m;
      to[m] = factor * vector[torch_index(weight.split[j], side, slice.length, index_of(slice, e))];
    }
  }

  FASTSN_DEVICE const A* vector_of(int j, int side) const {
    return static_cast<const A*>(call.vectors) + call.first_entry + weight.place[j][side];
  }

  template <int kCount, bool kAligned, bool kTwo, bool kFold, bool kVector>
  FASTSN_DEVICE void run(A factor, A pull) const {
    const int packs = static_cast<int>(weight.packs.divisor);
    const int first_row = quotient(weight.packs, thread_index());
    const int own = (thread_index() - first_row * packs) * kCount;
    const int inner = kFold ? tile.size[2] : 1;
    const int all = packs * kCount;
    // the folded view, if any, is the last one here
    const int folded = kTwo && place.form[0] == Form::kFold ? 0 : weight.views - 1;
    const int other = weight.views - 1 - folded;
#pragma unroll 1
    for (int first = 0; first < tile.cols; first += all) {
      const int count = tile.cols - first < all ? tile.cols - first : all;
      if constexpr (kTwo) stage_cols(other, first, count, -pull, cols + kColumnEntries<T>);
      stage_cols(folded, first, count, -pull, cols);
      block_barrier();  // and rows are staged, too
      if (first_row < weight.row_step && own < count) {
        const auto x = *reinterpret_cast<const Pack<A, kCount>*>(cols + own);
        Pack<A, kCount> y = {};
        if constexpr (kTwo) {
          y = *reinterpret_cast<const Pack<A, kCount>*>(cols + kColumnEntries<T> + own);
        }
        int place[kCount] = {};
        if constexpr (kFold) {
#pragma unroll
          for (int k = 0; k < kCount; ++k) {
            place[k] = own + k - quotient(weight.inner, own + k) * inner;
          }
        }
        const A* x_rows = rows + folded * kRowEntries;
        const A* y_rows = rows + other * kRowEntries;
        const int64_t begin =
            tile.origin + first + own + static_cast<int64_t>(first_row) * tile.row_stride;
        const int64_t next = static_cast<int64_t>(tile.row_stride) * weight.row_step;
        const auto walk = [&](auto* out) {
          auto* to = out + begin;
          for_rows<kCount, kAligned>(
              static_cast<const T*>(weight.data) + begin, tile.row_stride, first_row, tile.size[0],
              weight.row_step, [&](int row, const Pack<T, kCount>& pack) {
                Pack<A, kCount> of_x;
                const A of_y = kTwo ? y_rows[row] : A(0);
                if constexpr (kFold && kVector) {
                  of_x = *reinterpret_cast<const Pack<A, kCount>*>(x_rows + row * inner + place[0]);
                } else {
#pragma unroll
                  for (int k = 0; k < kCount; ++k) {
                    of_x.value[k] = x_rows[kFold ? row * inner + place[k] : row];
                  }
                }
                A values[kCount];
#pragma unroll
                for (int k = 0; k < kCount; ++k) {
                  values[k] = factor * widen(pack.value[k]) + of_x.value[k] * x.value[k];
                  if constexpr (kTwo) values[k] += of_y * y.value[k];
                }
                store_pack<kAligned>(to, values);
                to += next;
              });
        };
        // all dtypes that dL/dW may have
        if constexpr (sizeof(T) == 8) {
          walk(static_cast<double*>(weight.grad_weight));
        } else if (call.grad_dtype == kFloat32) {
          walk(static_cast<float*>(weight.grad_weight));
        } else if (call.grad_dtype == kFloat16) {
          walk(static_cast<Float16*>(weight.grad_weight));
        } else {
          walk(static_cast<BFloat16*>(weight.grad_weight));
        }
      }
      if (first + all < tile.cols) block_barrier();
    }
  }

  template <int kCount, bool kAligned>
  FASTSN_DEVICE void run_as(A factor, A pull) const {
    const bool two = weight.views == 2;
    const bool fold = place.form[0] == Form::kFold || (two && place.form[1] == Form::kFold);
    if (!fold) {
      return two ? run<kCount, kAligned, true, false, false>(factor, pull)
                 : run<kCount, kAligned, false, false, false>(factor, pull);
    }
    if (kCount == 1 || tile.size[2] % kCount == 0) {
      return two ? run<kCount, kAligned, true, true, true>(factor, pull)
                 : run<kCount, kAligned, false, true, true>(factor, pull);
    }
    if constexpr (kCount > 1) {
      return two ? run<kCount, kAligned, true, true, false>(factor, pull)
                 : run<kCount, kAligned, false, true, false>(factor, pull);
    }
  }
};

template <typename T, int kMost>
FASTSN_DEVICE void backward_store(const BackwardTableOf<kMost>& table) {
  using A = accumulate_t<T>;
  auto& shared = *reinterpret_cast<SharedHead*>(shared_memory());
  A* rows = reinterpret_cast<A*>(&shared + 1);
  const int problem = find_problem(table, shared.place);
  const BackwardProblem& weight = table.problem[problem];
  find_place(weight, shared.place);
  if (thread_index() / kWarp == kWarps - 1) {
    find_factors<A>(table, problem, block_index() == weight.first_tile, shared);
  }
  block_barrier();
  const Gradient<T> gradient{
      table, weight, shared.place, shared.place.tile, rows, rows + 2 * kRowEntries};
  const A* view_stats =
      static_cast<const A*>(table.view_stats) + 2 * (table.first_view + weight.first_view);
#pragma unroll 1
  for (int j = 0; j < weight.views; ++j) {
    gradient.stage_rows(j, view_stats[2 * j + 1], rows + j * kRowEntries);
  }
  const A factor = static_cast<A>(shared.factor);
  const A pull = static_cast<A>(shared.pull);
  if (weight.width == 1) {
    gradient.template run_as<1, true>(factor, pull);
  } else if (is_aligned(weight.data) && is_aligned(weight.grad_weight)) {
    gradient.template run_as<kPack<T>, true>(factor, pull);
  } else {
    gradient.template run_as<kPack<T>, false>(factor, pull);
  }
}

}  // namespace fastsn
