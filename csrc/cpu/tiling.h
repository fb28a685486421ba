// SPDX-License-Identifier: MIT
//
// How a view is cut into units of work: by its shape alone (see schedule.h).
#pragma once

#include <algorithm>
#include <cstdint>

#include "../problem.h"
#include "kernels.h"

namespace fastsn::cpu {

// Elements of a unit: about 128 kB of floats, a fraction of a second-level cache.
constexpr int64_t kUnit = 32768;
// Problems up to this size may use more memory for partial sums than larger ones.
constexpr int64_t kSmallProblem = 8 * kUnit;
// More units than this leave more partial sums to add up than threads to feed.
constexpr int64_t kMaxUnits = 64;
// One partial vector per so many rows is 3 % of the weight.
constexpr int64_t kRowsPerPart = 32;
// Kernels take this many rows at a time.
constexpr int64_t kRowGroup = 4;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A dense matrix [rows, cols] cut into a grid of tiles.
struct Tiling {
  int64_t rows = 0, cols = 0;            // of the matrix
  int64_t tile_rows = 1, tile_cols = 1;  // of a tile; the last ones may be smaller
  int64_t row_tiles = 0, col_tiles = 0;
  // Tiles hold all of what one product makes and the next one needs, so that one pass does both:
  // s = M v and t = M^T s where M is stored by rows, t = M^T u and the next s = M t where by slabs.
  bool turns = false;

  int64_t count() const { return row_tiles * col_tiles; }
};

struct Tile {
  int64_t row, col;            // place in the grid
  int64_t r0, c0, rows, cols;  // elements of the matrix
};

inline Tile tile_at(const Tiling& tiling, int64_t unit) {
  Tile tile;
  tile.row = unit / tiling.col_tiles;
  tile.col = unit % tiling.col_tiles;
  tile.r0 = tile.row * tiling.tile_rows;
  tile.c0 = tile.col * tiling.tile_cols;
  tile.rows = std::min(tiling.tile_rows, tiling.rows - tile.r0);
  tile.cols = std::min(tiling.tile_cols, tiling.cols - tile.c0);
  return tile;
}

// Tiles of at most tile_rows x tile_cols, as equal as the grain of the columns allows.
inline Tiling make_tiling(int64_t rows, int64_t cols, int64_t tile_rows, int64_t tile_cols,
                          int64_t grain) {
  Tiling tiling;
  tiling.rows = rows;
  tiling.cols = cols;
  tiling.tile_rows = ceil_div(rows, ceil_div(rows, std::clamp<int64_t>(tile_rows, 1, rows)));
  if (tiling.tile_rows > kRowGroup) {
    tiling.tile_rows = ceil_div(tiling.tile_rows, kRowGroup) * kRowGroup;
  }
  const int64_t grains = ceil_div(cols, grain);
  const int64_t wanted = std::clamp<int64_t>(tile_cols / grain, 1, grains);
  tiling.tile_cols = std::min(cols, ceil_div(grains, ceil_div(grains, wanted)) * grain);
  tiling.row_tiles = ceil_div(rows, tiling.tile_rows);
  tiling.col_tiles = ceil_div(cols, tiling.tile_cols);
  return tiling;
}

// A view with outer == 1: M itself, as it is in memory. `memory` is the size of an element in a
// vector over that in the weight, `views` the number of views that have partial sums.
inline Tiling row_tiling(int64_t rows, int64_t cols, int64_t memory, int64_t views) {
  const bool small = rows * cols <= kSmallProblem;
  const int64_t most_parts = ceil_div(rows, kMaxUnits);
  const int64_t at_least = small ? kRowGroup : kRowsPerPart * memory * views;
  Tiling whole = make_tiling(rows, cols, std::max({kUnit / cols, at_least, most_parts}), cols, 1);
  whole.turns = true;
  // A single row needs s normalized before M^T s, to be exact for a weight of one element.
  if (rows > 1 && cols <= kUnit && (small || whole.row_tiles >= 3)) return whole;
  const int64_t tile_cols = std::min(cols, kUnit / 4);
  const int64_t tile_rows = std::max({kUnit / tile_cols, kRowsPerPart * memory, most_parts});
  return make_tiling(rows, cols, tile_rows, tile_cols, 16);
}

// A view with outer > 1, as the matrix [outer, rows * inner] (see View): tiles are whole slabs, or
// whole rows of some.
inline Tiling slab_tiling(int64_t outer, int64_t rows, int64_t inner, int64_t memory) {
  const int64_t at_least = kRowsPerPart * memory;
  const int64_t tile_cols = std::max(kUnit, at_least * inner);
  const int64_t slab = std::min(rows * inner, tile_cols);
  const int64_t tile_outer =
      std::max({kUnit / slab, ceil_div(at_least, inner), ceil_div(outer, kMaxUnits)});
  Tiling tiling = make_tiling(outer, rows * inner, tile_outer, tile_cols, inner);
  tiling.turns = tiling.col_tiles == 1;
  return tiling;
}

}  // namespace fastsn::cpu
