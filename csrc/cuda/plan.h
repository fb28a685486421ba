// SPDX-License-Identifier: MIT
//
// Fills tables on the host: from shapes and pointers to tiles and workspace; and says what is to be
// launched with them. No CUDA, no torch.
#pragma once

#include <algorithm>
#include <type_traits>
#include <utility>
#include <vector>

#include "geometry.h"
#include "launch.h"
#include "shared.h"

namespace fastsn {

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
    if (!plan_box(views, dim, kind, dtype_, problem)) {
      return static_cast<decltype(&problem)>(nullptr);
    }
    problem.data = data;
    problem.scale = scale;
    const int64_t tiles = tile_count(problem);
    int64_t entries = 0;
    int64_t parts = 0;
    for (int j = 0; j < views.count; ++j) {
      entries += views.view[j].rows + views.view[j].cols();
      for (int side : {kRows, kCols}) parts += part_units(problem, views, j, side);
    }
    const auto fits = [&](const Table& table) {
      return table.problems < kManyProblems && table.tiles + tiles <= INT32_MAX &&
             vector_entries_ - table.first_entry + entries <= INT32_MAX / 2 &&
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
    for (int j = 0; j < views.count; ++j) {
      for (int k : {0, 1}) {  // of u and v, the one that is made first
        const int side = kind == kSNVFirst ? 1 - k : k;
        problem.place[j][side] = static_cast<int32_t>(vector_entries_ - table.first_entry);
        vector_entries_ += side == kRows ? views.view[j].rows : views.view[j].cols();
      }
    }
    if constexpr (std::is_same_v<Table, ForwardTable>) add_strips(problem, views, table);
    table.tiles += static_cast<int32_t>(tiles);
    views_ += views.count;
    ++problems_;
    return &(table.problem[table.problems++] = problem);
  }

  // How many tiles make part sums of each entry.
  static int64_t tiles_along(const Problem& problem, int j, int side) {
    const int64_t along_rows = problem.grid[problem.axis[j]];
    return side == kRows ? tile_count(problem) / along_rows : along_rows;
  }

  static int64_t part_units(const Problem& problem, const Views& views, int j, int side) {
    const int64_t length = side == kRows ? views.view[j].rows : views.view[j].cols();
    return ceil_div(tiles_along(problem, j, side) * length, kPartsUnit);
  }

  void add_strips(ForwardProblem& problem, const Views& views, ForwardTable& table) {
    for (int j = 0; j < views.count; ++j) {
      for (int side : {kRows, kCols}) {
        problem.strip[j][side] = table.strips;
        table.strips += static_cast<int32_t>(tile_count(problem) / tiles_along(problem, j, side));
        problem.part[j][side] = static_cast<int32_t>(parts_);
        parts_ += part_units(problem, views, j, side);
      }
    }
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
    for (int j = 0; j < views.count; ++j) {
      for (int side : {kRows, kCols}) {
        const GivenVector& given = (side == kRows ? us : vs)[j];
        problem->given[j][side] = given.data;
        problem->given_dtype[j][side] = static_cast<int8_t>(given.dtype);
      }
    }
    const int64_t sum_bytes = dtype() == kFloat64 ? 8 : 4;
    const int64_t entries = vector_entries() - table.first_entry;
    table.counters = ceil_div(int64_t{table.strips} * kStats * sizeof(double), 16) * 16;
    table.sums = table.counters + ceil_div(int64_t{table.strips} * 4, 16) * 16;
    // vectors of sums begin at multiples of kPartsUnit (strips.cuh)
    const int64_t gaps = 2 * (kPartsUnit - 1) * (Plan::views() - table.first_view);
    table.parts = table.sums + ceil_div((entries + gaps) * sum_bytes, 16) * 16;
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

// The launch of a kernel with a table, as it is now: a block for each tile.
template <typename Table>
Launch make_launch(Kernel kernel, int32_t dtype, const Table& table, int64_t few_bytes,
                   int64_t shared_bytes) {
  const bool many = table.problems > kFewProblems;
  const char* begin = reinterpret_cast<const char*>(&table);
  return {kernel,
          dtype,
          many,
          table.tiles,
          kThreads,
          static_cast<int32_t>(shared_bytes),
          &table,
          many ? static_cast<int64_t>(sizeof(Table)) : few_bytes,
          reinterpret_cast<const char*>(&table.problem[table.problems]) - begin};
}

inline Launch make_launch(Kernel kernel, int32_t dtype, const ForwardTable& table) {
  return make_launch(kernel, dtype, table, sizeof(ForwardTableOf<kFewProblems>),
                     shared_bytes(kernel, dtype));
}

inline Launch make_launch(Kernel kernel, int32_t dtype, const BackwardTable& table) {
  return make_launch(kernel, dtype, table, sizeof(BackwardTableOf<kFewProblems>),
                     shared_bytes(kernel, dtype));
}

// What a forward is: enqueue(launch) is called for each launch, in order, and the table may change
// behind it; zero(memory, bytes) before the first.
template <typename Zero, typename Enqueue>
void run_forward(ForwardTable& table, int32_t dtype, Zero zero, Enqueue enqueue) {
  zero(static_cast<char*>(table.workspace) + table.counters, int64_t{table.strips} * 4);
  const bool evaluation = table.iterations == 0;
  for (int k = 0; k < std::max(table.iterations, 1); ++k) {
    table.iteration = k;
    enqueue(make_launch(kForwardRows, dtype, table));
    if (!evaluation) enqueue(make_launch(kForwardCols, dtype, table));
  }
  enqueue(make_launch(kForwardFinish, dtype, table));
}

template <typename Enqueue>
void run_backward(const BackwardTable& table, int32_t dtype, Enqueue enqueue) {
  enqueue(make_launch(kBackwardDot, dtype, table));
  enqueue(make_launch(kBackwardStore, dtype, table));
}

}  // namespace fastsn
