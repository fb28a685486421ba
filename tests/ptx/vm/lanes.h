// SPDX-License-Identifier: MIT
//
// Operations whose every lane computes by itself.
#pragma once

#include <functional>

#include "bytecode.h"

namespace ptx {

template <typename Result, typename A, auto kFunction>
void unary(Launch&, Warp& warp, Instruction& in, u32 lanes) {
  const A* a = source<A>(warp, in, 0);
  Result* d = target<Result>(warp, in, 0);
  for_lanes(lanes, [&](int lane) { d[lane] = static_cast<Result>(kFunction(a[lane])); });
}

template <typename Result, typename A, auto kFunction, typename B = A>
void binary(Launch&, Warp& warp, Instruction& in, u32 lanes) {
  const A* a = source<A>(warp, in, 0);
  const B* b = source<B>(warp, in, 1);
  Result* d = target<Result>(warp, in, 0);
  for_lanes(lanes, [&](int lane) { d[lane] = static_cast<Result>(kFunction(a[lane], b[lane])); });
}

template <typename Result, typename A, typename B, typename C, auto kFunction>
void ternary(Launch&, Warp& warp, Instruction& in, u32 lanes) {
  const A* a = source<A>(warp, in, 0);
  const B* b = source<B>(warp, in, 1);
  const C* c = source<C>(warp, in, 2);
  Result* d = target<Result>(warp, in, 0);
  for_lanes(lanes,
            [&](int lane) { d[lane] = static_cast<Result>(kFunction(a[lane], b[lane], c[lane])); });
}

enum Combine : s64 { kAlone, kAnd, kOr, kXor };

// `setp`: a predicate and its complement, each combined with another predicate if there is one.
template <typename T, auto kCompare>
void compare(Launch&, Warp& warp, Instruction& in, u32 lanes) {
  const T *a = source<T>(warp, in, 0), *b = source<T>(warp, in, 1);
  u32 result = 0;
  for_lanes(lanes,
            [&](int lane) { result |= static_cast<u32>(kCompare(a[lane], b[lane])) << lane; });
  const u32 other = in.immediate == kAlone ? 0 : predicate(warp, in, 2);
  const auto combined = [&](u32 x) {
    if (in.immediate == kAnd) return x & other;
    if (in.immediate == kOr) return x | other;
    return in.immediate == kXor ? x ^ other : x;
  };
  set_predicate(warp, in, 0, combined(result), lanes);
  set_predicate(warp, in, 1, combined(~result), lanes);
}

template <typename T>
void add_comparisons(Operations& o, const std::string& t) {
  o["setp.eq." + t] = {compare<T, std::equal_to<>{}>};
  // of numbers that may be NaN, false where one is
  o["setp.ne." + t] = {compare<T, [](T a, T b) { return (a < b || a > b); }>};
  for (const char* name : {"setp.lt.", "setp.lo."}) o[name + t] = {compare<T, std::less<>{}>};
  for (const char* name : {"setp.le.", "setp.ls."}) o[name + t] = {compare<T, std::less_equal<>{}>};
  for (const char* name : {"setp.gt.", "setp.hi."}) o[name + t] = {compare<T, std::greater<>{}>};
  for (const char* name : {"setp.ge.", "setp.hs."}) {
    o[name + t] = {compare<T, std::greater_equal<>{}>};
  }
}

}  // namespace ptx
