// SPDX-License-Identifier: MIT
//
// The end of forward: sigma, the vectors and weight_sn out of the sums that forward.cuh made.
#pragma once

#include "vectors.cuh"
#include "walk.cuh"

namespace fastsn {

template <typename A>
struct alignas(16) ForwardShared {
  double warps[kChunkStats * kWarps];
  double norms[2][2][3];  // per view and side: of s or t, of the given vector; their product
  double new_lengths[2];  // per view: ||u|| ||v||
  double given_lengths[2];
  WalkShared walk;
  A x[2][kTileVector];  // per view: the slice of its vector that a tile is multiplied with
  A partial[2][kPartial];
  A divisor[2][2];    // per view: max(||s||, eps), max(||t||, eps)
  A factor;           // weight_sn = factor * weight
  bool keep_vectors;  // they stay as given
};

template <typename V>
FASTSN_DEVICE V* in_workspace(const ForwardCall& call, int64_t bytes) {
  return reinterpret_cast<V*>(static_cast<char*>(call.workspace) + bytes);
}

// s or t, in memory order.
template <typename A>
FASTSN_DEVICE A* sums_of(const ForwardCall& call, const Vector& vector) {
  return in_workspace<A>(call, call.sums) + vector.place;
}

// Their part sums, [tiles][length].
template <typename A>
FASTSN_DEVICE A* parts_of(const ForwardCall& call, const ForwardProblem& weight,
                          const Vector& vector) {
  const int64_t unit = static_cast<int64_t>(weight.first_part) + vector.first_part;
  return in_workspace<A>(call, call.parts) + unit * kPartsUnit;
}

// Statistics of the chunks of rows or of columns.
FASTSN_DEVICE double* stats_of(const ForwardCall& call, int side, int chunk) {
  const int record = chunk + (side == kCols ? call.chunks[kRows] : 0);
  return in_workspace<double>(call, 0) + static_cast<int64_t>(record) * kChunkStats;
}

FASTSN_DEVICE int chunks_of(int length) { return (length - 1) / kChunk + 1; }

// Fills shared.norms for the weight of a tile and the sides asked for, with a warp for each vector.
template <typename A, int kMost>
FASTSN_DEVICE void find_norms(const ForwardTableOf<kMost>& table, const Tile& tile, int first_side,
                              int last_side, ForwardShared<A>& shared) {
  const ForwardProblem& weight = table.problem[tile.problem];
#pragma unroll 1
  for (int k = thread_index() / kWarp; k < 2 * weight.views; k += kWarps) {
    const int side = k % 2;
    if (side < first_side || side > last_side) continue;
    int chunk = weight.first_chunk[side];
    if (k / 2 == 1) chunk += chunks_of(tile.part[0].vector[side].length);
    double total[kChunkStats];
    sum_records(stats_of(table, side, chunk), chunks_of(tile.part[k / 2].vector[side].length),
                total);
    const int lane = thread_index() % kWarp;
    const double squares = lane == 0 ? total[kSquares] : total[kGivenSquares];
    if (lane < 2) shared.norms[k / 2][side][lane] = sqrt(squares);
    if (lane == 2) shared.norms[k / 2][side][2] = total[kDotGiven];
  }
}

// One thread's work: the clamped norms of s or t, where only those are needed.
template <typename A, int kMost>
FASTSN_DEVICE void find_divisors(const ForwardTableOf<kMost>& table, int problem, int side,
                                 ForwardShared<A>& shared) {
#pragma unroll 1
  for (int j = 0; j < table.problem[problem].views; ++j) {
    shared.divisor[j][side] = static_cast<A>(clamp_length(shared.norms[j][side][0], table.eps));
  }
}

// One thread's work: what the norms of a weight amount to. Writes sigma and view_stats if asked.
template <typename A, int kMost>
FASTSN_DEVICE void conclude(const ForwardTableOf<kMost>& table, int problem, bool write,
                            ForwardShared<A>& shared) {
  const ForwardProblem& weight = table.problem[problem];
  const bool evaluation = table.iterations == 0;
  const double coefficient = weight.views == 2 ? 0.5 : 1.0;
  A* view_stats = static_cast<A*>(table.view_stats) + 2 * (table.first_view + weight.first_view);
  double sigma = 0;
  bool usable = true;  // no norm was zero or not finite, in any view
#pragma unroll 1
  for (int j = 0; j < weight.views; ++j) {
    const double s_length = shared.norms[j][kRows][0];
    const double t_length = shared.norms[j][kCols][0];
    const double u_divisor = clamp_length(s_length, table.eps);
    const double v_divisor = clamp_length(t_length, table.eps);
    const double u_length = s_length / u_divisor;
    const double given_lengths = shared.norms[j][kRows][1] * shared.norms[j][kCols][1];
    const double product = evaluation ? shared.norms[j][kRows][2] : t_length;
    const double lengths = evaluation ? given_lengths : u_length;
    const double view_sigma = lengths == 0 ? product : product / lengths;
    sigma += coefficient * view_sigma;
    usable = usable && is_usable(s_length) && is_usable(t_length);
    shared.divisor[j][kRows] = static_cast<A>(u_divisor);
    shared.divisor[j][kCols] = static_cast<A>(v_divisor);
    shared.new_lengths[j] = u_length * (t_length / v_divisor);
    shared.given_lengths[j] = given_lengths;
    if (write) view_stats[2 * j] = static_cast<A>(view_sigma);
  }
  const bool keep = evaluation || !usable;
  shared.keep_vectors = keep;
  shared.factor = static_cast<A>(sigma == 0 ? 0 : load_scale(table, problem) / sigma);
  if (!write) return;
  static_cast<A*>(table.sigmas)[table.first_problem + problem] = static_cast<A>(sigma);
#pragma unroll 1
  for (int j = 0; j < weight.views; ++j) {
    const double lengths = keep ? shared.given_lengths[j] : shared.new_lengths[j];
    view_stats[2 * j + 1] = static_cast<A>(lengths == 0 ? 0 : coefficient / lengths);
  }
}

// A tile's share of the vectors of its weight.
template <typename A, int kMost>
FASTSN_DEVICE void write_vectors(const ForwardTableOf<kMost>& table, const Tile& tile,
                                 const ForwardShared<A>& shared) {
  const ForwardProblem& weight = table.problem[tile.problem];
#pragma unroll 1
  for (int k = 0; k < 2 * weight.views; ++k) {
    const int side = k % 2;
    const Vector& vector = tile.part[k / 2].vector[side];
    void* given = weight.given[k / 2][side];
    const int given_dtype = weight.given_dtype[k / 2][side];
    const int split = weight.split[k / 2];
    const A* sums = sums_of<A>(table, vector);
    A* out = static_cast<A*>(table.vectors) + table.first_entry + vector.place;
    const A divisor = shared.divisor[k / 2][side];
    const int share = (vector.length - 1) / tile.tiles + 1;
    const int64_t first = static_cast<int64_t>(tile.index) * share;
#pragma unroll 1
    for (int n = thread_index(); n < share && first + n < vector.length; n += kThreads) {
      const int i = static_cast<int>(first) + n;
      const int index = torch_index(split, side, vector.length, i);
      if (shared.keep_vectors) {
        out[index] = load_as<A>(given, given_dtype, index);
        continue;
      }
      out[index] = sums[i] / divisor;
      // Nobody reads what was given any more: all did before the last grid barrier.
      if (table.store_vectors) store_as(given, given_dtype, index, out[index]);
    }
  }
}

}  // namespace fastsn
