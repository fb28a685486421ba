// SPDX-License-Identifier: MIT
//
// Loops over flat arrays, for kernels_impl.h (see there for the rules). Norms and inner products
// are summed in double: products of floats are exact there.
#pragma once

#include "vector_impl.h"

namespace fastsn::cpu {
namespace {

template <typename R>
struct Wide;  // a vector of doubles from as many R

template <>
struct Wide<float> {
  static FASTSN_INLINE F64 load(const float* p) {
    return __builtin_convertvector(load_as<HalfF32>(p), F64);
  }
  static FASTSN_INLINE void store(float* p, F64 v) {
    cpu::store(p, __builtin_convertvector(v, HalfF32));
  }
};

template <>
struct Wide<double> {
  static FASTSN_INLINE F64 load(const double* p) { return cpu::load(p); }
  static FASTSN_INLINE void store(double* p, F64 v) { cpu::store(p, v); }
};

constexpr int kDoubles = lanes<double>;

template <typename R>
double inner_product(const R* x, const R* y, int64_t n) {
  F64 a{}, b{};
  int64_t j = 0;
  for (; j + 2 * kDoubles <= n; j += 2 * kDoubles) {
    a += Wide<R>::load(x + j) * Wide<R>::load(y + j);
    b += Wide<R>::load(x + j + kDoubles) * Wide<R>::load(y + j + kDoubles);
  }
  double rest = 0;
  for (; j < n; ++j) rest += double(x[j]) * double(y[j]);
  return sum_lanes<double>(a + b) + rest;
}

template <typename R>
void sum_parts(const R* from, int64_t count, int64_t stride, int64_t n, R* to) {
  int64_t j = 0;
  for (; j + 2 * kDoubles <= n; j += 2 * kDoubles) {
    F64 a{}, b{};
    for (int64_t k = 0; k < count; ++k) {
      a += Wide<R>::load(from + k * stride + j);
      b += Wide<R>::load(from + k * stride + j + kDoubles);
    }
    Wide<R>::store(to + j, a);
    Wide<R>::store(to + j + kDoubles, b);
  }
  for (; j < n; ++j) {
    double sum = 0;
    for (int64_t k = 0; k < count; ++k) sum += double(from[k * stride + j]);
    to[j] = R(sum);
  }
}

template <typename R>
void divide(R* x, int64_t n, double divisor) {
  int64_t j = 0;
  for (; j + kDoubles <= n; j += kDoubles) Wide<R>::store(x + j, Wide<R>::load(x + j) / divisor);
  for (; j < n; ++j) x[j] = R(double(x[j]) / divisor);
}

// Elements converted at a time: they stay in the first-level cache.
constexpr int64_t kBlock = 1024;

template <typename R>
FASTSN_INLINE void divide_block(const R* from, int64_t n, R divisor, R* to) {
  constexpr int L = lanes<R>;
  int64_t j = 0;
  for (; j + L <= n; j += L) {
    prefetch(from + j);
    prefetch_to_write(to + j);
    store(to + j, load(from + j) / divisor);
  }
  for (; j < n; ++j) to[j] = from[j] / divisor;
}

template <typename R>
void divide_to(const void* from, DType in, void* to, DType out, int64_t n, R divisor) {
  if (in == dtype_of<R> && out == in) {
    return divide_block(static_cast<const R*>(from), n, divisor, static_cast<R*>(to));
  }
  // A product has an error of about 1.5 units in the last place of a float: none in 16 bits.
  if (sizeof(R) == sizeof(float) && size_of(out) == 2 && divisor * divisor >= 1e-30f) {
    return multiply_floats(from, in, n, to, out, 1 / float(divisor));
  }
  alignas(64) R block[kBlock];
  for (int64_t j = 0; j < n; j += kBlock) {
    const int64_t m = n - j < kBlock ? n - j : kBlock;
    convert_from(static_cast<const char*>(from) + j * size_of(in), in, m, block);
    divide_block(block, m, divisor, block);
    convert_to(block, m, static_cast<char*>(to) + j * size_of(out), out);
  }
}

template <typename R>
FASTSN_INLINE void add_product(const R* x, const R* y, int64_t n, F64& sum, double& rest) {
  constexpr int L = lanes<R>;
  Vec<R> a{}, b{};
  int64_t j = 0;
  for (; j + 2 * L <= n; j += 2 * L) {
    prefetch(x + j);
    prefetch(y + j);
    a += load(x + j) * load(y + j);
    b += load(x + j + L) * load(y + j + L);
  }
  for (; j < n; ++j) rest += double(x[j]) * double(y[j]);
  R sums[2 * L];
  store(sums, a);
  store(sums + L, b);
  for (int i = 0; i < 2 * L; i += kDoubles) sum += Wide<R>::load(sums + i);
}

template <typename R>
double inner_product_of(const void* x, const void* y, DType dtype, int64_t n) {
  F64 sum{};
  double rest = 0;
  alignas(64) R blocks[2][kBlock];
  for (int64_t j = 0; j < n; j += kBlock) {
    const int64_t m = n - j < kBlock ? n - j : kBlock;
    const void* at[2] = {static_cast<const char*>(x) + j * size_of(dtype),
                         static_cast<const char*>(y) + j * size_of(dtype)};
    if (dtype == dtype_of<R>) {
      add_product(static_cast<const R*>(at[0]), static_cast<const R*>(at[1]), m, sum, rest);
      continue;
    }
    convert_from(at[0], dtype, m, blocks[0]);
    convert_from(at[1], dtype, m, blocks[1]);
    add_product(blocks[0], blocks[1], m, sum, rest);
  }
  return sum_lanes<double>(sum) + rest;
}

template <typename R>
void combine(const R* g, int64_t n, R a, R b, const R* v, R* to) {
  int64_t j = 0;
  for (; j + lanes<R> <= n; j += lanes<R>) {
    prefetch(g + j);
    prefetch_to_write(to + j);
    store(to + j, a * load(g + j) - b * load(v + j));
  }
  for (; j < n; ++j) to[j] = a * g[j] - b * v[j];
}

template <typename R>
void scale_to(const R* g, int64_t n, R a, R* to) {
  int64_t j = 0;
  for (; j + lanes<R> <= n; j += lanes<R>) {
    prefetch(g + j);
    prefetch_to_write(to + j);
    store(to + j, a * load(g + j));
  }
  for (; j < n; ++j) to[j] = a * g[j];
}

}  // namespace
}  // namespace fastsn::cpu
