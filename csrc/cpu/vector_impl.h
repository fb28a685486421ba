// SPDX-License-Identifier: MIT
//
// SIMD vectors and the conversion of storage types, for kernels_impl.h (see there for the rules).
//
// GCC's and Clang's vector types need no intrinsics: the same text is SSE2, AVX2, AVX-512, NEON,
// ...
#pragma once

#include "kernels.h"

#define FASTSN_INLINE inline __attribute__((always_inline))

namespace fastsn::cpu {
namespace {

template <typename T, int N>
struct VectorOf {
  typedef T type __attribute__((vector_size(N * sizeof(T))));
};

template <typename R>
constexpr int lanes = FASTSN_VECTOR_BYTES / sizeof(R);

template <typename R>
using Vec = typename VectorOf<R, lanes<R>>::type;

template <typename V>
FASTSN_INLINE V load_as(const void* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(V));
  return v;
}

template <typename R>
FASTSN_INLINE Vec<R> load(const R* p) {
  return load_as<Vec<R>>(p);
}

template <typename V>
FASTSN_INLINE void store(void* p, V v) {
  __builtin_memcpy(p, &v, sizeof(V));
}

// Asks for what a stream reaches one page from here: hardware prefetchers stop at the end of a
// page.
FASTSN_INLINE void prefetch(const void* p) {
  __builtin_prefetch(static_cast<const char*>(p) + 4096);
}
FASTSN_INLINE void prefetch_to_write(const void* p) {
  __builtin_prefetch(static_cast<const char*>(p) + 4096, 1);
}

template <typename R>
FASTSN_INLINE R sum_lanes(Vec<R> v) {
  R x[lanes<R>];
  store(x, v);
  for (int n = lanes<R> / 2; n > 0; n /= 2) {
    for (int i = 0; i < n; ++i) x[i] += x[i + n];
  }
  return x[0];
}

// As many elements as fit a vector of floats; a vector of doubles holds half of them.
constexpr int kFloats = lanes<float>;
using F32 = Vec<float>;
using U32 = VectorOf<uint32_t, kFloats>::type;
using U16 = VectorOf<uint16_t, kFloats>::type;
using HalfF32 = VectorOf<float, kFloats / 2>::type;
using F64 = Vec<double>;

FASTSN_INLINE U32 bits_of(F32 v) { return (U32)v; }

// a where mask (all ones or zeros) is set, else b
FASTSN_INLINE U32 select(U32 mask, U32 a, U32 b) { return (a & mask) | (b & ~mask); }

FASTSN_INLINE F32 bfloat16_to_float(U16 v) { return (F32)(__builtin_convertvector(v, U32) << 16); }

// Round to nearest even; a NaN stays a NaN.
FASTSN_INLINE U16 float_to_bfloat16(F32 v) {
  const U32 bits = bits_of(v);
  const U32 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const U32 nan = (U32)(v != v);
  return __builtin_convertvector(select(nan, U32{} + 0x7fc0, rounded), U16);
}

FASTSN_INLINE F32 half_to_float(U16 v) {
  const U32 bits = __builtin_convertvector(v, U32);
  const U32 magnitude = (bits & 0x7fff) << 13;
  // Exponent 31 (infinities, NaN) becomes 255, the others are rebiased by 127 - 15.
  const U32 special = (U32)(magnitude >= (31u << 23));
  const U32 normal = magnitude + (112u << 23) + (special & (112u << 23));
  // Subnormal: 2^-14 + fraction is exact, and so is the difference. No subnormal float arises.
  const U32 tiny = (U32)(magnitude < (1u << 23));
  const F32 base = (F32)(U32{} + (113u << 23));
  const U32 small = bits_of((F32)(magnitude + (113u << 23)) - base);
  return (F32)(select(tiny, small, normal) | (bits & 0x8000) << 16);
}

// Round to nearest even; a NaN stays a NaN, and what is too large becomes infinite.
FASTSN_INLINE U16 float_to_half(F32 v) {
  const U32 sign = bits_of(v) & 0x80000000u;
  const U32 magnitude = bits_of(v) ^ sign;
  // Below 2^-14 the sum with 0.5 rounds at the last bit of a subnormal half.
  const F32 half = F32{} + 0.5f;
  const U32 small = bits_of((F32)magnitude + half) - bits_of(half);
  const U32 normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  const U32 large = (U32)(magnitude >= (143u << 23));
  const U32 nan = (U32)(magnitude > (255u << 23));
  U32 result = select((U32)(magnitude < (113u << 23)), small, normal);
  result = select(large, U32{} + 0x7c00, result);
  result = select(nan, U32{} + 0x7e00, result);
  return __builtin_convertvector(result | (sign >> 16), U16);
}

template <DType dtype>
FASTSN_INLINE F32 load_floats(const void* p) {
  if constexpr (dtype == kFloat32) {
    return load_as<F32>(p);
  } else if constexpr (dtype == kBFloat16) {
    return bfloat16_to_float(load_as<U16>(p));
  } else {
    return half_to_float(load_as<U16>(p));
  }
}

template <DType dtype>
FASTSN_INLINE void store_floats(void* p, F32 v) {
  if constexpr (dtype == kFloat32) {
    store(p, v);
  } else if constexpr (dtype == kBFloat16) {
    store(p, float_to_bfloat16(v));
  } else {
    store(p, float_to_half(v));
  }
}

// to[j] = from[j] * factor, by way of float; no type may be double.
template <DType in, DType out>
void multiply_floats(const void* from, int64_t n, void* to, float factor) {
  const char* x = static_cast<const char*>(from);
  char* y = static_cast<char*>(to);
  constexpr int64_t kIn = size_of(in), kOut = size_of(out);
  int64_t j = 0;
  for (; j + kFloats <= n; j += kFloats) {
    store_floats<out>(y + j * kOut, load_floats<in>(x + j * kIn) * factor);
  }
  if (j == n) return;
  char last[kFloats * sizeof(float)] = {};
  __builtin_memcpy(last, x + j * kIn, (n - j) * kIn);
  store_floats<out>(last, load_floats<in>(last) * factor);
  __builtin_memcpy(y + j * kOut, last, (n - j) * kOut);
}

template <DType in>
void multiply_floats(const void* from, int64_t n, void* to, DType out, float factor) {
  switch (out) {
    case kBFloat16:
      return multiply_floats<in, kBFloat16>(from, n, to, factor);
    case kFloat16:
      return multiply_floats<in, kFloat16>(from, n, to, factor);
    default:
      return multiply_floats<in, kFloat32>(from, n, to, factor);
  }
}

void multiply_floats(const void* from, DType in, int64_t n, void* to, DType out, float factor) {
  switch (in) {
    case kBFloat16:
      return multiply_floats<kBFloat16>(from, n, to, out, factor);
    case kFloat16:
      return multiply_floats<kFloat16>(from, n, to, out, factor);
    default:
      return multiply_floats<kFloat32>(from, n, to, out, factor);
  }
}

template <typename From, typename To>
void cast(const void* from, int64_t n, void* to) {
  const From* x = static_cast<const From*>(from);
  To* y = static_cast<To*>(to);
  for (int64_t i = 0; i < n; ++i) y[i] = To(x[i]);
}

// Between double and 16-bit types by way of float, a little at a time.
constexpr int64_t kConvert = 256;

template <typename R>
void convert_from(const void* from, DType dtype, int64_t n, R* to) {
  if (dtype == kFloat64) return cast<double, R>(from, n, to);
  if (dtype == kFloat32) return cast<float, R>(from, n, to);
  if constexpr (sizeof(R) == sizeof(float)) {
    multiply_floats(from, dtype, n, to, kFloat32, 1);
  } else {
    float part[kConvert];
    for (int64_t j = 0; j < n; j += kConvert) {
      const int64_t m = n - j < kConvert ? n - j : kConvert;
      convert_from(static_cast<const char*>(from) + j * size_of(dtype), dtype, m, part);
      cast<float, R>(part, m, to + j);
    }
  }
}

template <typename R>
void convert_to(const R* from, int64_t n, void* to, DType dtype) {
  if (dtype == kFloat64) return cast<R, double>(from, n, to);
  if (dtype == kFloat32) return cast<R, float>(from, n, to);
  if constexpr (sizeof(R) == sizeof(float)) {
    multiply_floats(from, kFloat32, n, to, dtype, 1);
  } else {
    float part[kConvert];
    for (int64_t j = 0; j < n; j += kConvert) {
      const int64_t m = n - j < kConvert ? n - j : kConvert;
      cast<R, float>(from + j, m, part);
      convert_to(part, m, static_cast<char*>(to) + j * size_of(dtype), dtype);
    }
  }
}

}  // namespace
}  // namespace fastsn::cpu
