// SPDX-License-Identifier: MIT
//
// Blocks, warps and lanes take turns.
//
// The lanes of a warp run together as long as they are at one place. Where they have gone apart,
// those at the lowest place run first, until they meet the others: so loops and branches join again
// as a GPU joins them. Option `split` lets any of them run, which a GPU may do too.
#include "launch.h"

#include <algorithm>
#include <climits>
#include <cstring>
#include <numeric>
#include <stdexcept>

namespace ptx {

namespace {
u32 next_epoch = 1;
}

Options& options() {
  static Options options;
  return options;
}

Reports& reports() {
  static Reports reports;
  return reports;
}

bool Reports::add(const std::string& kernel, const Instruction& in, const std::string& kind) {
  return counts_[kernel + '\n' + kind + '\n' + std::to_string(in.line)]++ == 0;
}

void Reports::clear() {
  counts_.clear();
  text_.clear();
}

std::vector<Cost>& costs() {
  static std::vector<Cost> costs;
  return costs;
}

void Launch::report(const Warp& warp, int lane, const Instruction& in, const std::string& kind,
                    const std::string& more) {
  if (!reports().add(kernel_.name, in, kind)) return;
  reports().text(kind + (more.empty() ? "" : ": " + more) + "; " + in.name + " in line " +
                 std::to_string(in.line) + " (" + in.where + "), block " +
                 std::to_string(warp.block->index) + " thread " +
                 std::to_string(warp.index * kLanes + lane) + " of " + kernel_.name + "\n");
}

Launch::Launch(Kernel& kernel, u32 blocks, u32 threads, s64 shared_bytes,
               const void* const* parameters, s64 used_bytes)
    : kernel_(kernel),
      blocks_(blocks),
      threads_(threads),
      shared_bytes_(kernel.shared_bytes + shared_bytes),
      first_epoch_(next_epoch),
      parameters_(kernel.parameter_bytes()),
      used_bytes_(used_bytes < 0 ? parameters_.size() : static_cast<u64>(used_bytes)),
      random_(static_cast<u64>(options().seed)),
      last_(kernel.code.size()) {
  if (blocks == 0 || threads == 0 || threads % kLanes != 0 || threads > 1024) {
    throw std::runtime_error("expected blocks of whole warps, got " + std::to_string(blocks) +
                             " blocks of " + std::to_string(threads) + " threads");
  }
  for (size_t k = 0; k < kernel.parameters.size(); ++k) {
    const Parameter& own = kernel.parameters[k];
    const s64 used = std::min(own.bytes, static_cast<s64>(used_bytes_) - own.offset);
    if (used > 0) std::memcpy(&parameters_[own.offset], parameters[k], used);
  }
  waiting_blocks_.resize(blocks);
  std::iota(waiting_blocks_.rbegin(), waiting_blocks_.rend(), 0);  // taken from the end
  if (options().order == kBackward) std::reverse(waiting_blocks_.begin(), waiting_blocks_.end());
  if (options().order == kRandom) {
    std::shuffle(waiting_blocks_.begin(), waiting_blocks_.end(), random_);
  }
  cost_ = {
      kernel.name, blocks, threads, static_cast<u64>(shared_bytes_), 0, std::vector<u64>(blocks)};
}

void Launch::run() {
  for (s64 k = 0; k < std::max<s64>(options().resident, 1); ++k) start_block();
  while (!ready_.empty()) {
    if (options().order == kRandom) std::swap(ready_[random_() % ready_.size()], ready_.front());
    Warp& warp = *ready_.front();
    ready_.pop_front();
    const s64 most = std::max<s64>(options().quantum, 1);
    stop_warp(warp, run_warp(warp, options().order == kRandom ? 1 + random_() % most : most));
  }
  for (const auto& [index, block] : running_) {
    next_epoch = std::max(next_epoch, block->epoch + 1);
    for (const Warp& warp : block->warps) {
      if (warp.at_barrier) report_hang(warp, "waits at a barrier for good");
    }
  }
  costs().push_back(cost_);
  ++next_epoch;
}

void Launch::start_block() {
  if (waiting_blocks_.empty()) return;
  std::unique_ptr<Block> block;
  if (done_.empty()) {
    block = std::make_unique<Block>();
  } else {
    block = std::move(done_.back());
    done_.pop_back();
  }
  const int warps = static_cast<int>(threads_) / kLanes;
  std::vector<char> registers = std::move(block->registers);
  *block = Block{};
  block->index = waiting_blocks_.back();
  waiting_blocks_.pop_back();
  block->shared.assign(shared_bytes_, 0xff);
  block->cells.resize((shared_bytes_ >> kernel_.granule_shift) + 1);
  block->local.assign(kernel_.local_bytes * threads_, 0xff);
  block->local_written.assign(block->local.size(), 0);
  block->copies.resize(warps);
  block->groups.resize(threads_);
  registers.assign(kernel_.register_bytes * warps + 64, -1);  // bits that are no sensible number
  block->registers = std::move(registers);
  block->epoch = block->barrier = first_epoch_;
  block->alive = warps;
  block->warps.resize(warps);
  for (int k = 0; k < warps; ++k) start_warp(*block, k);
  for (int k = warps; k-- > 0;) {
    ready_.push_front(&block->warps[options().order == kBackward ? warps - 1 - k : k]);
  }
  running_[block->index] = std::move(block);
}

void Launch::start_warp(Block& block, int index) {
  Warp& warp = block.warps[index];
  char* first = block.registers.data();
  first += -reinterpret_cast<uintptr_t>(first) % 64;
  warp.registers = first + kernel_.register_bytes * index;
  warp.constants = kernel_.constants.data();
  warp.block = &block;
  warp.index = index;
  warp.reconverge = INT_MAX;
  for (u32 lane = 0; lane < kLanes; ++lane) {
    // the first registers, in the order of SPECIAL in bytecode.py
    const u32 special[] = {index * kLanes + lane,
                           0,
                           0,
                           threads_,
                           1,
                           1,
                           static_cast<u32>(block.index),
                           0,
                           0,
                           blocks_,
                           1,
                           1,
                           lane,
                           static_cast<u32>(index)};
    for (size_t k = 0; k < std::size(special); ++k) {
      reinterpret_cast<u32*>(warp.registers)[k * kLanes + lane] = special[k];
    }
  }
}

// Chooses the lanes to go on with; false where all wait or have ended.
bool Launch::choose_lanes(Warp& warp) {
  const u32 able = warp.live & ~warp.waiting;
  if (able == 0) return false;
  int lanes[kLanes], count = 0;
  for_lanes(able, [&](int lane) { lanes[count++] = lane; });
  int next = INT_MAX;
  if (options().split) {
    next = warp.at[lanes[random_() % count]];
  } else {
    for (int k = 0; k < count; ++k) next = std::min(next, warp.at[lanes[k]]);
  }
  warp.next = next;
  warp.active = 0;
  warp.reconverge = INT_MAX;
  for (int k = 0; k < count; ++k) {
    const int at = warp.at[lanes[k]];
    if (at == next) {
      warp.active |= 1u << lanes[k];
    } else {
      warp.reconverge = options().split ? 0 : std::min(warp.reconverge, at);
    }
  }
  return true;
}

void Launch::branch(Warp& warp, Instruction& in, u32 taken) {
  const s32* places = &kernel_.branches[in.branch];
  if (in.sources == 0 && (taken == warp.active || taken == 0)) {
    warp.next = taken ? places[0] : warp.next + 1;
    return;
  }
  for_lanes(warp.active, [&](int lane) {
    warp.at[lane] = warp.next + 1;
    if (!(taken >> lane & 1)) return;
    const u32 index = in.sources ? source<u32>(warp, in, 0)[lane] : 0;
    if (index >= static_cast<u32>(in.branches)) {
      report(warp, lane, in, "branch out of its table");
      return;
    }
    warp.at[lane] = places[index];
  });
  choose_lanes(warp);
}

// Lanes come to a barrier of the warp. True where all have come that it is for; else these wait.
bool Launch::meet(Warp& warp, Instruction& in, u32 lanes) {
  u32 here = lanes;
  for_lanes(warp.waiting & warp.live, [&](int lane) {
    if (warp.at[lane] == warp.next) here |= 1u << lane;
  });
  // a block's barrier is for all lanes, a warp's for those that its last operand names
  const bool block = in.control == Control::kBlockBarrier;
  const int first = __builtin_ctz(lanes);
  const u32 members = block ? warp.live : source<u32>(warp, in, in.sources - 1)[first];
  for_lanes(warp.active, [&](int lane) { warp.at[lane] = warp.next; });
  if ((here & members) != (members & warp.live)) {
    warp.waiting |= lanes;
    return false;
  }
  if (members & ~warp.live) report(warp, first, in, "warp barrier for lanes that have ended");
  warp.waiting &= ~here;
  if (block) {
    warp.at_barrier = true;
    return true;
  }
  in.run(*this, warp, in, here);
  for_lanes(here | warp.active, [&](int lane) { warp.at[lane] = warp.next + 1; });
  return true;
}

bool Launch::exit_lanes(Warp& warp, Instruction& in, u32 lanes) {
  for (const Copy& copy : warp.block->copies[warp.index]) {
    if (lanes >> copy.lane & 1) {
      report(warp, static_cast<int>(copy.lane), in, "cp.async that was never waited for");
      break;
    }
  }
  for_lanes(warp.active & ~lanes, [&](int lane) { warp.at[lane] = warp.next + 1; });
  warp.live &= ~lanes;
  return warp.live != 0;
}

Launch::Stop Launch::run_warp(Warp& warp, s64 instructions) {
  for (;;) {
    if (warp.next >= warp.reconverge) {
      for_lanes(warp.active, [&](int lane) { warp.at[lane] = warp.next; });
      choose_lanes(warp);
    }
    if (instructions-- == 0) return Stop::kPaused;
    Instruction& in = kernel_.code[warp.next];
    u32 lanes = warp.active;
    if (in.guard >= 0) {
      const u32 bits = *reinterpret_cast<u32*>(warp.registers + in.guard);
      lanes &= in.negated ? ~bits : bits;
    }
    ++in.counts.issued;
    in.counts.lanes += __builtin_popcount(lanes);
    ++warp.issued;
    switch (in.control) {
      case Control::kNone:
        if (lanes) in.run(*this, warp, in, lanes);
        ++warp.next;
        break;
      case Control::kBranch:
        branch(warp, in, lanes);
        break;
      case Control::kTrap:
        if (lanes) report(warp, __builtin_ctz(lanes), in, "trap");
        [[fallthrough]];
      case Control::kExit:
        if (lanes && !exit_lanes(warp, in, lanes)) return Stop::kExited;
        if (!lanes) {
          ++warp.next;
        } else if (!choose_lanes(warp)) {
          return Stop::kHangs;
        }
        break;
      case Control::kWarpBarrier:
      case Control::kBlockBarrier:
        if (lanes == warp.live && in.control == Control::kWarpBarrier) {
          in.run(*this, warp, in, lanes);
          ++warp.next;
        } else if (!lanes) {
          ++warp.next;
        } else if (meet(warp, in, lanes) && warp.at_barrier) {
          return Stop::kWaits;
        } else if (!choose_lanes(warp)) {
          return Stop::kHangs;
        }
        break;
    }
  }
}

void Launch::report_hang(const Warp& warp, const std::string& what) {
  std::string lines;
  for_lanes(warp.live, [&](int lane) {
    const std::string line = " " + std::to_string(kernel_.code[warp.at[lane]].line);
    if (lines.find(line) == std::string::npos) lines += line;
  });
  const int first = __builtin_ctz(warp.live);
  report(warp, first, kernel_.code[warp.at[first]], "hang: " + what, "lanes are in lines" + lines);
}

void Launch::stop_warp(Warp& warp, Stop stop) {
  Block& block = *warp.block;
  switch (stop) {
    case Stop::kPaused:
      for_lanes(warp.active, [&](int lane) { warp.at[lane] = warp.next; });
      if (warp.issued > static_cast<u64>(options().limit)) {
        report_hang(warp, "more than " + std::to_string(options().limit) + " instructions");
      } else {
        ready_.push_back(&warp);
      }
      return;
    case Stop::kHangs:
      report_hang(warp, "lanes of a warp wait at different places, or for lanes that have ended");
      return;
    case Stop::kWaits:
      if (++block.arrived == block.alive) pass_barrier(block);
      return;
    case Stop::kExited:
      cost_.issued[block.index] += warp.issued;
      if (--block.alive > 0) {
        if (block.arrived == block.alive) pass_barrier(block);
        return;
      }
      next_epoch = std::max(next_epoch, block.epoch + 1);
      const auto own = running_.find(block.index);
      done_.push_back(std::move(own->second));
      running_.erase(own);
      start_block();
  }
}

void Launch::pass_barrier(Block& block) {
  block.arrived = 0;
  ++cost_.barriers;
  block.barrier = ++block.epoch;
  for (const auto& [thread, known] : block.acquired) block.known.learn(known);
  block.acquired.clear();
  const int warps = static_cast<int>(block.warps.size());
  const Warp* first = nullptr;
  for (int k = warps; k-- > 0;) {
    Warp& warp = block.warps[options().order == kBackward ? warps - 1 - k : k];
    if (warp.live == 0) {
      report(warp, 0, kernel_.code[warp.next], "a warp ended before a barrier of its block");
      continue;
    }
    if (!warp.at_barrier) continue;  // it hangs, and that was reported
    if (first && first->next != warp.next) {
      report(warp, 0, kernel_.code[warp.next], "warps of a block meet at different barriers");
    }
    first = &warp;
    ready_.push_front(&warp);
  }
  for (Warp& warp : block.warps) {
    if (!warp.at_barrier) continue;
    warp.at_barrier = false;
    for_lanes(warp.live, [&](int lane) { ++warp.at[lane]; });
    choose_lanes(warp);
  }
}

}  // namespace ptx
