// SPDX-License-Identifier: MIT
//
// The table of problems, shared by the CPU and the CUDA kernels.
//
// A weight is one problem; each of its unfoldings (one for SN, two for BSN) is a View. A view
// describes how the matrix M of an unfolding lies in the weight's own memory, so that kernels
// walk the memory once, in order, and never copy or permute a weight.
#pragma once

#include <cstdint>

namespace fastsn {

// Which sums of which unfoldings make sigma; the values are part of the op's schema.
enum Kind : int64_t {
  kSN = 0,        // sigma = ||unfold_dim(W)||; u <- n(M v), then v <- n(M^T u)
  kBSN = 1,       // mean over unfold_dim(W) and unfold_{1 - dim}(W), dim in {0, 1}
  kSNVFirst = 2,  // SN in the order of torch's old hook: v <- n(M^T u), then u <- n(M v)
};

// The weight's memory, in order, is a dense array [outer, rows, inner] and
//   M[r, m] = memory[o, r, i]   with   m = o * inner + i   (the column in memory order).
// torch orders the columns of an unfolding by the remaining dimensions as they are numbered. That
// is memory order unless `split` > 0: then m = k * split + j is torch's column j * (cols / split) +
// k.
struct View {
  int64_t outer;
  int64_t rows;
  int64_t inner;
  int64_t split;

  int64_t cols() const { return outer * inner; }
  int64_t torch_column(int64_t m) const {
    return split == 0 ? m : (m % split) * (cols() / split) + m / split;
  }
};

struct Views {
  int count;     // 0 when the layout is not supported; the caller then passes a contiguous copy
  View view[2];  // view[0] belongs to `dim`, view[1] to BSN's other unfolding
};

namespace detail {

inline bool is_contiguous(const int64_t* sizes, const int64_t* strides, int rank) {
  for (int d = 0; d < rank; ++d) {
    if (sizes[d] == 0) return true;
  }
  int64_t expected = 1;
  for (int d = rank - 1; d >= 0; --d) {
    if (sizes[d] != 1 && strides[d] != expected) return false;
    expected *= sizes[d];
  }
  return true;
}

// Memory order 0, 2, 3, ..., 1 (channels_last, channels_last_3d and their one-dimensional sibling).
inline bool is_channels_last(const int64_t* sizes, const int64_t* strides, int rank) {
  if (rank < 3) return false;
  if (sizes[1] != 1 && strides[1] != 1) return false;
  int64_t expected = sizes[1];
  for (int d = rank - 1; d >= 2; --d) {
    if (sizes[d] != 1 && strides[d] != expected) return false;
    expected *= sizes[d];
  }
  return sizes[0] == 1 || strides[0] == expected;
}

inline View contiguous_view(const int64_t* sizes, int rank, int64_t dim) {
  View view{1, sizes[dim], 1, 0};
  for (int64_t d = 0; d < dim; ++d) view.outer *= sizes[d];
  for (int64_t d = dim + 1; d < rank; ++d) view.inner *= sizes[d];
  return view;
}

}  // namespace detail

// Views of a weight of the given sizes and strides (in elements). Supported: any dense contiguous
// weight, and channels_last weights for dim 0 and 1. kSNVFirst works on M^T and takes contiguous
// weights with dim 0 only; its view's rows and columns are swapped, and so are the roles of u and
// v.
inline Views make_views(const int64_t* sizes, const int64_t* strides, int rank, int64_t dim,
                        int64_t kind) {
  const bool contiguous = detail::is_contiguous(sizes, strides, rank);
  const bool channels_last = !contiguous && detail::is_channels_last(sizes, strides, rank);
  Views views{0, {}};
  if (rank < 2 || dim < 0 || dim >= rank) return views;
  if (kind == kSNVFirst) {
    if (!contiguous || dim != 0) return views;
    const View row = detail::contiguous_view(sizes, rank, 0);
    views.view[views.count++] = View{row.rows, row.inner, 1, 0};
    return views;
  }
  const int count = kind == kBSN ? 2 : 1;
  if (kind == kBSN && (rank < 3 || dim > 1)) return views;
  if (channels_last && dim > 1) return views;
  if (!contiguous && !channels_last) return views;
  for (int j = 0; j < count; ++j) {
    const int64_t d = j == 0 ? dim : 1 - dim;
    if (contiguous) {
      views.view[j] = detail::contiguous_view(sizes, rank, d);
    } else {
      int64_t spatial = 1;
      for (int e = 2; e < rank; ++e) spatial *= sizes[e];
      views.view[j] = d == 0 ? View{1, sizes[0], spatial * sizes[1], spatial > 1 ? sizes[1] : 0}
                             : View{sizes[0] * spatial, sizes[1], 1, 0};
    }
  }
  views.count = count;
  return views;
}

}  // namespace fastsn
