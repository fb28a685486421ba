// SPDX-License-Identifier: MIT
//
// Bounds, alignment, memory that nobody wrote, copies on their way, and races.
//
// A race is an access that nothing orders behind another thread's access to the same granule, where
// one of the two writes and not both are strong. Barriers of a block order its threads, barriers of
// a warp its lanes; between blocks, an acquire orders what was done before the release it reads.
#include <cstring>

#include "launch.h"

namespace ptx {

namespace {

std::string name_of(u32 who) {
  const std::string block = "block " + std::to_string(block_of(who));
  if (thread_of(who) == kSeveral) return "several threads of " + block;
  return block + " thread " + std::to_string(thread_of(who));
}

u32 self_of(const Warp& warp, int lane) {
  return thread_id(warp.block->index, static_cast<u32>(warp.index * kLanes + lane));
}

}  // namespace

// Whether what `who` did in an epoch is done for thread `self` of a warp.
bool Launch::is_before(const Warp& warp, u32 self, u32 who, u32 epoch) const {
  epoch &= ~kStrong;
  if (who < kFirstThread || epoch < first_epoch_ || who == self) return true;
  const Block& block = *warp.block;
  if (block_of(who) == static_cast<u32>(block.index)) {
    if (epoch < block.barrier) return true;
    if (thread_of(who) / kLanes == static_cast<u32>(warp.index) && epoch < warp.synced) return true;
  }
  if (block.known.covers(who, epoch)) return true;
  const auto acquired = block.acquired.find(self);
  return acquired != block.acquired.end() && acquired->second.covers(who, epoch);
}

template <typename Place>
void Launch::note_read(Warp& warp, int lane, Instruction& in, Cell& cell, Place place) {
  const u32 self = self_of(warp, lane);
  const Block& block = *warp.block;
  if (cell.writer == kNobody) return report(warp, lane, in, "read of what nobody wrote", place());
  if (cell.writer == kInFlight) {
    return report(warp, lane, in, "read of a cp.async that was not waited for", place());
  }
  const bool both_strong = in.access.strong && (cell.written & kStrong);
  if (!both_strong && !is_before(warp, self, cell.writer, cell.written)) {
    report(warp, lane, in, "race: reads what another thread writes",
           place() + ", by " + name_of(cell.writer));
  }
  if (in.access.strong) return;
  const u32 several = thread_id(block.index, kSeveral);
  const auto join = [&](u32& reader, u32& epoch) {  // of the same block
    reader = reader == self || epoch != block.epoch ? self : several;
    epoch = block.epoch;
  };
  if (cell.reader == kManyBlocks) {
    auto& all = readers_[&cell];
    for (auto& [reader, epoch] : all) {
      if (block_of(reader) == static_cast<u32>(block.index)) return join(reader, epoch);
    }
    all.push_back({self, block.epoch});
  } else if (cell.reader >= kFirstThread && cell.read >= first_epoch_ &&
             block_of(cell.reader) == static_cast<u32>(block.index)) {
    join(cell.reader, cell.read);
  } else if (is_before(warp, self, cell.reader, cell.read)) {
    cell.reader = self;
    cell.read = block.epoch;
  } else {
    readers_[&cell] = {{cell.reader, cell.read}, {self, block.epoch}};
    cell.reader = kManyBlocks;
  }
}

template <typename Place>
void Launch::note_write(Warp& warp, int lane, Instruction& in, Cell& cell, bool equal,
                        Place place) {
  const u32 self = self_of(warp, lane);
  if (cell.writer == kInFlight) {
    report(warp, lane, in, "write over a cp.async that was not waited for", place());
  }
  const bool both_strong = in.access.strong && (cell.written & kStrong);
  if (!equal && !both_strong && !is_before(warp, self, cell.writer, cell.written)) {
    const bool same_warp = (cell.writer - kFirstThread) / kLanes == (self - kFirstThread) / kLanes;
    report(warp, lane, in,
           same_warp ? "race: lanes of a warp write to one place"
                     : "race: writes over what another thread writes",
           place() + ", by " + name_of(cell.writer));
  }
  const auto check_reader = [&](u32 reader, u32 epoch) {
    if (is_before(warp, self, reader, epoch)) return;
    report(warp, lane, in, "race: writes over what another thread reads",
           place() + ", by " + name_of(reader));
  };
  if (cell.reader == kManyBlocks) {
    for (const auto& [reader, epoch] : readers_[&cell]) check_reader(reader, epoch);
    readers_.erase(&cell);
  } else {
    check_reader(cell.reader, cell.read);
  }
  cell = {self, warp.block->epoch | (in.access.strong ? kStrong : 0), kNobody, 0};
}

u8* Launch::at(Warp& warp, int lane, Instruction& in, u64 address, int bytes, bool write,
               const void* value) {
  // generic addresses: shared memory and parameters have ranges of their own
  const Space space = in.access.space;
  if (space == kShared || (space == kGeneric && address < (1u << 24))) {
    return shared_at(warp, lane, in, address, bytes, write, value);
  }
  if (address >> 60 == kLocalBase >> 60) return local_at(warp, lane, in, address, bytes, write);
  if (space != kParameter && address >> 60 != kParameterBase >> 60) {
    return global_at(warp, lane, in, address, bytes, write, value);
  }
  const u64 offset = address - kParameterBase;
  if (write || offset + static_cast<u64>(bytes) > parameters_.size() || offset % bytes != 0) {
    report(warp, lane, in, "access out of bounds", "parameters + " + std::to_string(offset));
    return nullptr;
  }
  if (offset + static_cast<u64>(bytes) > used_bytes_) {
    report(warp, lane, in, "read of what nobody wrote", "parameters + " + std::to_string(offset));
  }
  return &parameters_[offset];
}

u8* Launch::local_at(Warp& warp, int lane, Instruction& in, u64 address, int bytes, bool write) {
  const u64 offset = address - kLocalBase, size = kernel_.local_bytes;
  const auto place = [&] { return "local memory + " + std::to_string(offset); };
  if (offset + bytes > size || offset % bytes != 0) {
    report(warp, lane, in, write ? "write out of bounds" : "read out of bounds", place());
    return nullptr;
  }
  Block& block = *warp.block;
  const u64 first = (warp.index * kLanes + lane) * size + offset;
  for (int k = 0; k < bytes; ++k) {
    u8& written = block.local_written[first + k];
    if (!write && !written) report(warp, lane, in, "read of what nobody wrote", place());
    written |= write;
  }
  return &block.local[first];
}

u8* Launch::global_at(Warp& warp, int lane, Instruction& in, u64 address, int bytes, bool write,
                      const void* value) {
  Allocation*& own = last_[&in - kernel_.code.data()];
  if (!own || address - own->base >= static_cast<u64>(own->bytes)) own = memory().find(address);
  const auto place = [&] { return memory().describe(address); };
  if (!own || address - own->base + bytes > static_cast<u64>(own->bytes)) {
    report(warp, lane, in, write ? "write out of bounds" : "read out of bounds", place());
    return nullptr;
  }
  if (address % bytes != 0) {
    report(warp, lane, in, "misaligned access", place());
    return nullptr;
  }
  u8* const host = reinterpret_cast<u8*>(address);
  const bool equal = value && options().equal_writes && std::memcmp(host, value, bytes) == 0;
  const u64 first = (address - own->base) >> own->shift;
  const u64 last = (address - own->base + bytes - 1) >> own->shift;
  for (u64 k = first; k <= last; ++k) {
    write ? note_write(warp, lane, in, own->cells[k], equal, place)
          : note_read(warp, lane, in, own->cells[k], place);
  }
  return host;
}

u8* Launch::shared_at(Warp& warp, int lane, Instruction& in, u64 address, int bytes, bool write,
                      const void* value) {
  Block& block = *warp.block;
  const u64 offset = address - kSharedBase;
  const auto place = [&] {
    return "shared memory + " + std::to_string(static_cast<s64>(offset)) + " of " +
           std::to_string(shared_bytes_) + " bytes";
  };
  if (address < kSharedBase || offset + bytes > static_cast<u64>(shared_bytes_)) {
    report(warp, lane, in, write ? "write out of bounds" : "read out of bounds", place());
    return nullptr;
  }
  if (address % bytes != 0) {
    report(warp, lane, in, "misaligned access", place());
    return nullptr;
  }
  u8* const host = block.shared.data() + offset;
  const bool equal = value && options().equal_writes && std::memcmp(host, value, bytes) == 0;
  const int shift = kernel_.granule_shift;
  for (u64 k = offset >> shift; k <= (offset + bytes - 1) >> shift; ++k) {
    write ? note_write(warp, lane, in, block.cells[k], equal, place)
          : note_read(warp, lane, in, block.cells[k], place);
  }
  return host;
}

// The first `given` bytes are copied, and zeros behind them.
void Launch::begin_copy(Warp& warp, int lane, Instruction& in, u64 to, u64 from, u32 bytes,
                        u32 given) {
  u8* const host = shared_at(warp, lane, in, to, static_cast<int>(bytes), true);
  if (!host || (given && !global_at(warp, lane, in, from, static_cast<int>(bytes), false))) return;
  Block& block = *warp.block;
  if (options().early_copies) {
    std::memcpy(host, reinterpret_cast<const void*>(from), given);
    std::memset(host + given, 0, bytes - given);
  }
  const u64 offset = to - kSharedBase;
  const int shift = kernel_.granule_shift;
  for (u64 k = offset >> shift; k <= (offset + bytes - 1) >> shift; ++k) {
    block.cells[k].writer = kInFlight;
  }
  block.copies[warp.index].push_back({from, static_cast<u32>(to), bytes, bytes - given,
                                      static_cast<u32>(lane),
                                      block.groups[warp.index * kLanes + lane]});
}

// All copies but those of the last `pending` groups of each lane; of no group too if that is -1.
void Launch::finish_copies(Warp& warp, u32 lanes, s64 pending) {
  Block& block = *warp.block;
  auto& copies = block.copies[warp.index];
  const auto is_finished = [&](const Copy& copy) {
    const s64 groups = block.groups[warp.index * kLanes + copy.lane];
    if (!(lanes >> copy.lane & 1) || (pending >= 0 && copy.group >= groups - pending)) return false;
    const u64 offset = copy.to - kSharedBase;
    u8* const host = block.shared.data() + offset;
    if (!options().early_copies) {
      std::memcpy(host, reinterpret_cast<const void*>(copy.from), copy.bytes - copy.zeros);
      std::memset(host + copy.bytes - copy.zeros, 0, copy.zeros);
    }
    const int shift = kernel_.granule_shift;
    for (u64 k = offset >> shift; k <= (offset + copy.bytes - 1) >> shift; ++k) {
      block.cells[k] = {self_of(warp, static_cast<int>(copy.lane)), block.epoch, kNobody, 0};
    }
    return true;
  };
  std::erase_if(copies, is_finished);
}

// All that happened before what a lane does now, itself included.
Known Launch::all_known(const Warp& warp, int lane) const {
  const Block& block = *warp.block;
  const u32 self = self_of(warp, lane);
  Known all = block.known;
  all.learn_block(static_cast<u32>(block.index), block.barrier);
  for (int k = 0; warp.synced && k < kLanes; ++k) all.learn_thread(self_of(warp, k), warp.synced);
  all.learn_thread(self, block.epoch + 1);
  const auto acquired = block.acquired.find(self);
  if (acquired != block.acquired.end()) all.learn(acquired->second);
  return all;
}

void Launch::release(Warp& warp, int lane, u64 address, bool fenced_only) {
  Block& block = *warp.block;
  if (!fenced_only) {
    released_[address].learn(all_known(warp, lane));
    ++block.epoch;
    return;
  }
  const auto fenced = block.fenced.find(self_of(warp, lane));
  if (fenced != block.fenced.end()) released_[address].learn(fenced->second);
}

void Launch::acquire(Warp& warp, int lane, u64 address, bool until_fence) {
  const auto released = released_.find(address);
  if (released == released_.end()) return;
  Block& block = *warp.block;
  (until_fence ? block.seen : block.acquired)[self_of(warp, lane)].learn(released->second);
}

void Launch::fence(Warp& warp, u32 lanes) {
  Block& block = *warp.block;
  for_lanes(lanes, [&](int lane) {
    const u32 self = self_of(warp, lane);
    const auto seen = block.seen.find(self);
    if (seen != block.seen.end()) block.acquired[self].learn(seen->second);
    block.fenced[self] = all_known(warp, lane);
  });
  ++block.epoch;
}

// A barrier of the warp's lanes: what each knows, all know.
void Launch::sync_warp(Warp& warp, u32 lanes) {
  Block& block = *warp.block;
  if (lanes != warp.live) return;  // of a part of the warp nothing is made
  warp.synced = ++block.epoch;
  if (block.acquired.empty()) return;
  Known all;
  for_lanes(lanes, [&](int lane) {
    const auto own = block.acquired.find(self_of(warp, lane));
    if (own != block.acquired.end()) all.learn(own->second);
  });
  for_lanes(lanes, [&](int lane) { block.acquired[self_of(warp, lane)].learn(all); });
}

}  // namespace ptx
