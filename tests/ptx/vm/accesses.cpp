// SPDX-License-Identifier: MIT
//
// Loads, stores, atomics and asynchronous copies; and what they cost.
#include <algorithm>
#include <cstring>

#include "launch.h"

namespace ptx {
namespace {

// Addresses in shared memory are mostly in 32-bit registers: `narrow` in bytecode.py.
void addresses(const Warp& warp, const Instruction& in, int k, s64 offset, bool narrow,
               u64* result) {
  for (int lane = 0; lane < kLanes; ++lane) {
    result[lane] =
        offset + (narrow ? source<u32>(warp, in, k)[lane] : source<u64>(warp, in, k)[lane]);
  }
}

void count_global(Counts& counts, const u64* address, u32 lanes, u32 bytes) {
  u64 sectors[2 * kLanes];
  int count = 0;
  for_lanes(lanes, [&](int lane) {
    const u64 last = (address[lane] + bytes - 1) / 32;
    for (u64 sector = address[lane] / 32; sector <= last; ++sector) {
      if (std::find(sectors, sectors + count, sector) == sectors + count) {
        sectors[count++] = sector;
      }
    }
  });
  const u32 all = static_cast<u32>(__builtin_popcount(lanes)) * bytes;
  counts.bytes += all;
  counts.sectors += count;
  counts.least += (all + 31) / 32;
}

// Each of 32 banks serves one word of 4 bytes at a time. Lanes come all at once, those with 8 bytes
// in halves of a warp, those with 16 in quarters.
void count_shared(Counts& counts, const u64* address, u32 lanes, u32 bytes) {
  const int step = bytes <= 4 ? 32 : bytes == 8 ? 16 : 8;
  for (int first = 0; first < kLanes; first += step) {
    u32 words[kLanes][kLanes], count[kLanes] = {}, most = 0;
    for (int lane = first; lane < first + step; ++lane) {
      if (!(lanes >> lane & 1)) continue;
      for (u64 word = address[lane] / 4; word <= (address[lane] + bytes - 1) / 4; ++word) {
        u32* own = words[word % 32];
        u32& n = count[word % 32];
        if (std::find(own, own + n, static_cast<u32>(word)) == own + n) {
          own[n++] = static_cast<u32>(word);
        }
        most = std::max(most, n);
      }
    }
    counts.sectors += most;
    counts.least += most > 0;
  }
  counts.bytes += static_cast<u32>(__builtin_popcount(lanes)) * bytes;
}

void count(Instruction& in, const u64* address, u32 lanes, u32 bytes) {
  const u64 any = address[__builtin_ctz(lanes)];
  if (any >> 60 == kParameterBase >> 60 || any >> 60 == kLocalBase >> 60) return;
  const bool shared = in.access.space == kShared || any < (1u << 24);
  (shared ? count_shared : count_global)(in.counts, address, lanes, bytes);
}

s64 extend(u64 value, s32 bytes) {
  const int unused = 64 - 8 * bytes;
  return static_cast<s64>(value << unused) >> unused;
}

template <typename Register>
void load_into(Launch& launch, Warp& warp, Instruction& in, u32 lanes, const u64* address) {
  const Access& access = in.access;
  for_lanes(lanes, [&](int lane) {
    const u8* host = launch.at(warp, lane, in, address[lane], access.count * access.bytes, false);
    for (int k = 0; k < access.count; ++k) {
      if (in.target[k] < 0) continue;
      u64 value = 0;
      if (host) std::memcpy(&value, host + k * access.bytes, access.bytes);
      if (access.is_signed) value = static_cast<u64>(extend(value, access.bytes));
      target<Register>(warp, in, k)[lane] = static_cast<Register>(host ? value : ~u64{0});
    }
  });
}

template <bool kNarrow>
void load(Launch& launch, Warp& warp, Instruction& in, u32 lanes) {
  u64 address[kLanes];
  addresses(warp, in, 0, in.immediate, kNarrow, address);
  const Access& access = in.access;
  if (access.register_bytes == 4) {
    load_into<u32>(launch, warp, in, lanes, address);
  } else if (access.register_bytes == 8) {
    load_into<u64>(launch, warp, in, lanes, address);
  } else {
    load_into<u16>(launch, warp, in, lanes, address);
  }
  if (access.strong) {
    for_lanes(lanes, [&](int lane) { launch.acquire(warp, lane, address[lane], !access.acquire); });
  }
  count(in, address, lanes, access.count * access.bytes);
}

template <bool kNarrow>
void store(Launch& launch, Warp& warp, Instruction& in, u32 lanes) {
  u64 address[kLanes];
  addresses(warp, in, 0, in.immediate, kNarrow, address);
  const Access& access = in.access;
  const int bytes = access.count * access.bytes;
  for_lanes(lanes, [&](int lane) {
    u8 value[64];
    for (int k = 0; k < access.count; ++k) {
      const char* own = source<char>(warp, in, 1 + k) + lane * access.register_bytes;
      std::memcpy(value + k * access.bytes, own, access.bytes);
    }
    u8* host = launch.at(warp, lane, in, address[lane], bytes, true, value);
    if (host) std::memcpy(host, value, bytes);
    if (access.strong) launch.release(warp, lane, address[lane], !access.release);
  });
  count(in, address, lanes, bytes);
}

template <typename T, auto kFunction, bool kNarrow>
void atomic(Launch& launch, Warp& warp, Instruction& in, u32 lanes) {
  u64 address[kLanes];
  addresses(warp, in, 0, in.immediate, kNarrow, address);
  const T* operand = source<T>(warp, in, 1);
  const T* other = source<T>(warp, in, in.sources > 2 ? 2 : 1);
  for_lanes(lanes, [&](int lane) {
    u8* host = launch.at(warp, lane, in, address[lane], sizeof(T), true);
    if (!host) return;
    T old;
    std::memcpy(&old, host, sizeof old);
    const T value = static_cast<T>(kFunction(old, operand[lane], other[lane]));
    std::memcpy(host, &value, sizeof value);
    if (in.targets > 0 && in.target[0] >= 0) target<T>(warp, in, 0)[lane] = old;
    launch.acquire(warp, lane, address[lane], !in.access.acquire);
    launch.release(warp, lane, address[lane], !in.access.release);
  });
  count(in, address, lanes, sizeof(T));
}

// cp.async: target, source, and the number of bytes to copy before zeros.
template <bool kNarrow>
void copy(Launch& launch, Warp& warp, Instruction& in, u32 lanes) {
  u64 to[kLanes], from[kLanes];
  addresses(warp, in, 0, in.immediate, kNarrow, to);
  addresses(warp, in, 1, in.second, false, from);
  const u32 bytes = static_cast<u32>(in.access.bytes);
  u32 copied = 0;
  for_lanes(lanes, [&](int lane) {
    const u32 given = in.sources > 2 ? source<u32>(warp, in, 2)[lane] : bytes;
    if (given) copied |= 1u << lane;
    launch.begin_copy(warp, lane, in, to[lane], from[lane], bytes, given);
  });
  if (copied) count_global(in.counts, from, copied, bytes);
}

template <typename T, auto kFunction>
void add_atomic(Operations& o, const std::string& name) {
  o["atom." + name] = {atomic<T, kFunction, false>};
  o["atom." + name + ".narrow"] = {atomic<T, kFunction, true>};
}

template <typename T>
void add_atomics(Operations& o, const std::string& t) {
  add_atomic<T, [](T old, T x, T) { return old + x; }>(o, "add." + t);
  add_atomic<T, [](T old, T x, T) { return std::max(old, x); }>(o, "max." + t);
  add_atomic<T, [](T old, T x, T) { return std::min(old, x); }>(o, "min." + t);
  add_atomic<T, [](T old, T most, T) { return old >= most ? 0 : old + 1; }>(o, "inc." + t);
}

template <typename T>
void add_exchanges(Operations& o, const std::string& t) {
  add_atomic<T, [](T, T x, T) { return x; }>(o, "exch." + t);
  add_atomic<T, [](T old, T expected, T x) { return old == expected ? x : old; }>(o, "cas." + t);
  add_atomic<T, [](T old, T x, T) { return old | x; }>(o, "or." + t);
  add_atomic<T, [](T old, T x, T) { return old & x; }>(o, "and." + t);
}

}  // namespace

void count_matrix(Instruction& in, const u64* rows) {
  u64 address[kLanes];
  std::copy_n(rows, 8, address);
  count_shared(in.counts, address, 0xff, 16);
}

void add_accesses(Operations& o) {
  o["ld"] = {load<false>};
  o["ld.narrow"] = {load<true>};
  o["st"] = {store<false>};
  o["st.narrow"] = {store<true>};
  o["cp.async"] = {copy<false>};
  o["cp.async.narrow"] = {copy<true>};
  o["cp.async.commit_group"] = {[](Launch&, Warp& warp, Instruction&, u32 lanes) {
    for_lanes(lanes, [&](int lane) { ++warp.block->groups[warp.index * kLanes + lane]; });
  }};
  o["cp.async.wait"] = {[](Launch& launch, Warp& warp, Instruction& in, u32 lanes) {
    launch.finish_copies(warp, lanes, in.immediate);
  }};
  o["fence"] = {
      [](Launch& launch, Warp& warp, Instruction&, u32 lanes) { launch.fence(warp, lanes); }};
  add_atomics<u32>(o, "u32");
  add_atomics<s32>(o, "s32");
  add_atomics<u64>(o, "u64");
  add_exchanges<u32>(o, "b32");
  add_exchanges<u64>(o, "b64");
}

}  // namespace ptx
