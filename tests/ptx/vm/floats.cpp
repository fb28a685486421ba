// SPDX-License-Identifier: MIT
//
// Floating point, and conversions from and to it.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "bytecode.h"
#include "lanes.h"

namespace ptx {
namespace {

// The nearest number of a 16-bit format, ties to even. Every float32 and float64 can be given: it
// is rounded once.
template <int kFraction, int kBias>
u16 narrow(f64 x) {
  const u16 sign = std::signbit(x) ? 0x8000 : 0;
  constexpr u32 kInfinity = (2 * kBias + 1) << kFraction;
  if (x != x) return 0x7fff;
  if (std::isinf(x)) return sign | kInfinity;
  const int exponent = x == 0 ? 1 - kBias : std::max(std::ilogb(x), 1 - kBias);
  if (exponent > kBias) return sign | kInfinity;
  // in units of the last place, 2^kFraction or more of them where the number is normal
  const f64 units = std::nearbyint(std::ldexp(std::fabs(x), kFraction - exponent));
  return sign | static_cast<u16>(((exponent + kBias - 1) << kFraction) + static_cast<u32>(units));
}
constexpr auto to_f16 = narrow<10, 15>;
constexpr auto to_bf16 = narrow<7, 127>;

f32 from_bf16(u16 x) {
  const u32 bits = static_cast<u32>(x) << 16;
  f32 result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

f32 from_f16(u16 x) {
  const int exponent = x >> 10 & 31, fraction = x & 1023;
  f32 size = std::ldexp(static_cast<f32>(exponent ? fraction | 1024 : fraction),
                        (exponent ? exponent : 1) - 25);
  if (exponent == 31) size = fraction ? NAN : INFINITY;
  return x & 0x8000 ? -size : size;
}

template <auto kNarrow>
u32 narrow_two(f32 high, f32 low) {
  return static_cast<u32>(kNarrow(high)) << 16 | kNarrow(low);
}

// Of a number and NaN, the number.
template <typename T>
T minimum(T a, T b) {
  return std::fmin(a, b);
}
template <typename T>
T maximum(T a, T b) {
  return std::fmax(a, b);
}

template <typename T>
void add_arithmetic(Operations& o, const std::string& t) {
  o["add." + t] = {binary<T, T, [](T a, T b) { return a + b; }>};
  o["sub." + t] = {binary<T, T, [](T a, T b) { return a - b; }>};
  o["mul." + t] = {binary<T, T, [](T a, T b) { return a * b; }>};
  o["fma." + t] = {ternary<T, T, T, T, [](T a, T b, T c) { return std::fma(a, b, c); }>};
  // approximations are within the error of a rounded result's last bits: here they are exact
  for (const char* precision : {"rn.", "full.", "approx."}) {
    o["div." + std::string(precision) + t] = {binary<T, T, [](T a, T b) { return a / b; }>};
    o["sqrt." + std::string(precision) + t] = {unary<T, T, [](T a) { return std::sqrt(a); }>};
    o["rcp." + std::string(precision) + t] = {unary<T, T, [](T a) { return 1 / a; }>};
  }
  o["rsqrt.approx." + t] = {unary<T, T, [](T a) { return 1 / std::sqrt(a); }>};
  o["neg." + t] = {unary<T, T, [](T a) { return -a; }>};
  o["abs." + t] = {unary<T, T, [](T a) { return std::fabs(a); }>};
  o["min." + t] = {binary<T, T, minimum<T>>};
  o["max." + t] = {binary<T, T, maximum<T>>};
  add_comparisons<T>(o, t);
  // true also where one is NaN
  o["setp.equ." + t] = {compare<T, [](T a, T b) { return (!(a < b || a > b)); }>};
  o["setp.neu." + t] = {compare<T, [](T a, T b) { return a != b; }>};
  o["setp.ltu." + t] = {compare<T, [](T a, T b) { return (!(a >= b)); }>};
  o["setp.leu." + t] = {compare<T, [](T a, T b) { return (!(a > b)); }>};
  o["setp.gtu." + t] = {compare<T, [](T a, T b) { return !(a <= b); }>};
  o["setp.geu." + t] = {compare<T, [](T a, T b) { return !(a < b); }>};
  o["setp.num." + t] = {compare<T, [](T a, T b) { return a == a && b == b; }>};
  o["setp.nan." + t] = {compare<T, [](T a, T b) { return a != a || b != b; }>};
}

template <typename Integer>
void add_from_integer(Operations& o, const std::string& t) {
  o["cvt.rn.f32." + t] = {unary<f32, Integer, [](Integer a) { return static_cast<f32>(a); }>};
  o["cvt.rn.f64." + t] = {unary<f64, Integer, [](Integer a) { return static_cast<f64>(a); }>};
}

}  // namespace

void add_floats(Operations& o) {
  add_arithmetic<f32>(o, "f32");
  add_arithmetic<f64>(o, "f64");
  add_from_integer<s32>(o, "s32");
  add_from_integer<u32>(o, "u32");
  add_from_integer<s64>(o, "s64");
  add_from_integer<u64>(o, "u64");
  o["cvt.rzi.s32.f32"] = {unary<s32, f32, [](f32 a) { return static_cast<s32>(a); }>};
  o["cvt.f64.f32"] = {unary<f64, f32, [](f32 a) { return static_cast<f64>(a); }>};
  o["cvt.rn.f32.f64"] = {unary<f32, f64, [](f64 a) { return static_cast<f32>(a); }>};
  o["cvt.f32.f16"] = {unary<f32, u16, from_f16>};
  o["cvt.f64.f16"] = {unary<f64, u16, from_f16>};
  o["cvt.f32.bf16"] = {unary<f32, u16, from_bf16>};
  o["cvt.f64.bf16"] = {unary<f64, u16, from_bf16>};
  o["cvt.rn.f16.f32"] = {unary<u16, f32, to_f16>};
  o["cvt.rn.f16.f64"] = {unary<u16, f64, to_f16>};
  o["cvt.rn.bf16.f32"] = {unary<u16, f32, to_bf16>};
  o["cvt.rn.bf16.f64"] = {unary<u16, f64, to_bf16>};
  o["cvt.rn.f16x2.f32"] = {binary<u32, f32, narrow_two<to_f16>>};
  o["cvt.rn.bf16x2.f32"] = {binary<u32, f32, narrow_two<to_bf16>>};
}

}  // namespace ptx
