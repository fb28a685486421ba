// SPDX-License-Identifier: MIT
//
// From the shape of a weight to its box and tiles. No CUDA, no torch; and nothing of the card.
#pragma once

#include <algorithm>
#include <numeric>

#include "../problem.h"
#include "table.h"

namespace fastsn {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

constexpr int64_t element_size(int32_t dtype) {
  return dtype == kFloat64 ? 8 : dtype == kFloat32 ? 4 : 2;
}

inline Divider divider(int64_t by) {
  return {static_cast<uint32_t>(by), static_cast<uint32_t>(0xffffffffu / by + 1)};
}

// A length that cuts `size` into nearly equal parts of at most `most`, a multiple of `unit` where
// there is more than one part and `most` allows it.
inline int64_t even_part(int64_t size, int64_t most, int64_t unit) {
  if (size <= most) return size;
  if (most < unit) unit = 1;
  const int64_t parts = ceil_div(size, most / unit * unit);
  return ceil_div(ceil_div(size, parts), unit) * unit;
}

// Chooses tiles. The work of a block that is not the work on elements is much the same for all
// sizes, so tiles are large: some 64 elements for each thread. They are about as high as they are
// wide, because each tile writes a part sum for each of its rows and columns.
class Tiling {
 public:
  Tiling(Problem& box, int32_t dtype) : box_(box) {
    const int32_t* size = box.size;
    const int64_t cols = int64_t{size[1]} * size[2];
    bool across = false;  // rows along the fastest axis: a tile keeps to one place of axis 1
    for (int j = 0; j < box.views; ++j) {
      across = across || box.axis[j] == 2;
      fold_ = fold_ || (box.axis[j] == 1 && size[2] > 1);
    }
    const int64_t pack = 16 / element_size(dtype);
    const int64_t in_tile = across ? size[2] : cols;
    width_ = in_tile % pack == 0 && cols % pack == 0 ? pack : 1;
    // part sums of rows, one per pack, fill the working memory at most
    const int64_t fit = buffer_entries(dtype == kFloat64) * width_;
    budget_ = std::min<int64_t>(64 * kThreads + 2048, fit);
    if (fold_) {
      fold(size[0], size[1], size[2]);
    } else {
      plain(size[0], across ? size[2] : cols, across);
    }
    box.width = static_cast<int8_t>(width_);
    finish();
  }

 private:
  // Rows are cut anywhere, or nowhere if they are short.
  void plain(int64_t rows, int64_t cols, bool across) {
    const int64_t unit = width_ == 1 ? 1 : 8 * width_;
    int64_t most = 128;
    if (cols > most && rows < 128) most = std::min<int64_t>(cols, budget_ / rows / unit * unit);
    most = std::max(most, unit);
    const int64_t width = even_part(cols, most, unit);
    const bool middle = across || box_.size[2] > 1;  // columns along axis 2 alone, or 1 alone
    box_.tile[1] = static_cast<int16_t>(middle ? 1 : width);
    box_.tile[2] = static_cast<int16_t>(middle ? width : 1);
    set_rows(rows, width, 1);
  }

  // Whole rows of the second unfolding, which are `inner` neighbors each; parts of one if long.
  void fold(int64_t rows, int64_t middle, int64_t inner) {
    int64_t unit = width_ / std::gcd(inner, width_);
    int64_t most_cols = std::min<int64_t>(kThreads * width_, 1024);
    if (unit * inner > most_cols && inner % width_ != 0) {
      width_ = 1;
      unit = 1;
      most_cols = kThreads;
    }
    if (inner > most_cols) {
      const int64_t length = even_part(inner, most_cols, width_ == 1 ? 1 : 8 * width_);
      box_.tile[1] = 1;
      box_.tile[2] = static_cast<int16_t>(length);
      return set_rows(rows, length, length);
    }
    const int64_t wish = rows < 64 ? std::max<int64_t>(16, budget_ / rows / inner) : 16;
    const int64_t most = std::max(unit, std::min(wish, most_cols / inner) / unit * unit);
    box_.tile[1] = static_cast<int16_t>(even_part(middle, most, unit));
    box_.tile[2] = static_cast<int16_t>(inner);
    set_rows(rows, box_.tile[1] * inner, inner);
  }

  void set_rows(int64_t rows, int64_t cols, int64_t entries) {
    const int64_t most = std::min<int64_t>(budget_ / cols, kRowEntries / entries);
    // a multiple of 8 rows, so that what they have begins at 16 bytes
    box_.tile[0] = static_cast<int16_t>(even_part(rows, std::max<int64_t>(most, 1), 8));
  }

  void finish() {
    int64_t tiles = 1;
    int64_t elements = 1;
    for (int axis = 0; axis < 3; ++axis) {
      box_.grid[axis] = static_cast<int32_t>(ceil_div(box_.size[axis], box_.tile[axis]));
      tiles *= box_.grid[axis];
      elements *= box_.size[axis];
    }
    const int64_t packs = int64_t{box_.tile[1]} * box_.tile[2] / width_;
    box_.packs = divider(std::min<int64_t>(packs, kThreads));
    box_.row_step = static_cast<int16_t>(kThreads / box_.packs.divisor);
    box_.inner = divider(box_.tile[2]);
    box_.piece = static_cast<int32_t>(ceil_div(ceil_div(elements, tiles), 64) * 64);
  }

  Problem& box_;
  bool fold_ = false;
  int64_t width_;
  int64_t budget_;
};

// Fills in the box of a weight, its tiles and its views. False where it is empty or has 2^31
// elements or more.
inline bool plan_box(const Views& views, int64_t dim, int64_t kind, int32_t dtype,
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
  } else if (first.outer == 1) {
    size[0] = first.rows;
    size[1] = 1;
    axes[0] = 0;
  }
  for (int axis = 0; axis < 3; ++axis) problem.size[axis] = static_cast<int32_t>(size[axis]);
  problem.views = static_cast<int8_t>(views.count);
  for (int j = 0; j < views.count; ++j) {
    problem.axis[j] = axes[j];
    problem.split[j] = static_cast<int32_t>(views.view[j].split);
  }
  Tiling(problem, dtype);
  return true;
}

}  // namespace fastsn
