// SPDX-License-Identifier: MIT
//
// Forward, a launch for each of its phases. Each iteration:
//
//   rows    part sums of s = M v over every tile, for all unfoldings from one look at it; the last
//           block of each strip adds them up
//   cols    the same for t = M^T u with u = s / max(||s||, eps)
//
// and at the end
//
//   finish  sigma, the vectors and weight_sn
//
// s and t wait in the workspace at full length and are divided by their norm where they are read:
// before they are multiplied, so that nothing overflows that need not. An evaluation (no iteration)
// makes s only, and sigma = u^T s / (||u|| ||v||). backends/reference.py has the mathematics.
#pragma once

#include "finish.cuh"
#include "products.cuh"

namespace fastsn {

// An evaluation makes no t: what it keeps of the columns is the length of the given v.
template <typename T>
FASTSN_DEVICE void measure_v(const ForwardCall& call, const ForwardProblem& weight,
                             SharedHead& shared) {
#pragma unroll 1
  for (int j = 0; j < weight.views; ++j) {
    const Slice slice = shared.place.slice[j][kCols];
    if (slice.slot > 0) continue;
    double squares[1] = {};
#pragma unroll 1
    for (int e = thread_index(); e < slice.count; e += kThreads) {
      const int place = torch_index(weight.split[j], kCols, slice.length, index_of(slice, e));
      const double value =
          load_as<double>(weight.given[j][kCols], weight.given_dtype[j][kCols], place);
      squares[0] += value * value;
    }
    block_sum(squares, shared.warps);
    if (thread_index() == 0) {
      stats_of(call, weight.strip[j][kCols] + slice.strip)[kGivenSquares] = squares[0];
    }
    block_barrier();
  }
}

template <typename T, int kSide, int kMost>
FASTSN_DEVICE void forward_products(const ForwardTableOf<kMost>& table) {
  using A = accumulate_t<T>;
  auto& shared = *reinterpret_cast<SharedHead*>(shared_memory());
  const ForwardProblem& weight = table.problem[find_problem(table, shared.place)];
  find_place<A>(table, weight, shared.place);
  if (thread_index() == 0) find_roles(kSide, weight.views, shared.place);
  if (kSide == kCols || table.iteration > 0) {
    find_norms(table, weight, 1 - kSide, 1 - kSide, false, shared);
  }
  block_barrier();
  if (kSide == kRows && table.iterations == 0) measure_v<T>(table, weight, shared);
  const Products<T, kSide> products(table, weight, shared);
  const bool row = products.is_row();
  if (!row) products.stage_first();
  block_barrier();
  if (row) {
    if (is_aligned(weight.data)) {
      products.template run_row<kPack<T>, true>();
    } else {
      products.template run_row<kPack<T>, false>();
    }
  } else if (weight.width == 1) {
    products.template run_as<1, true>();
  } else if (is_aligned(weight.data)) {
    products.template run_as<kPack<T>, true>();
  } else {
    products.template run_as<kPack<T>, false>();
  }
  finish_strips<A>(table, weight, kSide, products.buffer, shared);
}

template <typename T, int kMost>
FASTSN_DEVICE void forward_finish(const ForwardTableOf<kMost>& table) {
  using A = accumulate_t<T>;
  auto& shared = *reinterpret_cast<SharedHead*>(shared_memory());
  const int problem = find_problem(table, shared.place);
  const ForwardProblem& weight = table.problem[problem];
  const int index = block_index() - weight.first_tile;
  const bool evaluation = table.iterations == 0;
  find_place<A>(table, weight, shared.place);
  find_norms(table, weight, kRows, kCols, evaluation, shared);
  block_barrier();
  if (thread_index() == 0) conclude<A>(table, weight, problem, index == 0, shared);
  block_barrier();
  if (index == 0) {
    if (shared.keep_vectors && !evaluation) measure_given(weight, shared);
    if (thread_index() == 0) {
      A* view_stats =
          static_cast<A*>(table.view_stats) + 2 * (table.first_view + weight.first_view);
#pragma unroll 1
      for (int j = 0; j < weight.views; ++j) {
        const double lengths =
            shared.keep_vectors ? shared.given_lengths[j] : shared.new_lengths[j];
        const double coefficient = weight.views == 2 ? 0.5 : 1.0;
        view_stats[2 * j + 1] = static_cast<A>(lengths == 0 ? 0 : coefficient / lengths);
      }
    }
  }
  write_vectors<A>(table, weight, shared);
  const double factor = shared.factor;
  if constexpr (sizeof(T) == 8) {
    write_weight<T, double>(weight, index, factor);
  } else {
    if (table.out_dtype == kFloat32) write_weight<T, float>(weight, index, factor);
    if (table.out_dtype == kFloat16) write_weight<T, Float16>(weight, index, factor);
    if (table.out_dtype == kBFloat16) write_weight<T, BFloat16>(weight, index, factor);
  }
}

}  // namespace fastsn
