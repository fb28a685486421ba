// SPDX-License-Identifier: MIT
//
// The inner loops, in vector types of FASTSN_VECTOR_BYTES bytes. Included once per instruction set,
// by a file that has switched the compiler to it. Everything here has internal linkage and uses
// nothing of the standard library, so the linker cannot merge one instruction set's code with
// another's.
//
// The order of every sum is fixed by the sizes alone. Long sums are split over several accumulators
// (by position), which keeps both the rounding error and the latency low.

#include "elementwise_impl.h"
#include "kernels.h"

namespace fastsn::cpu {
namespace {

// Columns summed in R before they are added in double.
constexpr int64_t kColumns = 4096;

// sums[k] += <x_k, v> for kDots rows at x, and t += sum_k s[k] y_k for kAdds rows at y, in one go:
// while x streams from memory, y is still in cache.
template <int kDots, int kAdds, typename R>
FASTSN_INLINE void sweep(const R* x, const R* y, int64_t stride, int64_t n, const R* v,
                         double* sums, const R* s, R* t) {
  constexpr int L = lanes<R>;
  for (int64_t begin = 0; begin < n; begin += kColumns) {
    const int64_t end = n - begin < kColumns ? n : begin + kColumns;
    Vec<R> a[kDots + 1] = {}, b[kDots + 1] = {};
    int64_t j = begin;
    for (; j + 2 * L <= end; j += 2 * L) {
      for (int k = 0; k < kDots; ++k) {
        prefetch(x + k * stride + j);
        a[k] += load(x + k * stride + j) * load(v + j);
        b[k] += load(x + k * stride + j + L) * load(v + j + L);
      }
      if (kAdds == 0) continue;
      Vec<R> p = load(t + j), q = load(t + j + L);
      for (int k = 0; k < kAdds; ++k) {
        if (kDots == 0) prefetch(y + k * stride + j);
        p += s[k] * load(y + k * stride + j);
        q += s[k] * load(y + k * stride + j + L);
      }
      store(t + j, p);
      store(t + j + L, q);
    }
    for (int k = 0; k < kDots; ++k) sums[k] += sum_lanes<R>(a[k] + b[k]);
    for (; j < end; ++j) {
      for (int k = 0; k < kDots; ++k) sums[k] += double(x[k * stride + j]) * double(v[j]);
      for (int k = 0; k < kAdds; ++k) t[j] += s[k] * y[k * stride + j];
    }
  }
}

// s = w v, row by row
template <typename R>
void dot_rows(const R* w, int64_t stride, int64_t rows, int64_t n, const R* v, R* s) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
    double sums[4] = {};
    sweep<4, 0, R>(w + r * stride, nullptr, stride, n, v, sums, nullptr, nullptr);
    for (int k = 0; k < 4; ++k) s[r + k] = R(sums[k]);
  }
  for (; r < rows; ++r) {
    double sum = 0;
    sweep<1, 0, R>(w + r * stride, nullptr, stride, n, v, &sum, nullptr, nullptr);
    s[r] = R(sum);
  }
}

// t += w^T s
template <typename R>
void add_rows(const R* w, int64_t stride, int64_t rows, int64_t n, const R* s, R* t) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
    sweep<0, 4, R>(nullptr, w + r * stride, stride, n, nullptr, nullptr, s + r, t);
  }
  for (; r < rows; ++r) {
    sweep<0, 1, R>(nullptr, w + r * stride, stride, n, nullptr, nullptr, s + r, t);
  }
}

// Short rows: v repeated to `size` elements, a whole number of vectors (at least four) and of rows.
template <typename R>
struct Pattern {
  int64_t size;
  alignas(64) R values[kShortRow * 16];

  explicit FASTSN_INLINE Pattern(int64_t inner) : size(inner) {
    while (size % lanes<R> != 0 || size < 4 * lanes<R>) size *= 2;
  }
  FASTSN_INLINE void repeat(const R* v, int64_t inner) {
    for (int64_t i = 0; i < inner; ++i) values[i] = v[i];
    for (int64_t n = inner; n < size; n *= 2) __builtin_memcpy(values + n, values, n * sizeof(R));
  }
  // Adds up what belongs to the same place of a row.
  FASTSN_INLINE void fold(int64_t inner, R* t) {
    for (int64_t n = size; n > inner; n /= 2) {
      const int64_t half = n / 2;
      int64_t j = 0;
      for (; j + lanes<R> <= half; j += lanes<R>) {
        store(values + j, load(values + j) + load(values + half + j));
      }
      for (; j < half; ++j) values[j] += values[half + j];
    }
    for (int64_t i = 0; i < inner; ++i) t[i] = values[i];
  }
};

// sums[j] += w[j] pattern[j mod size]
template <typename R>
FASTSN_INLINE void add_times_pattern(const R* w, int64_t n, const Pattern<R>& pattern, R* sums) {
  constexpr int L = lanes<R>;
  int64_t j = 0;
  for (; j + pattern.size <= n; j += pattern.size) {
    for (int64_t k = 0; k < pattern.size; k += L) {
      store(sums + j + k, load(sums + j + k) + load(w + j + k) * load(pattern.values + k));
    }
  }
  int64_t k = 0;
  for (; j + L <= n; j += L, k += L) {
    store(sums + j, load(sums + j) + load(w + j) * load(pattern.values + k));
  }
  for (; j < n; ++j, ++k) sums[j] += w[j] * pattern.values[k];
}

// pattern[j mod size] += w[j] s[j]
template <typename R>
FASTSN_INLINE void add_to_pattern(const R* w, const R* s, int64_t n, Pattern<R>& pattern) {
  constexpr int L = lanes<R>;
  R* sums = pattern.values;
  int64_t j = 0;
  for (; j + pattern.size <= n; j += pattern.size) {
    for (int64_t k = 0; k < pattern.size; k += L) {
      prefetch(w + j + k);
      store(sums + k, load(sums + k) + load(w + j + k) * load(s + j + k));
    }
  }
  int64_t k = 0;
  for (; j + L <= n; j += L, k += L) {
    store(sums + k, load(sums + k) + load(w + j) * load(s + j));
  }
  for (; j < n; ++j, ++k) sums[k] += w[j] * s[j];
}

template <typename R>
void expand(const R* s, int64_t rows, int64_t inner, R* expanded) {
  if (inner == 1 || inner > kShortRow) {
    __builtin_memcpy(expanded, s, rows * sizeof(R));
    return;
  }
  // Whole vectors are written; what is past a row's end is the next row's, or the slack at the end.
  for (int64_t r = 0; r < rows; ++r, expanded += inner) {
    const Vec<R> value = s[r] - Vec<R>{};
    for (int64_t i = 0; i < inner; i += lanes<R>) store(expanded + i, value);
  }
}

template <typename R>
void fold(const R* sums, int64_t rows, int64_t inner, R* s) {
  if (inner == 1 || inner > kShortRow) {
    __builtin_memcpy(s, sums, rows * sizeof(R));
    return;
  }
  for (int64_t r = 0; r < rows; ++r, sums += inner) {
    R even = 0, odd = 0;
    int64_t i = 0;
    for (; i + 2 <= inner; i += 2) {
      even += sums[i];
      odd += sums[i + 1];
    }
    s[r] = even + (i < inner ? odd + sums[i] : odd);
  }
}

// Short rows in chunks that stay in the first-level cache: s = w v if v, then t += w^T s if t.
template <typename R>
void short_rows(const R* w, int64_t stride, int64_t rows, int64_t cols, const R* v, R* s, R* t) {
  constexpr int64_t kChunk = 2048;
  alignas(64) R chunk[kChunk + kShortRow];
  alignas(64) R packed[kChunk];
  Pattern<R> repeated(cols), sums(cols);
  if (v != nullptr) repeated.repeat(v, cols);
  for (int64_t k = 0; k < sums.size; ++k) sums.values[k] = 0;
  const int64_t step = kChunk / cols;
  for (int64_t r = 0; r < rows; r += step) {
    const int64_t count = rows - r < step ? rows - r : step;
    const int64_t n = count * cols;
    const R* flat = w + r * stride;
    if (stride != cols) {
      for (int64_t k = 0; k < count; ++k) {
        for (int64_t j = 0; j < cols; ++j) packed[k * cols + j] = w[(r + k) * stride + j];
      }
      flat = packed;
    }
    if (v != nullptr) {
      for (int64_t j = 0; j < n; ++j) chunk[j] = 0;
      add_times_pattern(flat, n, repeated, chunk);
      fold(chunk, count, cols, s + r);
    }
    if (t != nullptr) {
      expand(s + r, count, cols, chunk);
      add_to_pattern(flat, chunk, n, sums);
    }
  }
  if (t == nullptr) return;
  R added[kShortRow];
  sums.fold(cols, added);
  for (int64_t j = 0; j < cols; ++j) t[j] += added[j];
}

template <typename R>
void times(const R* w, int64_t stride, int64_t rows, int64_t cols, const R* v, R* s) {
  if (cols <= kShortRow) return short_rows<R>(w, stride, rows, cols, v, s, nullptr);
  dot_rows(w, stride, rows, cols, v, s);
}

template <typename R>
void transposed(const R* w, int64_t stride, int64_t rows, int64_t cols, const R* s, R* t) {
  if (cols <= kShortRow) {
    return short_rows<R>(w, stride, rows, cols, nullptr, const_cast<R*>(s), t);
  }
  add_rows(w, stride, rows, cols, s, t);
}

template <typename R>
void times_transposed(const R* w, int64_t stride, int64_t rows, int64_t cols, const R* v, R* s,
                      R* t) {
  if (cols <= kShortRow) return short_rows(w, stride, rows, cols, v, s, t);
  const int64_t whole = rows / 4 * 4;
  for (int64_t r = 0; r < whole; r += 4) {
    double sums[4] = {};
    const R* x = w + r * stride;
    if (r == 0) {
      sweep<4, 0, R>(x, nullptr, stride, cols, v, sums, nullptr, nullptr);
    } else {
      sweep<4, 4>(x, x - 4 * stride, stride, cols, v, sums, s + r - 4, t);
    }
    for (int k = 0; k < 4; ++k) s[r + k] = R(sums[k]);
  }
  dot_rows(w + whole * stride, stride, rows - whole, cols, v, s + whole);
  const int64_t left = whole == 0 ? 0 : whole - 4;
  add_rows(w + left * stride, stride, rows - left, cols, s + left, t);
}

template <typename R>
void slab_times(const R* w, int64_t stride, int64_t count, int64_t rows, int64_t inner, const R* v,
                R* sums) {
  const int64_t n = rows * inner;
  if (inner == 1 && n > kShortRow) return add_rows(w, stride, count, rows, v, sums);
  if (inner == 1) {
    // Many such slabs make one long sum: parts of a bounded length, and their sum in double.
    double total[kShortRow] = {};
    for (int64_t o = 0; o < count; o += kShortRow) {
      const int64_t m = count - o < kShortRow ? count - o : kShortRow;
      alignas(64) R part[kShortRow] = {};
      add_rows(w + o * stride, stride, m, rows, v + o, part);
      for (int64_t r = 0; r < rows; ++r) total[r] += part[r];
    }
    for (int64_t r = 0; r < rows; ++r) sums[r] += R(total[r]);
    return;
  }
  if (n <= kShortRow) {
    // Too short for a pattern. Many such slabs make one long sum, hence double.
    double total[kShortRow] = {};
    for (int64_t o = 0; o < count; ++o, w += stride, v += inner) {
      for (int64_t r = 0, j = 0; r < rows; ++r) {
        for (int64_t i = 0; i < inner; ++i, ++j) total[j] += double(w[j]) * double(v[i]);
      }
    }
    for (int64_t j = 0; j < n; ++j) sums[j] += R(total[j]);
    return;
  }
  Pattern<R> pattern(inner <= kShortRow ? inner : 1);
  alignas(64) R s[kShortRow];
  for (int64_t o = 0; o < count; ++o, w += stride, v += inner) {
    if (inner <= kShortRow) {
      pattern.repeat(v, inner);
      add_times_pattern(w, n, pattern, sums);
      continue;
    }
    for (int64_t r = 0; r < rows; r += kShortRow) {
      const int64_t m = rows - r < kShortRow ? rows - r : kShortRow;
      dot_rows(w + r * inner, inner, m, inner, v, s);
      for (int64_t k = 0; k < m; ++k) sums[r + k] += s[k];
    }
  }
}

template <typename R>
void slab_transposed(const R* w, int64_t stride, int64_t count, int64_t rows, int64_t inner,
                     const R* expanded, R* t) {
  if (inner == 1) return dot_rows(w, stride, count, rows, expanded, t);
  const int64_t n = rows * inner;
  Pattern<R> sums(inner <= kShortRow ? inner : 1);
  for (int64_t o = 0; o < count; ++o, w += stride, t += inner) {
    if (inner > kShortRow) {
      for (int64_t i = 0; i < inner; ++i) t[i] = 0;
      add_rows(w, inner, rows, inner, expanded, t);
    } else if (n <= kShortRow) {
      for (int64_t i = 0; i < inner; ++i) {
        R sum = 0;
        for (int64_t j = i; j < n; j += inner) sum += w[j] * expanded[j];
        t[i] = sum;
      }
    } else {
      for (int64_t k = 0; k < sums.size; ++k) sums.values[k] = 0;
      add_to_pattern(w, expanded, n, sums);
      sums.fold(inner, t);
    }
  }
}

template <typename R>
void slab_subtract(R* w, int64_t stride, int64_t count, int64_t rows, int64_t inner,
                   const R* expanded, const R* v, R factor) {
  constexpr int L = lanes<R>;
  const int64_t n = rows * inner;
  if (inner > kShortRow || inner == 1) {
    for (int64_t o = 0; o < count; ++o, w += stride, v += inner) {
      if (inner == 1) {
        const R scaled = -factor * *v;
        add_rows(expanded, 0, 1, rows, &scaled, w);
        continue;
      }
      for (int64_t r = 0; r < rows; ++r) {
        const R scaled = -factor * expanded[r];
        add_rows(v, 0, 1, inner, &scaled, w + r * inner);
      }
    }
    return;
  }
  if (n <= kShortRow) {
    for (int64_t o = 0; o < count; ++o, w += stride, v += inner) {
      for (int64_t r = 0, j = 0; r < rows; ++r) {
        for (int64_t i = 0; i < inner; ++i, ++j) w[j] -= expanded[j] * (factor * v[i]);
      }
    }
    return;
  }
  Pattern<R> pattern(inner);
  R scaled[kShortRow];
  for (int64_t o = 0; o < count; ++o, w += stride, v += inner) {
    for (int64_t i = 0; i < inner; ++i) scaled[i] = factor * v[i];
    pattern.repeat(scaled, inner);
    for (int64_t j = 0; j < n;) {
      int64_t k = 0;
      for (; k < pattern.size && j + L <= n; j += L, k += L) {
        store(w + j, load(w + j) - load(expanded + j) * load(pattern.values + k));
      }
      if (j + L > n) {
        for (; j < n; ++j, ++k) w[j] -= expanded[j] * pattern.values[k % pattern.size];
      }
    }
  }
}

template <typename R>
constexpr Kernels<R> table() {
  return Kernels<R>{
      convert_from<R>, convert_to<R>,      times<R>,         transposed<R>, times_transposed<R>,
      slab_times<R>,   slab_transposed<R>, slab_subtract<R>, expand<R>,     fold<R>,
      sum_parts<R>,    inner_product<R>,   divide<R>,        divide_to<R>,  inner_product_of<R>,
      combine<R>,      scale_to<R>};
}

}  // namespace
}  // namespace fastsn::cpu
