// SPDX-License-Identifier: MIT
//
// The end of forward: sigma, the vectors and weight_sn out of the sums that were made.
#pragma once

#include "strips.cuh"

namespace fastsn {

// One thread's work: what the norms of a weight amount to.
template <typename A>
FASTSN_DEVICE void conclude(const ForwardCall& call, const ForwardProblem& weight, int problem,
                            bool writes, SharedHead& shared) {
  const bool evaluation = call.iterations == 0;
  const double coefficient = weight.views == 2 ? 0.5 : 1.0;
  A* view_stats = static_cast<A*>(call.view_stats) + 2 * (call.first_view + weight.first_view);
  double sigma = 0;
  bool usable = true;  // no norm was zero or not finite, in any view
#pragma unroll 1
  for (int j = 0; j < weight.views; ++j) {
    const double s_length = shared.norms[j][kRows][kSquares];
    const double t_length = shared.norms[j][kCols][kSquares];
    const double u_divisor = clamp_length(s_length, call.eps);
    const double v_divisor = clamp_length(t_length, call.eps);
    const double u_length = s_length / u_divisor;
    double product = t_length;
    double lengths = u_length;
    if (evaluation) {
      product = shared.norms[j][kRows][kDotGiven];
      lengths = shared.norms[j][kRows][kGivenSquares] * shared.norms[j][kCols][kGivenSquares];
      shared.given_lengths[j] = lengths;
    }
    const double view_sigma = lengths == 0 ? product : product / lengths;
    sigma += coefficient * view_sigma;
    usable = usable && is_usable(s_length) && is_usable(t_length);
    shared.divisor[j][kRows] = u_divisor;
    shared.divisor[j][kCols] = v_divisor;
    shared.new_lengths[j] = u_length * (t_length / v_divisor);
    if (writes) view_stats[2 * j] = static_cast<A>(view_sigma);
  }
  shared.keep_vectors = evaluation || !usable;
  double scale = weight.scale;
  if (call.scales != nullptr) {
    scale = load_as<double>(call.scales, call.scale_dtype, call.first_problem + problem);
  }
  shared.factor = sigma == 0 ? 0 : scale / sigma;
  if (writes) static_cast<A*>(call.sigmas)[call.first_problem + problem] = static_cast<A>(sigma);
}

// Measures the given vectors that a step kept: rarely needed, so not kept from the products.
FASTSN_DEVICE void measure_given(const ForwardProblem& weight, SharedHead& shared) {
#pragma unroll 1
  for (int j = 0; j < weight.views; ++j) {
    double lengths = 1;
#pragma unroll 1
    for (int side = 0; side < 2; ++side) {
      double squares[1] = {};
      const void* given = weight.given[j][side];
#pragma unroll 1
      for (int i = thread_index(); i < length_of(weight, j, side); i += kThreads) {
        const double value = load_as<double>(given, weight.given_dtype[j][side], i);
        squares[0] += value * value;
      }
      block_sum(squares, shared.warps);
      lengths *= sqrt(squares[0]);
      block_barrier();
    }
    if (thread_index() == 0) shared.given_lengths[j] = lengths;
  }
}

// This block's share of the vectors of its weight: of each, the slice that its tile is the first
// of.
template <typename A>
FASTSN_DEVICE void write_vectors(const ForwardCall& call, const ForwardProblem& weight,
                                 const SharedHead& shared) {
#pragma unroll 1
  for (int k = 0; k < 2 * weight.views; ++k) {
    const int j = k / 2;
    const int side = k % 2;
    const Slice& slice = shared.place.slice[j][side];
    if (slice.slot > 0) continue;
    void* given = weight.given[j][side];
    const int dtype = weight.given_dtype[j][side];
    const int split = side == kRows ? 0 : weight.split[j];
    A* out = static_cast<A*>(call.vectors) + call.first_entry + weight.place[j][side];
    const A* sums = sums_of<A>(call, slice);
    const A divisor = static_cast<A>(shared.divisor[j][side]);
    const int count = slice.count;
    const bool stores = call.store_vectors;
    const bool same = dtype == (sizeof(A) == 8 ? kFloat64 : kFloat32);
    if (!shared.keep_vectors && is_contiguous(slice) && split == 0 && (!stores || same)) {
      const int first = slice.base + thread_index();
      const auto walk = [&](auto both) {
        const A* from = sums + first;
        A* to = out + first;
        A* too = static_cast<A*>(given) + first;
#pragma unroll 4
        for (int e = thread_index(); e < count; e += kThreads) {
          const A value = *from / divisor;
          *to = value;
          // Nobody reads what was given any more: all did in earlier launches.
          if (decltype(both)::kValue) *too = value;
          from += kThreads;
          to += kThreads;
          too += kThreads;
        }
      };
      if (stores) {
        walk(Count<1>());
      } else {
        walk(Count<0>());
      }
      continue;
    }
#pragma unroll 1
    for (int e = thread_index(); e < count; e += kThreads) {
      const int from = index_of(slice, e);
      const int to = torch_index(split, side, slice.length, from);
      if (shared.keep_vectors) {
        out[to] = load_as<A>(given, dtype, to);
      } else {
        const A value = sums[from] / divisor;
        out[to] = value;
        if (stores) store_as(given, dtype, to, value);
      }
    }
  }
}

// The piece of a weight's memory that a block works on where its shape does not matter: calls
// packs(e, Count<n>()) for n packs from element e on, kThreads packs apart, and one(e).
template <typename T, typename Packs, typename One>
FASTSN_DEVICE void for_piece(const Problem& box, int index, bool aligned, Packs packs, One one) {
  constexpr int kCount = kPack<T>;
  const int64_t all = static_cast<int64_t>(box.size[0]) * box.size[1] * box.size[2];
  const int64_t begin = static_cast<int64_t>(index) * box.piece;
  const int64_t end = begin + box.piece < all ? begin + box.piece : all;
  int64_t e = begin + thread_index() * kCount;
  const auto single = [&](int64_t stop) {
#pragma unroll 1
    for (int64_t k = e; k < stop; ++k) one(k);
  };
  if (aligned) {
    constexpr int kAhead = 4;
#pragma unroll 1
    for (; e + (kAhead - 1) * kThreads * kCount + kCount <= end; e += kAhead * kThreads * kCount) {
      packs(e, Count<kAhead>());
    }
#pragma unroll 1
    for (; e + kCount <= end; e += kThreads * kCount) packs(e, Count<1>());
    if (e < end) single(end);
  } else {
    for (; e < end; e += kThreads * kCount) single(e + kCount < end ? e + kCount : end);
  }
}

template <typename T, typename Out>
FASTSN_DEVICE void write_weight(const ForwardProblem& weight, int index, double wide_factor) {
  using A = accumulate_t<T>;
  constexpr int kCount = kPack<T>;
  const T* data = static_cast<const T*>(weight.data);
  Out* out = static_cast<Out*>(weight.weight_sn);
  const A factor = static_cast<A>(wide_factor);
  for_piece<T>(
      weight, index, is_aligned(data) && is_aligned(out),
      [&](int64_t e, auto ahead) {
        constexpr int kAhead = decltype(ahead)::kValue;
        Pack<T, kCount> packs[kAhead];
#pragma unroll
        for (int k = 0; k < kAhead; ++k) {
          packs[k] = load_pack<kCount, true>(data + e + k * kThreads * kCount);
        }
#pragma unroll
        for (int k = 0; k < kAhead; ++k) {
          A values[kCount];
#pragma unroll
          for (int i = 0; i < kCount; ++i) values[i] = factor * widen(packs[k].value[i]);
          store_pack<true>(out + e + k * kThreads * kCount, values);
        }
      },
      [&](int64_t e) { out[e] = narrow<Out>(factor * widen(data[e])); });
}

}  // namespace fastsn
