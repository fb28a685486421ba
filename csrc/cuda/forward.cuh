// SPDX-License-Identifier: MIT
//
// Forward, in phases with a grid barrier between them. Each iteration:
//
//   multiply rows  part sums of s = M v over every tile, for all unfoldings from one look at it
//   sum rows       s, and the pieces of ||s||
//   multiply cols  part sums of t = M^T u with u = s / max(||s||, eps)
//   sum cols       t, and the pieces of ||t||
//
// and at the end a last walk over the tiles writes sigma, the vectors and weight_sn. Vectors wait
// in the workspace at full length and are divided by their norm where they are read. An evaluation
// (no iteration) makes s only, and sigma = u^T s / (||u|| ||v||). fastsn/reference.py has the
// mathematics.
#pragma once

#include "finish.cuh"

namespace fastsn {

// Gathers what a tile is multiplied with: its slice of v for s = M v (side kRows), of u for
// t = M^T u (kCols). The first multiplication of a launch takes the given v.
template <typename A, int kMost>
FASTSN_DEVICE void stage(const ForwardTableOf<kMost>& table, const Tile& tile, int side, bool first,
                         ForwardShared<A>& shared) {
  const ForwardProblem& weight = table.problem[tile.problem];
  const int other = 1 - side;
#pragma unroll 1
  for (int j = 0; j < weight.views; ++j) {
    const Part& part = tile.part[j];
    const A* sums = sums_of<A>(table, part.vector[other]);
    const int entries = other == kCols ? part.cols : part.rows;
    for (int m = thread_index(); m < entries; m += kThreads) {
      const int index = other == kCols ? part.column(m) : part.first_row + m;
      shared.x[j][m] =
          first ? load_as<A>(weight.given[j][kCols], weight.given_dtype[j][kCols],
                             torch_index(weight.split[j], kCols, part.vector[kCols].length, index))
                : sums[index] / shared.divisor[j][other];
    }
  }
}

template <typename T, typename A, int kMost>
FASTSN_DEVICE void multiply(const ForwardTableOf<kMost>& table, const Tile& tile, const T* slot,
                            int side, ForwardShared<A>& shared) {
  const ForwardProblem& weight = table.problem[tile.problem];
#pragma unroll 1
  for (int j = 0; j < weight.views; ++j) {
    const Part& part = tile.part[j];
    const int length = part.vector[side].length;
    A* parts = parts_of<A>(table, weight, part.vector[side]);
    if (side == kRows) {
      parts += static_cast<int64_t>(part.col_tile) * length + part.first_row;
      multiply_rows(part, slot, shared.x[j], shared.partial[j],
                    [&](int row, A total) { parts[row] = total; });
    } else {
      parts += static_cast<int64_t>(part.row_tile) * length;
      multiply_cols(part, slot, shared.x[j], shared.partial[j],
                    [&](int m, A total) { parts[part.column(m)] = total; });
    }
  }
}

// Adds up the part sums. An evaluation has none for the columns: it only measures the given v.
template <typename A, int kMost>
FASTSN_DEVICE void sum_parts(const ForwardTableOf<kMost>& table, int side,
                             ForwardShared<A>& shared) {
  for (int chunk = block_index(); chunk < table.chunks[side]; chunk += block_count()) {
    const int problem =
        find_last(table.problems, chunk, [&](int i) { return table.problem[i].first_chunk[side]; });
    const ForwardProblem& weight = table.problem[problem];
    int own = chunk - weight.first_chunk[side];
    Vector own_vectors[2];
    next_vectors(weight, 0, own_vectors);
    const int before =
        chunks_of(side == kRows ? own_vectors[kRows].length : own_vectors[kCols].length);
    const int view = own >= before ? 1 : 0;
    if (view == 1) {
      own -= before;
      next_vectors(weight, 1, own_vectors);
    }
    Vector vector = own_vectors[kRows];  // not indexed by side: that would need a stack
    if (side == kCols) vector = own_vectors[kCols];
    const int length = vector.length;
    const int tiles = side == kCols && table.iterations == 0 ? 0 : vector.tiles;

    const int i = thread_index() % kChunk;
    const int index = own * kChunk + i;
    A part = 0;
    if (index < length) {
      const A* parts = parts_of<A>(table, weight, vector) + index;
#pragma unroll 8
      for (int tile = thread_index() / kChunk; tile < tiles; tile += kSplit) {
        part += parts[static_cast<int64_t>(tile) * length];
      }
    }
    A* partial = shared.partial[0];
    partial[thread_index()] = part;
    block_barrier();
    double stats[kChunkStats] = {};
    if (thread_index() < kChunk && index < length) {
      A total = part;
#pragma unroll
      for (int k = 1; k < kSplit; ++k) total += partial[k * kChunk + i];
      sums_of<A>(table, vector)[index] = total;
      const int place = torch_index(weight.split[view], side, length, index);
      const double old =
          load_as<double>(weight.given[view][side], weight.given_dtype[view][side], place);
      const double wide = total;
      stats[kSquares] = wide * wide;
      stats[kGivenSquares] = old * old;
      stats[kDotGiven] = wide * old;
    }
    block_sum(stats, shared.warps);
    if (thread_index() == 0) {
      double* out = stats_of(table, side, chunk);
#pragma unroll
      for (int k = 0; k < kChunkStats; ++k) out[k] = stats[k];
    }
  }
}

template <typename T, int kMost>
FASTSN_DEVICE void forward(const ForwardTableOf<kMost>& table) {
  using A = accumulate_t<T>;
  auto& shared = *reinterpret_cast<ForwardShared<A>*>(shared_memory());
  T* slots = reinterpret_cast<T*>(shared_memory() + sizeof(ForwardShared<A>));
  TileWalk<T, ForwardTableOf<kMost>> walk(table, shared.walk, slots);
  const bool evaluation = table.iterations == 0;
#pragma unroll 1
  for (;;) {
    const int k = walk.begin();
    const bool last = k == (evaluation ? 1 : 2 * table.iterations);
    const int side = k % 2;
    while (walk.next()) {
      const Tile& tile = walk.tile();
      if ((walk.at_new_problem() && k > 0) || (last && tile.index == 0)) {
        find_norms(table, tile, last ? kRows : 1 - side, last ? kCols : 1 - side, shared);
        block_barrier();
        if (thread_index() == 0) {
          if (last) conclude(table, tile.problem, tile.index == 0, shared);
          if (!last) find_divisors(table, tile.problem, 1 - side, shared);
        }
        block_barrier();
      }
      if (last) {
        write_vectors(table, tile, shared);
      } else {
        stage(table, tile, side, k == 0, shared);
      }
      const T* slot = walk.wait();
      if (last) {
        const A factor = shared.factor;
        store_tile(tile, slot, table.problem[tile.problem].weight_sn, table.out_dtype,
                   [&](auto& values, int) {
                     for (A& value : values) value *= factor;
                   });
      } else {
        multiply(table, tile, slot, side, shared);
      }
      block_barrier();
    }
    if (last) break;
    grid_barrier();
    const int last_side = evaluation ? kCols : side;
#pragma unroll 1
    for (int s = side; s <= last_side; ++s) sum_parts(table, s, shared);
    grid_barrier();
  }
}

}  // namespace fastsn
