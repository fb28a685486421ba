// SPDX-License-Identifier: MIT
//
// Memory that kernels may touch, and for each granule of it who wrote and read it last.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "bytecode.h"

namespace ptx {

// A thread of the launch that runs, or one of these.
constexpr u32 kNobody = 0, kHost = 1, kInFlight = 2, kFirstThread = 3, kManyBlocks = 0xffffffffu;
constexpr u32 kSeveral = 2047;  // in place of a thread's number: several threads of a block
inline u32 thread_id(int block, u32 thread) {
  return kFirstThread + (static_cast<u32>(block) << 11 | thread);
}
inline u32 block_of(u32 id) { return (id - kFirstThread) >> 11; }
inline u32 thread_of(u32 id) { return (id - kFirstThread) & 2047; }

// Epochs count up through all launches. In `written` the top bit tells of an atomic or other strong
// access.
constexpr u32 kStrong = 0x80000000u;
struct Cell {
  u32 writer = kNobody, written = 0;
  u32 reader = kNobody, read = 0;
};

struct Allocation {
  u64 base;
  s64 bytes;
  int shift;  // granules of 1 << shift bytes
  std::string name;
  std::vector<Cell> cells;

  s64 unwritten() const;                    // granules
  void write_by_host(u64 first, u64 last);  // granules
};

class Memory {
 public:
  Allocation& add(const void* base, s64 bytes, int granule, bool written, const std::string& name);
  void clear() { allocations_.clear(); }
  Allocation* find(u64 address);
  void write_by_host(const void* address, s64 bytes);
  std::string describe(u64 address);
  template <typename Function>
  void each(Function function) {
    for (auto& entry : allocations_) function(*entry.second);
  }

 private:
  std::map<u64, std::unique_ptr<Allocation>> allocations_;  // by base
};

Memory& memory();

// Up to which epoch what a block (all its threads), or one thread, has done is known to be done.
class Known {
  static constexpr u64 kBlockKey = 1;  // threads have their number, and nothing above it

 public:
  void learn_block(u32 block, u32 epoch) { learn(u64{block} << 32 | kBlockKey, epoch); }
  void learn_thread(u32 id, u32 epoch) { learn(id, epoch); }
  void learn(const Known& other) {
    for (const auto& [who, epoch] : other.until_) learn(who, epoch);
  }
  bool covers(u32 id, u32 epoch) const {
    return !until_.empty() && (epoch < get(u64{block_of(id)} << 32 | kBlockKey) || epoch < get(id));
  }

 private:
  void learn(u64 who, u32 epoch) {
    u32& until = until_[who];
    if (until < epoch) until = epoch;
  }
  u32 get(u64 who) const {
    const auto found = until_.find(who);
    return found == until_.end() ? 0 : found->second;
  }
  std::unordered_map<u64, u32> until_;
};

}  // namespace ptx
