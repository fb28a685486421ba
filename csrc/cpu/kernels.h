// SPDX-License-Identifier: MIT
//
// The table of inner loops. Each instruction set has its own copy of kernels_impl.h, compiled for
// it, and fills one table per arithmetic type; `kernels` returns the table in use.
//
// All matrices are dense in memory order; R is the type of all sums and vectors.
#pragma once

#include <cstdint>

#include "../dtype.h"

namespace fastsn::cpu {

template <typename R>
constexpr DType dtype_of = sizeof(R) == 8 ? kFloat64 : kFloat32;

// Rows up to this length are walked in one flat stream, with the vector repeated to a pattern of
// whole SIMD registers; longer rows are walked one by one.
constexpr int64_t kShortRow = 64;

template <typename R>
struct Kernels {
  void (*convert_from)(const void* from, DType dtype, int64_t n, R* to);
  void (*convert_to)(const R* from, int64_t n, void* to, DType dtype);

  // w is [rows, cols] with row stride `stride`.
  void (*times)(const R* w, int64_t stride, int64_t rows, int64_t cols, const R* v, R* s);
  // t [cols] += w^T s
  void (*transposed)(const R* w, int64_t stride, int64_t rows, int64_t cols, const R* s, R* t);
  // s = w v and t += w^T s, row by row: each row is read from memory once
  void (*times_transposed)(const R* w, int64_t stride, int64_t rows, int64_t cols, const R* v, R* s,
                           R* t);

  // w is [count, rows, inner] with slab stride `stride`; v and t are [count, inner].
  // slab_times adds to `sums`, laid out like `expanded`; fold makes s [rows] of it.
  void (*slab_times)(const R* w, int64_t stride, int64_t count, int64_t rows, int64_t inner,
                     const R* v, R* sums);
  // t[o, i] = sum_r s[r] w[o, r, i], with s expanded by `expand`
  void (*slab_transposed)(const R* w, int64_t stride, int64_t count, int64_t rows, int64_t inner,
                          const R* expanded, R* t);
  // w[o, r, i] -= factor s[r] v[o, i], s expanded
  void (*slab_subtract)(R* w, int64_t stride, int64_t count, int64_t rows, int64_t inner,
                        const R* expanded, const R* v, R factor);
  void (*expand)(const R* s, int64_t rows, int64_t inner, R* expanded);
  void (*fold)(const R* sums, int64_t rows, int64_t inner, R* s);

  // to[j] = sum_k from[k * stride + j], in double
  void (*sum_parts)(const R* from, int64_t count, int64_t stride, int64_t n, R* to);
  double (*inner_product)(const R* x, const R* y, int64_t n);
  // x /= divisor, in double
  void (*divide)(R* x, int64_t n, double divisor);
  // to = from / divisor in the precision of R, or better than `out`'s
  void (*divide_to)(const void* from, DType in, void* to, DType out, int64_t n, R divisor);
  double (*inner_product_of)(const void* x, const void* y, DType dtype, int64_t n);
  // to = a g - b v
  void (*combine)(const R* g, int64_t n, R a, R b, const R* v, R* to);
  void (*scale_to)(const R* g, int64_t n, R a, R* to);
};

// Elements of `expanded` and `sums` for a slab of [rows, inner]; expand writes a little past the
// end.
constexpr int64_t expanded_size(int64_t rows, int64_t inner) {
  return inner <= kShortRow ? rows * inner + kShortRow : rows;
}

struct Tables {
  Kernels<float> single;
  Kernels<double> twofold;
};

extern const Tables kBaselineTables;
#if defined(__x86_64__)
extern const Tables kAvx2Tables;
extern const Tables kAvx512Tables;
#endif

}  // namespace fastsn::cpu
