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
  Tiling(Box& box, int views, const int (&axes)[2], int64_t element_bytes)
      : box_(box), views_(views), axes_(axes), budget_(kSlotBytes / element_bytes) {
    for (int axis = 0; axis < 3; ++axis) box_.tile[axis] = 1;
    constexpr int64_t kRun = 128;
    constexpr int64_t kAll = INT32_MAX;
    grow(2, kRun);
    if (views_ == 2 && axes_[0] + axes_[1] == 2) {  // rows along axes 0 and 2
      grow(0, 32);
    } else {
      grow(1, views_ == 2 ? 16 : 32);
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
    const int32_t* tile = box_.tile;
    const int64_t volume = int64_t{tile[0]} * tile[1] * tile[2];
    int64_t most = std::min(target, budget_ / (volume / tile[axis]));
    for (int j = 0; j < views_; ++j) {
      // a view's part of a tile takes `rows` entries of one vector and `cols` of the other
      const int64_t rows = tile[axes_[j]];
      const int64_t cols = volume / rows;
      most = std::min(most, axes_[j] == axis ? kTileVector : kTileVector / (cols / tile[axis]));
    }
    // runs begin at multiples of 16 bytes where the shape allows it
    const bool whole_rows = tile[2] == box_.size[2];
    const int64_t unit = axis == 2                 ? 8
                         : axis == 1 && whole_rows ? 8 / std::gcd<int64_t>(8, tile[2])
                                                   : 1;
    const int64_t length = even_part(box_.size[axis], most, unit);
    if (length > tile[axis]) box_.tile[axis] = static_cast<int32_t>(length);
  }

  Box& box_;
  const int views_;
  const int (&axes_)[2];
  const int64_t budget_;
};

// The box of a weight, and its views on it. False where it is empty or has 2^31 elements or more.
inline bool plan_box(const Views& views, int64_t dim, int64_t kind, int64_t element_bytes, Box& box,
                     ViewPlan (&plans)[2]) {
  const View& first = views.view[0];
  const int64_t elements = first.rows * first.cols();
  if (elements == 0 || elements > INT32_MAX) return false;
  int axes[2] = {1, 1};
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
  for (int axis = 0; axis < 3; ++axis) box.size[axis] = static_cast<int32_t>(size[axis]);
  for (int j = 0; j < views.count; ++j) {
    const View& view = views.view[j];
    plans[j] = ViewPlan{axes[j],
                        static_cast<int32_t>(view.split),
                        {static_cast<int32_t>(view.rows), static_cast<int32_t>(view.cols())},
                        {0, 0}};
  }
  Tiling(box, views.count, axes, element_bytes);
  return true;
}

inline int32_t tile_count(const Box& box) { return box.grid[0] * box.grid[1] * box.grid[2]; }

// What both directions have in common: weights one by one, in tables of kMaxProblems.
template <typename Table>
class Plan {
 public:
  explicit Plan(int32_t dtype) : dtype_(dtype) {}

  std::vector<Table>& tables() { return tables_; }
  int32_t dtype() const { return dtype_; }
  int64_t views() const { return views_; }
  int64_t vector_entries() const { return vector_entries_; }  // length of `vectors`

 protected:
  // Adds a weight with its box and views, or returns null if plan_box does not take it.
  auto* add_problem(const Views& views, int64_t dim, int64_t kind, const void* data, double scale,
                    ViewPlan (&plans)[2]) {
    Box box;
    using Problem = std::remove_reference_t<decltype(Table::problem[0])>;
    if (!plan_box(views, dim, kind, element_size(dtype_), box, plans)) {
      return static_cast<Problem*>(nullptr);
    }
    if (tables_.empty() || tables_.back().problems == kMaxProblems) {
      tables_.emplace_back();
      tables_.back().first_problem = problems_;
    }
    Table& table = tables_.back();
    Problem& problem = table.problem[table.problems++];
    ++problems_;
    box.data = data;
    box.first_tile = table.tiles;
    table.tiles += tile_count(box);
    problem.box = box;
    problem.scale = scale;
    problem.views = views.count;
    problem.first_view = views_;
    views_ += views.count;
    for (int j = 0; j < views.count; ++j) {
      // rows and columns of kSNVFirst are those of M^T, so that its u is what torch calls v
      ViewPlan& plan = plans[j];
      const bool swapped = kind == kSNVFirst;
      plan.place[kRows] = vector_entries_ + (swapped ? plan.length[kCols] : 0);
      plan.place[kCols] = vector_entries_ + (swapped ? 0 : plan.length[kRows]);
      vector_entries_ += int64_t{plan.length[kRows]} + plan.length[kCols];
    }
    return &problem;
  }

  std::vector<Table> tables_;
  const int32_t dtype_;

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
    ViewPlan plans[2];
    ForwardProblem* problem = add_problem(views, dim, kind, weight, scale, plans);
    if (problem == nullptr) return false;
    ForwardTable& table = tables_.back();
    if (table.problems == 1) table_bytes_ = 0;
    problem->weight_sn = weight_sn;
    problem->first_chunk[kRows] = table.chunks[kRows];
    problem->first_chunk[kCols] = table.chunks[kCols];
    if (kind == kSNVFirst) std::swap(us, vs);
    const int32_t tiles = tile_count(problem->box);
    for (int j = 0; j < views.count; ++j) {
      ForwardView& view = problem->view[j];
      static_cast<ViewPlan&>(view) = plans[j];
      view.given[kRows] = us[j];
      view.given[kCols] = vs[j];
      view.tiles[kCols] = problem->box.grid[view.axis];
      view.tiles[kRows] = tiles / view.tiles[kCols];
      for (int side : {kRows, kCols}) {
        const int64_t sums = int64_t{view.length[side]} * (dtype() == kFloat64 ? 8 : 4);
        const int64_t chunks = ceil_div(view.length[side], kChunk);
        table.chunks[side] += static_cast<int32_t>(chunks);
        view.parts[side] = take(view.tiles[side] * sums);
        view.sums[side] = take(sums);
        view.stats[side] = take(chunks * kChunkStats * sizeof(double));
      }
    }
    return true;
  }

  // Tables run one after the other, so they share one workspace.
  int64_t workspace_bytes() const { return workspace_bytes_; }

 private:
  int64_t take(int64_t bytes) {
    const int64_t place = table_bytes_;
    table_bytes_ += ceil_div(bytes, 16) * 16;
    workspace_bytes_ = std::max(workspace_bytes_, table_bytes_);
    return place;
  }

  int64_t table_bytes_ = 0;
  int64_t workspace_bytes_ = 0;
};

class BackwardPlan : public Plan<BackwardTable> {
 public:
  using Plan::Plan;

  bool add(const Views& views, int64_t dim, int64_t kind, const void* grad, const void* weight_sn,
           void* grad_weight, double scale) {
    BackwardProblem* problem;
    ViewPlan plans[2];
    if ((problem = add_problem(views, dim, kind, grad, scale, plans)) == nullptr) return false;
    problem->weight_sn = weight_sn;
    problem->grad_weight = grad_weight;
    std::copy(plans, plans + views.count, problem->view);
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
