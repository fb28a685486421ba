// SPDX-License-Identifier: MIT
//
// Instructions as the machine runs them (tests/ptx/bytecode.py writes them), and their operands.
//
// A warp's registers lie in one piece of memory: 32 numbers for each register, or 32 bits for a
// predicate. An operand is the offset of a register, or, where it is negative, a constant.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

namespace ptx {

using s8 = int8_t;
using s16 = int16_t;
using s32 = int32_t;
using s64 = int64_t;
using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using f32 = float;
using f64 = double;

constexpr int kLanes = 32;
constexpr u32 kAllLanes = 0xffffffffu;
constexpr int kConstantBytes = 8 * kLanes;

class Launch;
struct Warp;
struct Instruction;
using Handler = void (*)(Launch&, Warp&, Instruction&, u32 lanes);

// What an instruction asks of the scheduler, besides what its handler does.
enum class Control : u8 { kNone, kBranch, kExit, kTrap, kBlockBarrier, kWarpBarrier };

struct Operation {
  Handler run = nullptr;
  Control control = Control::kNone;
};

enum Space : s32 { kGlobal, kShared, kParameter, kGeneric, kLocal };

// How an instruction reaches memory.
struct Access {
  Space space = kGlobal;
  s32 count = 1;           // numbers per lane
  s32 bytes = 4;           // of each number in memory
  s32 register_bytes = 4;  // and in its register
  bool is_signed = false;
  bool acquire = false, release = false;
  bool strong = false;  // atomic, volatile or relaxed: no race with others of its kind
};

// What has been counted; sectors and conflicts where memory is reached.
struct Counts {
  u64 issued = 0;   // by warps
  u64 lanes = 0;    // by threads
  u64 bytes = 0;    // asked for
  u64 sectors = 0;  // of 32 bytes; in shared memory: turns that the banks take
  u64 least = 0;    // with which as many bytes could be had
};

struct Instruction {
  Handler run = nullptr;
  Control control = Control::kNone;
  bool negated = false;  // the guard
  s32 guard = -1;        // a predicate, or -1
  s32 targets = 0, sources = 0;
  s32 target[8], source[10];
  s64 immediate = 0;              // offset of an address, number of pending copies, way to combine
  s32 second = 0;                 // the other offset of a copy
  s32 branch = -1, branches = 0;  // the first place among the kernel's, and how many to choose from
  s32 line = 0;                   // of the PTX
  Access access;
  Counts counts;
  std::string name, where;  // where: file:line of the source
};

struct Parameter {
  s64 offset, bytes;
};

struct Kernel {
  std::string name;
  std::vector<Parameter> parameters;
  s64 register_bytes = 0, shared_bytes = 0;
  s64 local_bytes = 0;    // of each thread
  s32 granule_shift = 2;  // of the smallest access to shared memory
  std::vector<Instruction> code;
  std::vector<s32> branches;    // places in the code
  std::vector<char> constants;  // each 32 times, in kConstantBytes

  s64 parameter_bytes() const {
    return parameters.empty() ? 0 : parameters.back().offset + parameters.back().bytes;
  }
};

// Reads a kernel, and throws std::runtime_error with all that is not supported.
std::unique_ptr<Kernel> read_kernel(const std::string& text);

using Operations = std::unordered_map<std::string, Operation>;
void add_integers(Operations& operations);
void add_floats(Operations& operations);
void add_accesses(Operations& operations);
void add_shuffles(Operations& operations);

struct Block;

struct Warp {
  char* registers = nullptr;
  const char* constants = nullptr;
  Block* block = nullptr;
  int index = 0;  // in the block
  u32 live = kAllLanes;
  u32 waiting = 0;         // lanes that wait at a barrier for the others
  u32 active = kAllLanes;  // lanes that run, at `next`
  int next = 0;
  int reconverge = 0;   // `next` may not pass it without a look at the other lanes
  int at[kLanes] = {};  // of lanes that do not run
  u32 synced = 0;       // epoch of the last warp barrier
  bool at_barrier = false;
  u64 issued = 0;
};

template <typename T>
T* target(Warp& warp, const Instruction& in, int k) {
  return reinterpret_cast<T*>(warp.registers + in.target[k]);
}

template <typename T>
const T* source(const Warp& warp, const Instruction& in, int k) {
  const s64 s = in.source[k];
  return reinterpret_cast<const T*>(s >= 0 ? warp.registers + s
                                           : warp.constants + kConstantBytes * (-1 - s));
}

inline u32 predicate(const Warp& warp, const Instruction& in, int k) {
  return *source<u32>(warp, in, k);
}

inline void set_predicate(Warp& warp, const Instruction& in, int k, u32 value, u32 lanes) {
  if (k >= in.targets || in.target[k] < 0) return;
  u32& bits = *target<u32>(warp, in, k);
  bits = (bits & ~lanes) | (value & lanes);
}

template <typename Function>
void for_lanes(u32 lanes, Function function) {
  if (lanes == kAllLanes) {
#pragma GCC ivdep
    for (int lane = 0; lane < kLanes; ++lane) function(lane);
  } else {
    for (; lanes; lanes &= lanes - 1) function(__builtin_ctz(lanes));
  }
}

}  // namespace ptx
