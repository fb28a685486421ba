// SPDX-License-Identifier: MIT
//
// Fills tables on the host: from shapes and pointers to boxes, tiles and workspace. No CUDA, no
// torch.
#pragma once

#include <algorithm>
#include <numeric>
#include <type_traits>
#include <utility>
#include <vector>

#include "../problem.h"
#include "table.h"

namespace fastsn {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

constexpr int64_t element_size(int32_t dtype) {
  return dtype == kFloat64 ? 8 : dtype == kFloat32 ? 4 : 2;
}

// A length that cuts `size` into nearly equal parts of at most `most`, a multiple of `unit` where
// there is more than one part and `most` allows it.
inline int64_t even_part(int64_t size, int64_t most, int64_t unit) {
  if (size <= most) return size;
  if (most < unit) unit = 1;
  const int64_t parts = ceil_div(size, most / unit * unit);
  return ceil_div(ceil_div(size, parts), unit) * unit;
}

// Chooses the tiles of a box: at most a slot of elements, runs of memory of at least 128 elements,
// and some 32 rows of every unfolding, because each tile writes its part of every product.
class Tiling {
 public:
  Tiling(Problem& box, int64_t element_bytes) : box_(box), budget_(kSlotBytes / element_bytes) {
    for (int axis = 0; axis < 3; ++axis) box_.tile[axis] = 1;
    constexpr int64_t kRun = 128;
    constexpr int64_t kAll = INT32_MAX;
    grow(2, kRun);
    if (box_.views == 2 && box_.axis[0] + box_.axis[1] == 2) {  // rows along axes 0 and 2
      grow(0, 32);
    } else {
      grow(1, box_.views == 2 ? 16 : 32);
      if (box_.tile[2] == box_.size[2]) grow(1, kRun / box_.tile[2]);
    }
    grow(0, kAll);
    grow(1, kAll);
    grow(2, kAll);
    for (int axis = 0; axis < 3; ++axis) {
      box_.grid[axis] = static_cast<int32_t>(ceil_div(box_.size[axis], box_.tile[axis]));
    }
  }

 private:
  void grow(int axis, int64_t target) {
    const int16_t* tile = box_.tile;
    const int64_t volume = int64_t{tile[0]} * tile[1] * tile[2];
    int64_t most = std::min(target, budget_ / (volume / tile[axis]));
    for (int j = 0; j < box_.views; ++j) {
      // a view's part of a tile takes `rows` entries of one vector and `cols` of the other
      const int64_t rows = tile[box_.axis[j]];
      const int64_t cols = volume / rows;
      most = std::min(most, box_.axis[j] == axis ? kTileVector : kTileVector / (cols / tile[axis]));
    }
    // runs begin at multiples of 16 bytes where the shape allows it
    const bool whole_rows = tile[2] == box_.size[2];
    const int64_t unit = axis == 2                 ? 8
                         : axis == 1 && whole_rows ? 8 / std::gcd<int64_t>(8, tile[2])
                                                   : 1;
    const int64_t length = even_part(box_.size[axis], most, unit);
    if (length > tile[axis]) box_.tile[axis] = static_cast<int16_t>(length);
  }

  Problem& box_;
  const int64_t budget_;
};

// Fills in the box of a weight, its tiles and its views. False where it is empty or has 2^31
// elements or more.
inline bool plan_box(const Views& views, int64_t dim, int64_t kind, int64_t element_bytes,
                     Problem& problem) {
  const View& first = views.view[0];
  const int64_t elements = first.rows * first.cols();
  if (elements == 0 || elements > INT32_MAX) return false;
  int8_t axes[2] = {1, 1};
  int64_t size[3] = {first.outer, first.rows, first.inner};
  if (kind == kBSN) {
    // dimension 0 is the slowest in memory; dimension 1 follows it, or comes last (channels_last)
    const View& of_0 = views.view[dim == 0 ? 0 : 1];
    const View& of_1 = views.view[dim == 0 ? 1 : 0];
    const bool follows = of_1.outer == of_0.rows;
    size[0] = of_0.rows;
    size[1] = follows ? of_1.rows : of_1.outer / of_0.rows;
    size[2] = follows ? of_1.inner : of_1.rows;
    axes[dim == 0 ? 0 : 1] = 0;
    axes[dim == 0 ? 1 : 0] = follows ? 1 : 2;
  }
  for (int axis = 0; axis < 3; ++axis) problem.size[axis] = static_cast<int32_t>(size[axis]);
  problem.views = static_cast<int8_t>(views.count);
  problem.v_first = kind == kSNVFirst;
  for (int j = 0; j < views.count; ++j) {
    problem.axis[j] = axes[j];
    problem.split[j] = static_cast<int32_t>(views.view[j].split);
  }
  Tiling(problem, element_bytes);
  return true;
}

inline int64_t tile_count(const Problem& box) {
  return int64_t{box.grid[0]} * box.grid[1] * box.grid[2];
}

// A vector in torch's order, written to only by an op that stores the new ones.
struct GivenVector {
  void* data;
  int32_t dtype;
};

// What both directions have in common: weights one by one, in tables of kManyProblems.
template <typename Table>
class Plan {
 public:
  Plan(int32_t dtype, size_t weights) : dtype_(dtype) {
    tables_.reserve(ceil_div(weights, kManyProblems));
  }

  std::vector<Table>& tables() { return tables_; }
  int32_t dtype() const { return dtype_; }
  int64_t views() const { return views_; }
  int64_t vector_entries() const { return vector_entries_; }  // length of `vectors`

 protected:
  // Adds a weight, or returns null if plan_box does not take it. A table takes up to kManyProblems,
  // and what 32 bits can count.
  auto* add_problem(const Views& views, int64_t dim, int64_t kind, const void* data, double scale) {
    std::remove_reference_t<decltype(Table::problem[0])> problem = {};
    if (!plan_box(views, dim, kind, element_size(dtype_), problem)) {
      return static_cast<decltype(&problem)>(nullptr);
    }
    problem.data = data;
    problem.scale = scale;
    const int64_t tiles = tile_count(problem);
    int64_t entries = 0;
    int64_t parts = 0;  // in units of kPartsUnit, as tile.cuh finds them
    for (int j = 0; j < views.count; ++j) {
      const int64_t along_rows = problem.grid[problem.axis[j]];
      entries += views.view[j].rows + views.view[j].cols();
      parts += ceil_div(tiles / along_rows * views.view[j].rows, kPartsUnit) +
               ceil_div(along_rows * views.view[j].cols(), kPartsUnit);
    }
    const auto fits = [&](const Table& table) {
      return table.problems < kManyProblems && table.tiles + tiles <= INT32_MAX &&
             vector_entries_ - table.first_entry + entries <= INT32_MAX &&
             parts_ + parts <= INT32_MAX;
    };
    if (tables_.empty() || !fits(tables_.back())) {
      Table& table = tables_.emplace_back();
      table.first_problem = problems_;
      table.first_view = views_;
      table.first_entry = vector_entries_;
      parts_ = 0;
    }
    Table& table = tables_.back();
    problem.first_tile = table.tiles;
    problem.first_view = static_cast<int16_t>(views_ - table.first_view);
    problem.place = static_cast<int32_t>(vector_entries_ - table.first_entry);
    if constexpr (std::is_same_v<Table, ForwardTable>) {
      problem.first_part = static_cast<int32_t>(parts_);
    }
    table.tiles += static_cast<int32_t>(tiles);
    vector_entries_ += entries;
    parts_ += parts;
    views_ += views.count;
    ++problems_;
    return &(table.problem[table.problems++] = problem);
  }

  std::vector<Table> tables_;
  const int32_t dtype_;
  int64_t parts_ = 0;  // of the last table, in units of kPartsUnit

 private:
  int32_t problems_ = 0;
  int32_t views_ = 0;
  int64_t vector_entries_ = 0;
};

class ForwardPlan : public Plan<ForwardTable> {
 public:
  using Plan::Plan;

  // us and vs: one per view, as torch has them. False as plan_box.
  bool add(const Views& views, int64_t dim, int64_t kind, const void* weight, void* weight_sn,
           double scale, const GivenVector* us, const GivenVector* vs) {
    ForwardProblem* problem = add_problem(views, dim, kind, weight, scale);
    if (problem == nullptr) return false;
    ForwardTable& table = tables_.back();
    problem->weight_sn = weight_sn;
    if (kind == kSNVFirst) std::swap(us, vs);
    for (int side : {kRows, kCols}) {
      problem->first_chunk[side] = table.chunks[side];
      for (int j = 0; j < views.count; ++j) {
        const View& view = views.view[j];
        const GivenVector& given = (side == kRows ? us : vs)[j];
        problem->given[j][side] = given.data;
        problem->given_dtype[j][side] = static_cast<int8_t>(given.dtype);
        const int64_t length = side == kRows ? view.rows : view.cols();
        table.chunks[side] += static_cast<int32_t>(ceil_div(length, kChunk));
      }
    }
    const int64_t sum_bytes = dtype() == kFloat64 ? 8 : 4;
    const int64_t chunks = int64_t{table.chunks[kRows]} + table.chunks[kCols];
    const int64_t stats_bytes = chunks * kChunkStats * sizeof(double);
    table.sums = ceil_div(stats_bytes, 16) * 16;
    const int64_t entries = vector_entries() - table.first_entry;
    table.parts = table.sums + ceil_div(entries * sum_bytes, 16) * 16;
    workspace_bytes_ = std::max(workspace_bytes_, table.parts + parts_ * kPartsUnit * sum_bytes);
    return true;
  }

  // Tables run one after the other, so they share one workspace.
  int64_t workspace_bytes() const { return workspace_bytes_; }

 private:
  int64_t workspace_bytes_ = 0;
};

class BackwardPlan : public Plan<BackwardTable> {
 public:
  using Plan::Plan;

  bool add(const Views& views, int64_t dim, int64_t kind, const void* grad, const void* weight_sn,
           void* grad_weight, double scale) {
    BackwardProblem* problem = add_problem(views, dim, kind, grad, scale);
    if (problem == nullptr) return false;
    problem->weight_sn = weight_sn;
    problem->grad_weight = grad_weight;
    return true;
  }

  int64_t workspace_bytes() const {
    int64_t tiles = 0;
    for (const BackwardTable& table : tables_) tiles = std::max<int64_t>(tiles, table.tiles);
    return tiles * sizeof(double);
  }
};

// How a launch spreads over a device with room for `blocks` blocks of `slots` slots each. What fits
// stays in shared memory from the first phase to the last; otherwise all but a few slots are kept.
struct Residency {
  int blocks;
  int slots;
  int kept;

  Residency(int tiles, int most_blocks, int most_slots) {
    blocks = std::min(most_blocks, tiles);
    const int per_block = static_cast<int>(ceil_div(tiles, blocks));
    slots = std::min(per_block, most_slots);
    kept = per_block <= most_slots ? per_block : most_slots - kRing;
  }
};

}  // namespace fastsn
