// SPDX-License-Identifier: MIT
#include "backward.h"

#include <cstring>

namespace fastsn::cpu {

template <typename R>
void BackwardJob<R>::set(const BackwardProblem& problem, const R* sigma, const R* vectors,
                         const R* view_stats, R* grad_scale) {
  problem_ = problem;
  sigma_ = *sigma;
  grad_scale_ = grad_scale;
  for (int j = 0; j < problem.views.count; ++j) {
    Term term;
    term.present = true;
    term.view = problem.views.view[j];
    if (problem.kind == kSNVFirst) {
      // The view is of M^T; u v^T is that of M, which lies by rows.
      term.view = View{1, term.view.outer, term.view.rows, 0};
    }
    term.u = vectors;
    term.v = vectors + term.view.rows;
    vectors += term.view.rows + term.view.cols();
    term.memory_v = nullptr;
    term.alpha = view_stats[2 * j + 1];
    // Of two unfoldings that lie by rows (of a weight with one row), the second one is also by
    // slabs.
    const bool rows = term.view.outer == 1 && !by_rows_.present;
    (rows ? by_rows_ : by_slabs_) = term;
  }
  if (by_rows_.present && by_slabs_.present && by_slabs_.view.outer < by_rows_.view.rows) {
    std::swap(by_rows_, by_slabs_);
  }
  reserve_phases(2);
  add_phase(std::max<int64_t>(1, ceil_div(problem.numel, kUnit)));
  if (problem.numel == 0) return;
  const View& slabs = by_slabs_.view;
  const int64_t slab = by_slabs_.present ? slabs.rows * slabs.inner : 1;
  const int64_t rows = by_rows_.present ? by_rows_.view.rows : slabs.outer;
  const int64_t cols = problem.numel / rows;
  int64_t grain = 16;
  if (by_slabs_.present) {
    slabs_per_row_ = slabs.outer / rows;
    grain = slabs_per_row_ == 1 ? slabs.inner : slab;
  }
  const int64_t tile_cols = std::min(cols, kUnit / 4);
  tiling_ = make_tiling(rows, cols, kUnit / tile_cols, tile_cols, grain);
  add_phase(tiling_.count());
}

template <typename R>
int64_t BackwardJob<R>::workspace_bytes() const {
  int64_t bytes = std::max<int64_t>(1, ceil_div(problem_.numel, kUnit)) * sizeof(double);
  for (const Term* term : {&by_rows_, &by_slabs_}) {
    if (term->present && term->view.split > 0) bytes += term->view.cols() * sizeof(R);
  }
  return bytes;
}

template <typename R>
void BackwardJob<R>::set_workspace(char* workspace) {
  products_ = reinterpret_cast<double*>(workspace);
  workspace += std::max<int64_t>(1, ceil_div(problem_.numel, kUnit)) * sizeof(double);
  for (Term* term : {&by_rows_, &by_slabs_}) {
    if (!term->present || term->view.split == 0) continue;
    term->memory_v = reinterpret_cast<R*>(workspace);
    workspace += term->view.cols() * sizeof(R);
  }
}

// Per thread: a row of G and one of the result where they are converted, and an expanded vector.
template <typename R>
int64_t BackwardJob<R>::scratch_bytes() const {
  const int64_t expanded =
      by_slabs_.present ? expanded_size(by_slabs_.view.rows, by_slabs_.view.inner) : 0;
  return (2 * ceil_div(tiling_.tile_cols, 16) * 16 + expanded) * sizeof(R);
}

template <typename R>
void BackwardJob<R>::run(int phase, int64_t unit, void* scratch) const {
  if (phase == 0) {
    multiply_unit(unit);
  } else {
    write_tile(tile_at(tiling_, unit), static_cast<R*>(scratch));
  }
}

template <typename R>
void BackwardJob<R>::multiply_unit(int64_t unit) const {
  const int64_t first = unit * kUnit, bytes = first * size_of(problem_.dtype);
  products_[unit] =
      kernels_.inner_product_of(static_cast<const char*>(problem_.grad) + bytes,
                                static_cast<const char*>(problem_.weight_sn) + bytes,
                                problem_.dtype, std::min(kUnit, problem_.numel - first));
}

template <typename R>
void BackwardJob<R>::finish(int phase, void*) {
  if (phase != 0) return;
  double product = 0;
  for (int64_t k = 0; k < std::max<int64_t>(1, ceil_div(problem_.numel, kUnit)); ++k) {
    product += products_[k];
  }
  const bool zero = sigma_ == 0 || problem_.scale == 0;
  *grad_scale_ = zero ? R(0) : R(product / problem_.scale);
  if (sigma_ == 0) return;
  scale_over_sigma_ = R(problem_.scale / sigma_);
  for (Term* term : {&by_rows_, &by_slabs_}) {
    if (!term->present) continue;
    term->factor = R((product - problem_.grad_sigma * sigma_) / sigma_ * term->alpha);
    if (term->memory_v == nullptr) continue;
    for (int64_t m = 0; m < term->view.cols(); ++m) {
      term->memory_v[m] = term->v[term->view.torch_column(m)];
    }
  }
}

template <typename R>
void BackwardJob<R>::write_tile(const Tile& tile, R* scratch) const {
  const int64_t n = tile.cols;
  const int64_t in_size = size_of(problem_.dtype), out_size = size_of(problem_.grad_dtype);
  R* const in = scratch;
  R* const out = scratch + ceil_div(tiling_.tile_cols, 16) * 16;
  R* const expanded = out + ceil_div(tiling_.tile_cols, 16) * 16;
  const View& slabs = by_slabs_.view;
  // Whole slabs, or some rows of one.
  const int64_t slab = by_slabs_.present ? std::min(n, slabs.rows * slabs.inner) : n;
  const int64_t slab_rows = by_slabs_.present ? slab / slabs.inner : 0;
  if (by_slabs_.present) {
    const int64_t first_row = tile.c0 / slabs.inner % slabs.rows;
    kernels_.expand(by_slabs_.u + first_row, slab_rows, slabs.inner, expanded);
  }
  for (int64_t r = tile.r0; r < tile.r0 + tile.rows; ++r) {
    const int64_t first = r * tiling_.cols + tile.c0;
    char* const to = static_cast<char*>(problem_.grad_weight) + first * out_size;
    if (sigma_ == 0) {
      std::memset(to, 0, n * out_size);
      continue;
    }
    const char* const from = static_cast<const char*>(problem_.grad) + first * in_size;
    const R* g = reinterpret_cast<const R*>(from);
    if (problem_.dtype != dtype_of<R>) {
      kernels_.convert_from(from, problem_.dtype, n, in);
      g = in;
    }
    R* const result = problem_.grad_dtype == dtype_of<R> ? reinterpret_cast<R*>(to) : out;
    if (by_rows_.present) {
      kernels_.combine(g, n, scale_over_sigma_, by_rows_.factor * by_rows_.u[r],
                       by_rows_.columns() + tile.c0, result);
    } else {
      kernels_.scale_to(g, n, scale_over_sigma_, result);
    }
    if (by_slabs_.present) {
      const int64_t o = r * slabs_per_row_ + tile.c0 / (slabs.rows * slabs.inner);
      kernels_.slab_subtract(result, slab, n / slab, slab_rows, slabs.inner, expanded,
                             by_slabs_.columns() + o * slabs.inner, by_slabs_.factor);
    }
    if (result == out) kernels_.convert_to(out, n, to, problem_.grad_dtype);
  }
}

template class BackwardJob<float>;
template class BackwardJob<double>;

}  // namespace fastsn::cpu
