// SPDX-License-Identifier: MIT
//
// The power iteration of one view: what a pass over the weight adds up, tile by tile.
#pragma once

#include "levels.h"
#include "tiling.h"

namespace fastsn::cpu {

// A vector as it was given, and where the new one goes (in R, torch's order).
struct VectorSlot {
  const void* given;
  DType dtype;
  void* result;
};

// What a pass over the weight does for a view: s = M v, t = M^T u, or one after the other.
enum class Step { kNone, kTimes, kTransposed, kTimesTransposed, kTransposedTimes };

// The vectors that go into products are unit vectors, and the lengths that max(norm, eps) leaves u
// and v are kept apart: so weights of any magnitude stay in the range of R.
template <typename R>
struct ViewState {
  View view;
  bool by_rows;   // outer == 1
  Tiling tiling;  // of [rows, cols] by rows, else of [outer, rows * inner]
  VectorSlot slots[2];
  double coefficient;    // of this view in sigma
  R* u;                  // [rows], the result's memory
  R* v;                  // [cols] in memory order, the result's memory where that is torch's order
  R* s_parts = nullptr;  // [row or column tiles, rows], null if a single tile makes s
  R* t_parts = nullptr;
  double u_length = 1, v_length = 1, sigma = 0;
  bool good = true;

  int64_t slab() const { return view.rows * view.inner; }
  int64_t s_part_count() const { return by_rows ? tiling.col_tiles : tiling.row_tiles; }
  int64_t t_part_count() const { return by_rows ? tiling.row_tiles : tiling.col_tiles; }
  bool has_s_parts() const { return s_part_count() > 1; }
  // By rows, a tile still reads v while it adds to t.
  bool has_t_parts() const { return t_part_count() > 1 || (by_rows && tiling.turns); }

  int passes(int64_t n_power_iterations) const;
  Step step(int pass, int64_t n_power_iterations) const;
  int64_t workspace() const;
  R* set_workspace(R* workspace);  // returns its end
  int64_t scratch() const;         // elements that a tile needs

  // A tile is begun, given its rows in blocks (in order, w at the tile's first column), and ended.
  void begin(const Kernels<R>& kernels, Step step, const Tile& tile, R* scratch) const;
  void add(const Kernels<R>& kernels, Step step, const Tile& tile, const R* w, int64_t stride,
           int64_t row, int64_t rows, R* scratch) const;
  void end(const Kernels<R>& kernels, Step step, const Tile& tile, R* scratch) const;
  // After all tiles: s to u, t to v.
  void sum_s(const Kernels<R>& kernels) const;
  void sum_t(const Kernels<R>& kernels) const;

  void load_given(const Kernels<R>& kernels) const;  // v, and u where there is no iteration
  void store_results(const Kernels<R>& kernels, bool keep_given) const;
};

}  // namespace fastsn::cpu
