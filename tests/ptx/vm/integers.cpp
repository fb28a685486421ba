// SPDX-License-Identifier: MIT
//
// Integers, bits and predicates.
#include <algorithm>
#include <type_traits>

#include "bytecode.h"
#include "lanes.h"

namespace ptx {
namespace {

template <typename T>
T shift_right(T a, u32 by) {
  constexpr u32 kBits = 8 * sizeof(T);
  return static_cast<T>(by >= kBits ? (a < 0 ? -1 : 0) : a >> by);
}

template <typename T>
T shift_left(T a, u32 by) {
  return by >= 8 * sizeof(T) ? T{0} : static_cast<T>(a << by);
}

// The PTX manual leaves the result of a division by zero open; all bits set is what GPUs give.
template <typename T>
T divide(T a, T b) {
  return b == 0 ? static_cast<T>(-1) : static_cast<T>(a / b);
}
template <typename T>
T remainder(T a, T b) {
  return b == 0 ? a : static_cast<T>(a % b);
}

template <typename T>
T extract(T a, u32 position, u32 length) {
  constexpr u32 kBits = 8 * sizeof(T);
  position &= 255, length &= 255;
  if (length == 0) return 0;
  if constexpr (std::is_signed_v<T>) {
    a = static_cast<T>(a >> std::min(position, kBits - 1));
    const u32 unused = length >= kBits || position + length >= kBits ? 0 : kBits - length;
    return static_cast<T>(static_cast<T>(a << unused) >> unused);
  } else {
    if (position >= kBits) return 0;
    a = static_cast<T>(a >> position);
    return length >= kBits ? a : static_cast<T>(a & ((T{1} << length) - 1));
  }
}

template <typename T>
T insert(T a, T b, u32 position, u32 length) {
  constexpr u32 kBits = 8 * sizeof(T);
  position &= 255, length &= 255;
  if (position >= kBits || length == 0) return b;
  const T ones = length >= kBits ? static_cast<T>(-1) : static_cast<T>((T{1} << length) - 1);
  const T mask = static_cast<T>(ones << position);
  return static_cast<T>((b & ~mask) | (static_cast<T>(a << position) & mask));
}

u32 permute(u32 a, u32 b, u32 selectors) {
  const u64 bytes = static_cast<u64>(b) << 32 | a;
  u32 result = 0;
  for (int k = 0; k < 4; ++k) {
    const u32 selector = selectors >> (4 * k) & 15;
    u32 byte = static_cast<u32>(bytes >> (8 * (selector & 7))) & 255;
    if (selector & 8) byte = byte & 128 ? 255 : 0;
    result |= byte << (8 * k);
  }
  return result;
}

// A low part of a register, as another type. `Register` types tell how wide the registers are.
template <typename From, typename To, bool kFromSigned, bool kToSigned>
void convert(Launch&, Warp& warp, Instruction& in, u32 lanes) {
  const From* a = source<From>(warp, in, 0);
  To* d = target<To>(warp, in, 0);
  const int from = 64 - in.access.bytes * 8, to = 64 - in.access.register_bytes * 8;
  for_lanes(lanes, [&](int lane) {
    u64 x = static_cast<u64>(a[lane]) << from;
    x = kFromSigned ? static_cast<u64>(static_cast<s64>(x) >> from) : x >> from;
    x <<= to;
    d[lane] = static_cast<To>(kToSigned ? static_cast<u64>(static_cast<s64>(x) >> to) : x >> to);
  });
}

template <typename From, typename To>
void add_conversion(Operations& o) {
  const std::string widths = std::to_string(sizeof(From)) + std::to_string(sizeof(To));
  o["cvt.uu" + widths] = {convert<From, To, false, false>};
  o["cvt.us" + widths] = {convert<From, To, false, true>};
  o["cvt.su" + widths] = {convert<From, To, true, false>};
  o["cvt.ss" + widths] = {convert<From, To, true, true>};
}

template <typename T>
void add_arithmetic(Operations& o, const std::string& t) {
  using U = std::make_unsigned_t<T>;
  using Wide = std::conditional_t<sizeof(T) == 8, __int128, s64>;
  o["add." + t] = {binary<U, U, [](U a, U b) { return a + b; }>};
  o["sub." + t] = {binary<U, U, [](U a, U b) { return a - b; }>};
  o["mul.lo." + t] = {binary<U, U, [](U a, U b) { return static_cast<u64>(a) * b; }>};
  o["mul.hi." + t] = {
      binary<T, T, [](T a, T b) { return (static_cast<Wide>(a) * b >> (8 * sizeof(T))); }>};
  o["mad.lo." + t] = {
      ternary<U, U, U, U, [](U a, U b, U c) { return static_cast<u64>(a) * b + c; }>};
  o["div." + t] = {binary<T, T, divide<T>>};
  o["rem." + t] = {binary<T, T, remainder<T>>};
  o["min." + t] = {binary<T, T, [](T a, T b) { return std::min(a, b); }>};
  o["max." + t] = {binary<T, T, [](T a, T b) { return std::max(a, b); }>};
  o["neg." + t] = {unary<U, U, [](U a) { return 0 - a; }>};
  o["abs." + t] = {unary<T, T, [](T a) { return a < 0 ? 0 - a : a; }>};
  o["shr." + t] = {binary<T, T, shift_right<T>, u32>};
  add_comparisons<T>(o, t);
}

template <typename T, typename Twice>
void add_wide(Operations& o, const std::string& t) {
  o["mul.wide." + t] = {
      binary<Twice, T, [](T a, T b) { return static_cast<Twice>(a) * static_cast<Twice>(b); }>};
  o["mad.wide." + t] = {ternary<Twice, T, T, Twice, [](T a, T b, Twice c) {
    return static_cast<Twice>(a) * static_cast<Twice>(b) + c;
  }>};
}

// Two numbers side by side in one register.
template <typename Half, typename Whole>
void pack(Launch&, Warp& warp, Instruction& in, u32 lanes) {
  const Half *a = source<Half>(warp, in, 0), *b = source<Half>(warp, in, 1);
  Whole* d = target<Whole>(warp, in, 0);
  for_lanes(lanes, [&](int lane) {
    d[lane] = static_cast<Whole>(static_cast<Whole>(b[lane]) << (8 * sizeof(Half)) | a[lane]);
  });
}

template <typename Half, typename Whole>
void unpack(Launch&, Warp& warp, Instruction& in, u32 lanes) {
  Whole whole[kLanes];  // a target may be the source
  std::copy_n(source<Whole>(warp, in, 0), kLanes, whole);
  for (int k = 0; k < 2; ++k) {
    if (in.target[k] < 0) continue;
    Half* d = target<Half>(warp, in, k);
    for_lanes(lanes, [&](int lane) {
      d[lane] = static_cast<Half>(whole[lane] >> (8 * sizeof(Half) * k));
    });
  }
}

template <typename T>
void select(Launch&, Warp& warp, Instruction& in, u32 lanes) {
  const T *a = source<T>(warp, in, 0), *b = source<T>(warp, in, 1);
  const u32 first = predicate(warp, in, 2);
  T* d = target<T>(warp, in, 0);
  for_lanes(lanes, [&](int lane) { d[lane] = first >> lane & 1 ? a[lane] : b[lane]; });
}

template <typename T>
void insert_bits(Launch&, Warp& warp, Instruction& in, u32 lanes) {
  const T *a = source<T>(warp, in, 0), *b = source<T>(warp, in, 1);
  const u32 *position = source<u32>(warp, in, 2), *length = source<u32>(warp, in, 3);
  T* d = target<T>(warp, in, 0);
  for_lanes(lanes,
            [&](int lane) { d[lane] = insert(a[lane], b[lane], position[lane], length[lane]); });
}

template <typename T>
void add_bits(Operations& o, const std::string& bits) {
  using S = std::make_signed_t<T>;
  const std::string t = "b" + bits;
  o["and." + t] = {binary<T, T, [](T a, T b) { return a & b; }>};
  o["or." + t] = {binary<T, T, [](T a, T b) { return a | b; }>};
  o["xor." + t] = {binary<T, T, [](T a, T b) { return a ^ b; }>};
  o["not." + t] = {unary<T, T, [](T a) { return ~a; }>};
  o["mov." + t] = {unary<T, T, [](T a) { return a; }>};
  o["shl." + t] = {binary<T, T, shift_left<T>, u32>};
  o["selp." + t] = {select<T>};
  o["bfi." + t] = {insert_bits<T>};
  o["bfe.u" + bits] = {ternary<T, T, u32, u32, extract<T>>};
  o["bfe.s" + bits] = {ternary<S, S, u32, u32, extract<S>>};
  add_comparisons<T>(o, t);
}

template <auto kCombine>
void combine(Launch&, Warp& warp, Instruction& in, u32 lanes) {
  const u32 second = in.sources > 1 ? predicate(warp, in, 1) : 0;
  set_predicate(warp, in, 0, kCombine(predicate(warp, in, 0), second), lanes);
}

}  // namespace

void add_integers(Operations& o) {
  add_arithmetic<s16>(o, "s16");
  add_arithmetic<u16>(o, "u16");
  add_arithmetic<s32>(o, "s32");
  add_arithmetic<u32>(o, "u32");
  add_arithmetic<s64>(o, "s64");
  add_arithmetic<u64>(o, "u64");
  add_wide<s16, s32>(o, "s16");
  add_wide<u16, u32>(o, "u16");
  add_wide<s32, s64>(o, "s32");
  add_wide<u32, u64>(o, "u32");
  add_bits<u16>(o, "16");
  add_bits<u32>(o, "32");
  add_bits<u64>(o, "64");
  o["pack.16"] = {pack<u16, u32>};
  o["pack.32"] = {pack<u32, u64>};
  o["unpack.16"] = {unpack<u16, u32>};
  o["unpack.32"] = {unpack<u32, u64>};
  o["prmt.b32"] = {ternary<u32, u32, u32, u32, permute>};
  o["popc.b32"] = {unary<u32, u32, [](u32 a) { return __builtin_popcount(a); }>};
  o["clz.b32"] = {unary<u32, u32, [](u32 a) { return a ? __builtin_clz(a) : 32; }>};
  o["shf.l.wrap.b32"] = {ternary<u32, u32, u32, u32, [](u32 a, u32 b, u32 by) {
    return (static_cast<u32>((static_cast<u64>(b) << 32 | a) << (by & 31) >> 32));
  }>};
  o["shf.r.wrap.b32"] = {ternary<u32, u32, u32, u32, [](u32 a, u32 b, u32 by) {
    return (static_cast<u32>((static_cast<u64>(b) << 32 | a) >> (by & 31)));
  }>};
  add_conversion<u16, u16>(o);
  add_conversion<u16, u32>(o);
  add_conversion<u16, u64>(o);
  add_conversion<u32, u16>(o);
  add_conversion<u32, u32>(o);
  add_conversion<u32, u64>(o);
  add_conversion<u64, u16>(o);
  add_conversion<u64, u32>(o);
  add_conversion<u64, u64>(o);
  o["and.pred"] = {combine<[](u32 a, u32 b) { return a & b; }>};
  o["or.pred"] = {combine<[](u32 a, u32 b) { return a | b; }>};
  o["xor.pred"] = {combine<[](u32 a, u32 b) { return a ^ b; }>};
  o["not.pred"] = {combine<[](u32 a, u32) { return ~a; }>};
  o["mov.pred"] = {combine<[](u32 a, u32) { return a; }>};
}

}  // namespace ptx
