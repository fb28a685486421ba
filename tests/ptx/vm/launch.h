// SPDX-License-Identifier: MIT
//
// One launch: blocks of warps that take turns, and the checks of what they do to memory.
#pragma once

#include <deque>
#include <map>
#include <random>

#include "memory.h"

namespace ptx {

enum Order : s64 { kForward, kBackward, kRandom };

// How launches run: every order that is chosen here is one that a GPU may choose.
struct Options {
  s64 order = kForward;  // of blocks and warps
  s64 seed = 1;
  s64 resident = 4;      // blocks at a time
  s64 quantum = 5000;    // instructions until another warp runs, at random up to so many
  s64 split = 0;         // 1: of lanes that went apart any may run, not those that are behind
  s64 early_copies = 0;  // cp.async copies when it is asked for; 0: when it is waited for
  s64 equal_writes = 0;  // 1: threads may write one value to one place without order
  s64 absent_line = 0;   // the instruction in this line of the PTX does nothing
  s64 limit = 1 << 20;   // instructions of a warp, after which it counts as hanging
};
Options& options();

// Everything that was found, each kind once for each line.
class Reports {
 public:
  bool add(const std::string& kernel, const Instruction& in, const std::string& kind);
  void text(const std::string& line) { text_ += line; }
  const std::string& text() const { return text_; }
  void clear();

 private:
  std::map<std::string, u64> counts_;
  std::string text_;
};
Reports& reports();

struct Copy {  // of cp.async, on its way
  u64 from;
  u32 to, bytes, zeros;
  u32 lane, group;
};

struct Block {
  int index = 0;
  std::vector<u8> shared;
  std::vector<u8> local, local_written;  // of each thread
  std::vector<Cell> cells;               // of shared memory
  std::vector<Warp> warps;
  std::vector<std::vector<Copy>> copies;  // of each warp
  std::vector<u32> groups;                // of copies, by thread
  std::vector<char> registers;
  u32 epoch = 0;                            // counts whatever orders
  u32 barrier = 0;                          // epoch of the last barrier
  Known known;                              // to all threads
  std::unordered_map<u32, Known> acquired;  // by a thread since the last barrier
  std::unordered_map<u32, Known> fenced;    // what a thread's relaxed atomics release
  std::unordered_map<u32, Known> seen;      // what they saw, to be acquired by a fence
  int alive = 0, arrived = 0;
};

// What a launch cost.
struct Cost {
  std::string kernel;
  u32 blocks, threads;
  u64 shared_bytes, barriers = 0;
  std::vector<u64> issued;  // instructions of warps, by block
};
std::vector<Cost>& costs();

class Launch {
 public:
  Launch(Kernel& kernel, u32 blocks, u32 threads, s64 shared_bytes, const void* const* parameters,
         s64 used_bytes);
  void run();

  void report(const Warp& warp, int lane, const Instruction& in, const std::string& kind,
              const std::string& more = "");

  // Host addresses of what a lane reaches, after all checks; null where it may not.
  u8* at(Warp& warp, int lane, Instruction& in, u64 address, int bytes, bool write,
         const void* value = nullptr);
  u8* shared_at(Warp& warp, int lane, Instruction& in, u64 address, int bytes, bool write,
                const void* value = nullptr);
  u8* local_at(Warp& warp, int lane, Instruction& in, u64 address, int bytes, bool write);
  u8* global_at(Warp& warp, int lane, Instruction& in, u64 address, int bytes, bool write,
                const void* value = nullptr);

  // Copies of cp.async: their target is in flight until they are waited for.
  void begin_copy(Warp& warp, int lane, Instruction& in, u64 to, u64 from, u32 bytes, u32 given);
  void finish_copies(Warp& warp, u32 lanes, s64 pending);

  // What atomics and fences order between blocks.
  void release(Warp& warp, int lane, u64 address, bool fenced_only);
  void acquire(Warp& warp, int lane, u64 address, bool until_fence);
  void fence(Warp& warp, u32 lanes);
  void sync_warp(Warp& warp, u32 lanes);

 private:
  enum class Stop { kExited, kWaits, kPaused, kHangs };

  void start_block();
  void start_warp(Block& block, int index);
  Stop run_warp(Warp& warp, s64 instructions);
  bool choose_lanes(Warp& warp);
  void branch(Warp& warp, Instruction& in, u32 taken);
  bool meet(Warp& warp, Instruction& in, u32 lanes);
  bool exit_lanes(Warp& warp, Instruction& in, u32 lanes);
  void stop_warp(Warp& warp, Stop stop);
  void pass_barrier(Block& block);
  void report_hang(const Warp& warp, const std::string& what);

  bool is_before(const Warp& warp, u32 self, u32 who, u32 epoch) const;
  Known all_known(const Warp& warp, int lane) const;
  template <typename Place>
  void note_read(Warp& warp, int lane, Instruction& in, Cell& cell, Place place);
  template <typename Place>
  void note_write(Warp& warp, int lane, Instruction& in, Cell& cell, bool equal, Place place);

  Kernel& kernel_;
  const u32 blocks_, threads_;
  const s64 shared_bytes_;
  u32 first_epoch_;
  std::vector<u8> parameters_;
  const u64 used_bytes_;  // of them
  std::vector<int> waiting_blocks_;
  std::map<int, std::unique_ptr<Block>> running_;
  std::deque<Warp*> ready_;
  std::vector<std::unique_ptr<Block>> done_;  // to be used again
  std::mt19937_64 random_;
  std::unordered_map<const Cell*, std::vector<std::pair<u32, u32>>> readers_;  // of several blocks
  std::unordered_map<u64, Known> released_;                                    // by address
  std::vector<Allocation*> last_;  // what each instruction reached
  Cost cost_;
};

constexpr u64 kSharedBase = 1024;  // no pointer to shared memory is null
constexpr u64 kParameterBase = 0x5000000000000000, kLocalBase = 0x6000000000000000;

}  // namespace ptx
