// SPDX-License-Identifier: MIT
#include "forward.h"

#include <cmath>
#include <limits>

namespace fastsn::cpu {
namespace {

// Elements that are converted, or read by two views, while they are in cache.
constexpr int64_t kBlock = 32768;

double ratio(double a, double b) { return b == 0 ? 0 : a / b; }

int64_t block_rows(int64_t cols) {
  const int64_t rows = std::max<int64_t>(1, kBlock / cols);
  return rows < kRowGroup ? rows : rows / kRowGroup * kRowGroup;
}

bool usable(double norm) { return norm > 0 && std::isfinite(norm); }

// Whether a product with a vector of this norm, instead of a unit vector, stayed in the range of R.
template <typename R>
bool in_range(double norm, double product_norm) {
  const double limit = sizeof(R) == sizeof(double) ? 0x1p250 : 0x1p40;
  const double ratio = product_norm / norm;
  return norm > 1 / limit && norm < limit && ratio > 1 / limit && ratio < limit;
}

}  // namespace

template <typename R>
void ForwardJob<R>::set(const ForwardProblem& problem, const VectorSlot* slots, R* sigma,
                        R* view_stats) {
  problem_ = problem;
  view_count_ = problem.views.count;
  sigma_result_ = sigma;
  stats_result_ = view_stats;
  const int64_t n = problem.n_power_iterations;
  const int64_t memory = ceil_div(sizeof(R), size_of(problem.dtype));
  const bool empty = problem.numel == 0;
  for (int j = 0; j < view_count_; ++j) {
    ViewState<R>& view = views_[j];
    view.view = problem.views.view[j];
    view.by_rows = view.view.outer == 1;
    view.coefficient = 1.0 / view_count_;
    // The view of torch's old hook is of M^T: its u is v.
    for (int k = 0; k < 2; ++k)
      view.slots[problem.kind == kSNVFirst ? 1 - k : k] = slots[2 * j + k];
    view.u = static_cast<R*>(view.slots[0].result);
    view.v = static_cast<R*>(view.slots[1].result);
    if (empty) continue;
    view.tiling = view.by_rows
                      ? row_tiling(view.view.rows, view.view.inner, memory, view_count_)
                      : slab_tiling(view.view.outer, view.view.rows, view.view.inner, memory);
  }
  if (view_count_ == 2 && !empty && views_[0].by_rows != views_[1].by_rows) {
    const ViewState<R>& rows = views_[views_[0].by_rows ? 0 : 1];
    ViewState<R>& slabs = views_[views_[0].by_rows ? 1 : 0];
    shared_ = rows.tiling.turns;
    if (shared_) {
      const int64_t slabs_per_row = slabs.view.outer / rows.view.rows;
      slabs.tiling = rows.tiling;
      slabs.tiling.rows *= slabs_per_row;
      slabs.tiling.tile_rows *= slabs_per_row;
      slabs.tiling.cols = slabs.tiling.tile_cols = slabs.slab();
    }
  }
  for (int j = 0; j < view_count_ && !empty; ++j) passes_ = std::max(passes_, views_[j].passes(n));
  reserve_phases(passes_ + 2);
  add_phase(1);
  for (int pass = 0; pass < passes_; ++pass) {
    int64_t units = 0;
    for (int j = 0; j < view_count_; ++j) {
      if (views_[j].step(pass, n) == Step::kNone) continue;
      units = views_[j].tiling.count() + (shared_ ? 0 : units);
    }
    add_phase(units);
  }
  add_phase(ceil_div(problem.numel, kUnit));
}

template <typename R>
int64_t ForwardJob<R>::workspace_bytes() const {
  int64_t size = 0;
  for (int j = 0; j < view_count_ && passes_ > 0; ++j) size += views_[j].workspace();
  return size * sizeof(R);
}

template <typename R>
void ForwardJob<R>::set_workspace(char* workspace) {
  R* next = reinterpret_cast<R*>(workspace);
  for (int j = 0; j < view_count_ && passes_ > 0; ++j) next = views_[j].set_workspace(next);
}

template <typename R>
int64_t ForwardJob<R>::scratch_bytes() const {
  int64_t block = 0, views = 0;
  for (int j = 0; j < view_count_ && passes_ > 0; ++j) {
    block = std::max({block, kBlock, views_[j].tiling.tile_cols, views_[j].view.rows});
    views += views_[j].scratch();
  }
  return (block + views) * sizeof(R);
}

template <typename R>
void ForwardJob<R>::run(int phase, int64_t unit, void* scratch) const {
  if (phase == 0) {
    for (int j = 0; j < view_count_ && passes_ > 0; ++j) views_[j].load_given(kernels_);
  } else if (phase <= passes_) {
    run_pass(phase - 1, unit, static_cast<R*>(scratch));
  } else {
    divide_unit(unit);
  }
}

template <typename R>
void ForwardJob<R>::run_pass(int pass, int64_t unit, R* scratch) const {
  Active active[2];
  int count = 0;
  for (int j = 0; j < view_count_; ++j) {
    const Active candidate{&views_[j], views_[j].step(pass, problem_.n_power_iterations)};
    if (candidate.step == Step::kNone) continue;
    active[count++] = candidate;
    if (shared_) continue;
    // Each view has units of its own, one view's after the other's.
    if (unit < candidate.view->tiling.count()) return run_tile(&candidate, 1, unit, scratch);
    unit -= candidate.view->tiling.count();
  }
  run_tile(active, count, unit, scratch);
}

template <typename R>
void ForwardJob<R>::run_tile(const Active* active, int count, int64_t unit, R* scratch) const {
  // Views that share tiles differ in how many of their rows make a row of the widest.
  Tile tiles[2];
  R* scratches[2] = {scratch, scratch};
  int widest = 0;
  R* block = scratch;
  for (int a = 0; a < count; ++a) {
    tiles[a] = tile_at(active[a].view->tiling, unit);
    if (tiles[a].cols > tiles[widest].cols) widest = a;
    scratches[a] = block;
    block += active[a].view->scratch();
    active[a].view->begin(kernels_, active[a].step, tiles[a], scratches[a]);
  }
  const Tile& tile = tiles[widest];
  const int64_t cols = active[widest].view->tiling.cols;
  const int64_t size = size_of(problem_.dtype);
  const bool in_place = problem_.dtype == dtype_of<R>;
  const int64_t step = in_place && count == 1 ? tile.rows : block_rows(tile.cols);
  for (int64_t r = tile.r0; r < tile.r0 + tile.rows; r += step) {
    const int64_t rows = std::min(step, tile.r0 + tile.rows - r);
    const char* from = static_cast<const char*>(problem_.weight) + (r * cols + tile.c0) * size;
    if (!in_place && tile.cols == cols) {
      kernels_.convert_from(from, problem_.dtype, rows * cols, block);
    } else if (!in_place) {
      for (int64_t k = 0; k < rows; ++k) {
        kernels_.convert_from(from + k * cols * size, problem_.dtype, tile.cols,
                              block + k * tile.cols);
      }
    }
    const R* w = in_place ? reinterpret_cast<const R*>(from) : block;
    for (int a = 0; a < count; ++a) {
      const int64_t ratio = tile.cols / tiles[a].cols;
      active[a].view->add(kernels_, active[a].step, tiles[a], w,
                          (in_place ? cols : tile.cols) / ratio, r * ratio, rows * ratio,
                          scratches[a]);
    }
  }
  for (int a = 0; a < count; ++a) {
    active[a].view->end(kernels_, active[a].step, tiles[a], scratches[a]);
  }
}

template <typename R>
void ForwardJob<R>::divide_unit(int64_t unit) const {
  const int64_t first = unit * kUnit;
  // W / inf is 0 for finite W, and NaN where W is not finite.
  const double divisor =
      sigma_ == 0 ? std::numeric_limits<double>::infinity() : sigma_ / problem_.scale;
  kernels_.divide_to(static_cast<const char*>(problem_.weight) + first * size_of(problem_.dtype),
                     problem_.dtype,
                     static_cast<char*>(problem_.weight_sn) + first * size_of(problem_.out_dtype),
                     problem_.out_dtype, std::min(kUnit, problem_.numel - first), R(divisor));
}

template <typename R>
void ForwardJob<R>::finish(int phase, void* scratch) {
  if (phase > passes_) return;
  for (int j = 0; j < view_count_ && phase > 0; ++j) {
    const Step step = views_[j].step(phase - 1, problem_.n_power_iterations);
    if (step != Step::kNone) finish_step(views_[j], step, static_cast<R*>(scratch));
  }
  if (phase == passes_) finish_views();
}

template <typename R>
void ForwardJob<R>::finish_step(ViewState<R>& view, Step step, R* scratch) {
  if (step == Step::kTransposed || step == Step::kTransposedTimes) view.sum_t(kernels_);
  if (step != Step::kTransposed) view.sum_s(kernels_);
  if (step == Step::kTimes) {
    if (problem_.n_power_iterations == 0) return evaluate(view, scratch);
    finish_s(view, 1);
  } else if (step == Step::kTransposed) {
    finish_t(view, 1);
  } else if (step == Step::kTimesTransposed) {
    view.sum_t(kernels_);
    double factor = finish_s(view, 1);
    if (usable(factor) && !in_range<R>(factor, norm(view.v, view.view.cols()))) {
      repeat(view, Step::kTransposed, scratch);
      factor = 1;
    }
    finish_t(view, factor);
  } else {
    double factor = finish_t(view, 1);
    if (usable(factor) && !in_range<R>(factor, norm(view.u, view.view.rows))) {
      repeat(view, Step::kTimes, scratch);
      factor = 1;
    }
    finish_s(view, factor);
  }
}

// The product once more, now that its input has become a unit vector.
template <typename R>
void ForwardJob<R>::repeat(const ViewState<R>& view, Step step, R* scratch) const {
  const Active active{&view, step};
  for (int64_t unit = 0; unit < view.tiling.count(); ++unit) run_tile(&active, 1, unit, scratch);
  if (step == Step::kTimes) {
    view.sum_s(kernels_);
  } else {
    view.sum_t(kernels_);
  }
}

// s, made with `factor` times a unit vector, becomes u. Returns the factor between the two.
template <typename R>
double ForwardJob<R>::finish_s(ViewState<R>& view, double factor) const {
  const double s_norm = norm(view.u, view.view.rows);
  const double length = view.v_length * ratio(s_norm, factor);
  view.good = view.good && usable(length);
  view.u_length = length / std::fmax(length, problem_.eps);
  if (usable(s_norm)) kernels_.divide(view.u, view.view.rows, s_norm);
  return s_norm;
}

// Likewise for t, v, and sigma, which is the norm of M^T u / ||u||.
template <typename R>
double ForwardJob<R>::finish_t(ViewState<R>& view, double factor) const {
  const double t_norm = norm(view.v, view.view.cols());
  view.sigma = ratio(t_norm, factor);
  const double length = view.u_length * view.sigma;
  view.good = view.good && usable(length);
  view.v_length = length / std::fmax(length, problem_.eps);
  if (usable(t_norm)) kernels_.divide(view.v, view.view.cols(), t_norm);
  return t_norm;
}

// No iteration: sigma = u^T M v / (||u|| ||v||) of the vectors as they are.
template <typename R>
void ForwardJob<R>::evaluate(ViewState<R>& view, R* scratch) const {
  const int64_t rows = view.view.rows;
  kernels_.convert_from(view.slots[0].given, view.slots[0].dtype, rows, scratch);
  const double lengths = norm(scratch, rows) * norm(view.v, view.view.cols());
  view.sigma = ratio(kernels_.inner_product(scratch, view.u, rows), lengths);
}

template <typename R>
double ForwardJob<R>::norm(const R* x, int64_t n) const {
  return std::sqrt(kernels_.inner_product(x, x, n));
}

template <typename R>
void ForwardJob<R>::finish_views() {
  bool iterated = problem_.n_power_iterations > 0 && passes_ > 0;
  for (int j = 0; j < view_count_; ++j) iterated = iterated && views_[j].good;
  for (int j = 0; j < view_count_; ++j) {
    const ViewState<R>& view = views_[j];
    view.store_results(kernels_, !iterated);
    const double lengths = norm(static_cast<const R*>(view.slots[0].result), view.view.rows) *
                           norm(static_cast<const R*>(view.slots[1].result), view.view.cols());
    stats_result_[2 * j] = R(view.sigma);
    stats_result_[2 * j + 1] = R(ratio(view.coefficient, lengths));
    sigma_ += view.coefficient * view.sigma;
  }
  *sigma_result_ = R(sigma_);
}

template class ForwardJob<float>;
template class ForwardJob<double>;

}  // namespace fastsn::cpu
