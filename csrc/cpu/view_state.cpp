// SPDX-License-Identifier: MIT
#include "view_state.h"

namespace fastsn::cpu {
namespace {

// Vectors of the workspace begin at a cache line, as its first does.
int64_t round_up(int64_t n) { return ceil_div(n, 16) * 16; }

// to [cols, rows] = the transpose of from [rows, cols]
template <typename R>
void transpose(const R* from, int64_t rows, int64_t cols, R* to) {
  for (int64_t j = 0; j < cols; ++j) {
    for (int64_t i = 0; i < rows; ++i) *to++ = from[i * cols + j];
  }
}

bool has_times(Step step) { return step == Step::kTimes || step == Step::kTransposedTimes; }
bool has_transposed(Step step) {
  return step == Step::kTransposed || step == Step::kTransposedTimes;
}

}  // namespace

template <typename R>
int ViewState<R>::passes(int64_t n) const {
  if (n == 0) return 1;
  if (!tiling.turns) return static_cast<int>(2 * n);
  return static_cast<int>(by_rows ? n : n + 1);
}

template <typename R>
Step ViewState<R>::step(int pass, int64_t n) const {
  if (pass >= passes(n)) return Step::kNone;
  if (n == 0) return Step::kTimes;
  if (!tiling.turns) return pass % 2 == 0 ? Step::kTimes : Step::kTransposed;
  if (by_rows) return Step::kTimesTransposed;
  return pass == 0 ? Step::kTimes : pass < n ? Step::kTransposedTimes : Step::kTransposed;
}

template <typename R>
int64_t ViewState<R>::workspace() const {
  int64_t size = view.split > 0 ? round_up(view.cols()) : 0;
  if (has_s_parts()) size += round_up(s_part_count() * view.rows);
  if (has_t_parts()) size += round_up(t_part_count() * view.cols());
  return size;
}

template <typename R>
R* ViewState<R>::set_workspace(R* workspace) {
  const auto take = [&workspace](int64_t n) {
    R* taken = workspace;
    workspace += round_up(n);
    return taken;
  };
  if (view.split > 0) v = take(view.cols());
  if (has_s_parts()) s_parts = take(s_part_count() * view.rows);
  if (has_t_parts()) t_parts = take(t_part_count() * view.cols());
  return workspace;
}

template <typename R>
int64_t ViewState<R>::scratch() const {
  return by_rows ? 0 : 2 * round_up(expanded_size(tiling.tile_cols / view.inner, view.inner));
}

template <typename R>
void ViewState<R>::begin(const Kernels<R>& kernels, Step step, const Tile& tile, R* scratch) const {
  if (by_rows) {
    R* t = t_parts == nullptr ? v : t_parts + tile.row * tiling.cols;
    if (step != Step::kTimes) std::fill_n(t + tile.c0, tile.cols, R(0));
    return;
  }
  const int64_t rows = tile.cols / view.inner;
  if (has_times(step)) std::fill_n(scratch, expanded_size(rows, view.inner), R(0));
  if (has_transposed(step)) {
    kernels.expand(u + tile.c0 / view.inner, rows, view.inner, scratch + this->scratch() / 2);
  }
}

template <typename R>
void ViewState<R>::add(const Kernels<R>& kernels, Step step, const Tile& tile, const R* w,
                       int64_t stride, int64_t row, int64_t rows, R* scratch) const {
  if (by_rows) {
    R* s = (s_parts == nullptr ? u : s_parts + tile.col * tiling.rows) + row;
    R* t = (t_parts == nullptr ? v : t_parts + tile.row * tiling.cols) + tile.c0;
    if (step == Step::kTimes) {
      kernels.times(w, stride, rows, tile.cols, v + tile.c0, s);
    } else if (step == Step::kTransposed) {
      kernels.transposed(w, stride, rows, tile.cols, u + row, t);
    } else {
      kernels.times_transposed(w, stride, rows, tile.cols, v, s, t);
    }
    return;
  }
  const int64_t slab_rows = tile.cols / view.inner;
  const int64_t i = row * view.inner;
  if (has_transposed(step)) {
    R* t = t_parts == nullptr ? v : t_parts + tile.col * view.cols();
    kernels.slab_transposed(w, stride, rows, slab_rows, view.inner, scratch + this->scratch() / 2,
                            t + i);
  }
  if (has_times(step)) {
    kernels.slab_times(w, stride, rows, slab_rows, view.inner, v + i, scratch);
  }
}

template <typename R>
void ViewState<R>::end(const Kernels<R>& kernels, Step step, const Tile& tile, R* scratch) const {
  if (by_rows || !has_times(step)) return;
  R* s = s_parts == nullptr ? u : s_parts + tile.row * view.rows;
  kernels.fold(scratch, tile.cols / view.inner, view.inner, s + tile.c0 / view.inner);
}

template <typename R>
void ViewState<R>::sum_s(const Kernels<R>& kernels) const {
  if (s_parts != nullptr) kernels.sum_parts(s_parts, s_part_count(), view.rows, view.rows, u);
}

template <typename R>
void ViewState<R>::sum_t(const Kernels<R>& kernels) const {
  const int64_t cols = view.cols();
  if (t_parts != nullptr) kernels.sum_parts(t_parts, t_part_count(), cols, cols, v);
}

template <typename R>
void ViewState<R>::load_given(const Kernels<R>& kernels) const {
  const int64_t cols = view.cols();
  R* given = static_cast<R*>(slots[1].result);
  kernels.convert_from(slots[1].given, slots[1].dtype, cols, given);
  if (view.split > 0) transpose(given, view.split, cols / view.split, v);
}

template <typename R>
void ViewState<R>::store_results(const Kernels<R>& kernels, bool keep_given) const {
  R* results[2] = {static_cast<R*>(slots[0].result), static_cast<R*>(slots[1].result)};
  const int64_t sizes[2] = {view.rows, view.cols()};
  if (keep_given) {
    for (int k = 0; k < 2; ++k) {
      kernels.convert_from(slots[k].given, slots[k].dtype, sizes[k], results[k]);
    }
    return;
  }
  if (u_length != 1) kernels.divide(u, view.rows, 1 / u_length);
  if (v_length != 1) kernels.divide(v, view.cols(), 1 / v_length);
  if (view.split > 0) transpose(v, sizes[1] / view.split, view.split, results[1]);
}

template struct ViewState<float>;
template struct ViewState<double>;

}  // namespace fastsn::cpu
