// SPDX-License-Identifier: MIT
#include "shim.h"

#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#if defined(__SANITIZE_THREAD__)
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
// The scheduler works between fibers without any order that a GPU would give: it is not looked at.
#define FASTSN_UNSEEN __attribute__((no_sanitize("thread"), noinline))
constexpr int kUnwritten = 0;  // what reads shared memory too early goes on, to be reported
#else
#define FASTSN_UNSEEN
constexpr int kUnwritten = 0xff;  // as floating point, NaN: it cannot pass for a result
inline void* __tsan_get_current_fiber() { return nullptr; }
inline void* __tsan_create_fiber(unsigned) { return nullptr; }
inline void __tsan_destroy_fiber(void*) {}
inline void __tsan_switch_to_fiber(void*, unsigned) {}
inline void __tsan_acquire(void*) {}
inline void __tsan_release(void*) {}
#endif

namespace fastsn {
namespace shim {
namespace {

constexpr size_t kStackBytes = 64 * 1024;
constexpr unsigned kNoOrder = 1;  // a switch of fibers is no synchronization

struct Barrier {
  int expected = 0;
  int arrived = 0;
  unsigned generation = 0;
  char order[2] =
      {};  // what ThreadSanitizer orders by: an address for odd generations, one for even
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  void* sanitizer = nullptr;
  int block = 0;
  int thread = 0;
  bool done = false;
  Barrier* waits_at = nullptr;
  unsigned waits_for = 0;  // the generation that ends the wait
};

// One launch at a time. Plain arrays: the scheduler must not call functions that are looked at.
struct Machine {
  Fiber* fibers = nullptr;
  Barrier* barriers = nullptr;  // each block's, then each warp's
  unsigned char** shared = nullptr;
  double* warp_values = nullptr;
  int blocks = 0;  // at once
  int first_block = 0;
  int step = 1;
  int count = 0;
  int current = 0;
  ucontext_t host;
  void* host_sanitizer = nullptr;
  char start_order = 0;
  char end_order = 0;
  const std::function<void()>* kernel = nullptr;
};

Machine machine;
std::string omitted;
std::string omitted_file;
unsigned omitted_line = 0;
bool omitted_arrive = false;
int at_once = 2;
bool reversed = false;
char counter_order = 0;  // what ThreadSanitizer orders by where threads meet at counters

struct Site {
  const char* file;
  unsigned line;
};
constexpr int kMostSites = 64;
Site sites[kMostSites];  // block barriers that were reached
int site_count = 0;

FASTSN_UNSEEN Fiber& self() { return machine.fibers[machine.current]; }

FASTSN_UNSEEN bool ready(const Fiber& fiber) {
  return !fiber.done &&
         (fiber.waits_at == nullptr || fiber.waits_at->generation == fiber.waits_for);
}

// Runs the next fiber that can go on, or the host when all are done.
FASTSN_UNSEEN void switch_away() {
  Fiber& old = self();
  bool all_done = true;
  for (int k = 1; k <= machine.count; ++k) {
    const int next = (machine.current + k) % machine.count;
    all_done = all_done && machine.fibers[next].done;
    if (!ready(machine.fibers[next])) continue;
    if (next == machine.current) return;
    machine.current = next;
    __tsan_switch_to_fiber(machine.fibers[next].sanitizer, kNoOrder);
    swapcontext(&old.context, &machine.fibers[next].context);
    return;
  }
  if (!all_done) {
    std::fprintf(stderr, "fastsn shim: expected all threads at the barrier, got a deadlock\n");
    std::abort();
  }
  __tsan_switch_to_fiber(machine.host_sanitizer, kNoOrder);
  swapcontext(&old.context, &machine.host);
}

FASTSN_UNSEEN Barrier& barrier_of(Scope scope) {
  const Fiber& fiber = self();
  if (scope == Scope::kBlock) return machine.barriers[fiber.block];
  return machine.barriers[machine.blocks + fiber.block * kWarps + fiber.thread / kWarp];
}

void run_fiber() {
  __tsan_acquire(&machine.start_order);
  (*machine.kernel)();
  self().done = true;
  __tsan_release(&machine.end_order);
  switch_away();
}

const char* file_name(const char* path) {
  const char* slash = std::strrchr(path, '/');
  return slash == nullptr ? path : slash + 1;
}

FASTSN_UNSEEN bool is_omitted(Scope scope, const std::source_location& where) {
  if (scope == Scope::kWarp) return false;
  return where.line() == omitted_line &&
         std::strcmp(file_name(where.file_name()), omitted_file.c_str()) == 0;
}

FASTSN_UNSEEN void note_site(const std::source_location& where) {
  for (int k = 0; k < site_count; ++k) {
    if (sites[k].line == where.line() && sites[k].file == where.file_name()) return;
  }
  if (site_count < kMostSites) sites[site_count++] = {where.file_name(), where.line()};
}

}  // namespace

FASTSN_UNSEEN void wait(Scope scope, const std::source_location& where) {
  if (scope == Scope::kBlock) note_site(where);
  if (is_omitted(scope, where)) return;
  Barrier& barrier = barrier_of(scope);
  char* order = &barrier.order[barrier.generation % 2];
  __tsan_release(order);
  if (++barrier.arrived == barrier.expected) {
    barrier.arrived = 0;
    ++barrier.generation;
  } else {
    Fiber& fiber = self();
    fiber.waits_at = &barrier;
    fiber.waits_for = barrier.generation + 1;
    switch_away();
    fiber.waits_at = nullptr;
  }
  __tsan_acquire(order);
}

FASTSN_UNSEEN double* warp_values() {
  const Fiber& fiber = self();
  return machine.warp_values + (fiber.block * kWarps + fiber.thread / kWarp) * kWarp;
}

void check_aligned(const void* address, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(address) % bytes == 0) return;
  std::fprintf(stderr, "fastsn shim: expected an address aligned to %zu bytes, got %p\n", bytes,
               address);
  std::abort();
}

void set_order(int blocks_at_once, bool in_reverse) {
  at_once = blocks_at_once;
  reversed = in_reverse;
}

namespace {

// Blocks at once. Those that follow each other are not ordered for ThreadSanitizer either, nor is
// the host before the last has ended: until then nothing is freed.
struct Wave {
  std::vector<Fiber> fibers;
  std::vector<Barrier> barriers;
  std::vector<double> warp_values;
};

void run_blocks(int count, unsigned char** shared, Wave& wave) {
  wave.fibers = std::vector<Fiber>(count * kThreads);
  wave.barriers = std::vector<Barrier>(count + count * kWarps);
  wave.warp_values = std::vector<double>(count * kThreads);
  auto& [fibers, barriers, warp_values] = wave;
  for (int k = 0; k < count; ++k) barriers[k].expected = kThreads;
  for (int k = 0; k < count * kWarps; ++k) barriers[count + k].expected = kWarp;
  machine.fibers = fibers.data();
  machine.barriers = barriers.data();
  machine.shared = shared;
  machine.warp_values = warp_values.data();
  machine.blocks = count;
  machine.count = count * kThreads;
  for (int k = 0; k < machine.count; ++k) {
    Fiber& fiber = fibers[k];
    fiber.block = k / kThreads;
    fiber.thread = k % kThreads;
    fiber.stack.reset(new char[kStackBytes]);
    fiber.sanitizer = __tsan_create_fiber(0);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, run_fiber, 0);
  }
  __tsan_release(&machine.start_order);
  machine.current = 0;
  __tsan_switch_to_fiber(fibers[0].sanitizer, kNoOrder);
  swapcontext(&machine.host, &fibers[0].context);
  for (Fiber& fiber : fibers) __tsan_destroy_fiber(fiber.sanitizer);
}

}  // namespace

void launch(int blocks, int64_t shared_bytes, const std::function<void()>& kernel) {
  machine.kernel = &kernel;
  machine.host_sanitizer = __tsan_get_current_fiber();
  machine.step = reversed ? -1 : 1;
  std::vector<std::unique_ptr<unsigned char[]>> memory(blocks);
  std::vector<unsigned char*> shared(blocks);
  std::vector<Wave> waves((blocks + at_once - 1) / at_once);
  for (int done = 0; done < blocks; done += at_once) {
    const int count = std::min(at_once, blocks - done);
    machine.first_block = reversed ? blocks - 1 - done : done;
    for (int k = done; k < done + count; ++k) {
      memory[k].reset(new unsigned char[shared_bytes]);
      std::memset(memory[k].get(), kUnwritten, shared_bytes);
      shared[k] = memory[k].get();
    }
    run_blocks(count, &shared[done], waves[done / at_once]);
  }
  __tsan_acquire(&machine.end_order);
}

void omit_barrier(const char* name) {
  omitted_line = 0;
  omitted = name == nullptr ? "" : name;
  omitted_arrive = omitted == "arrive";
  if (omitted.rfind("block ", 0) == 0) {
    const size_t colon = omitted.rfind(':');
    omitted_file = omitted.substr(6, colon - 6);
    omitted_line = static_cast<unsigned>(std::atoi(omitted.c_str() + colon + 1));
  }
}

const char* barriers_reached() {
  static std::string text;
  text.clear();
  for (int k = 0; k < site_count; ++k) {
    text += std::string("block ") + file_name(sites[k].file) + ":" + std::to_string(sites[k].line) +
            "\n";
  }
  return text.c_str();
}

}  // namespace shim

FASTSN_UNSEEN int thread_index() { return shim::self().thread; }
FASTSN_UNSEEN int block_index() {
  return shim::machine.first_block + shim::machine.step * shim::self().block;
}
FASTSN_UNSEEN unsigned char* shared_memory() { return shim::machine.shared[shim::self().block]; }

// Fibers run one at a time, so plain memory does; it is not looked at.
FASTSN_UNSEEN uint32_t arrive(uint32_t* counter) {
  if (!shim::omitted_arrive) __tsan_release(&shim::counter_order);
  const uint32_t old = (*counter)++;
  if (!shim::omitted_arrive) __tsan_acquire(&shim::counter_order);
  return old;
}

float widen(BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

BFloat16 to_bfloat16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  if (std::isnan(x)) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

float widen(Float16 x) {
  const int exponent = x.bits >> 10 & 31;
  const int mantissa = x.bits & 1023;
  const float sign = x.bits >> 15 ? -1.0f : 1.0f;
  if (exponent == 31) return mantissa ? std::nanf("") : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(mantissa), -24);
  return sign * std::ldexp(static_cast<float>(1024 + mantissa), exponent - 25);
}

Float16 to_float16(float x) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  if (std::isnan(x)) return {0x7fff};
  const float size = std::fabs(x);
  if (size >= 65520.0f) return {static_cast<uint16_t>(sign | 0x7c00)};
  // In units of the last place, rounded to even. A carry into the exponent is where it belongs.
  const int exponent = size < 6.103515625e-05f ? -14 : std::ilogb(size);
  const auto units = static_cast<int>(std::nearbyint(std::ldexp(size, 10 - exponent)));
  return {static_cast<uint16_t>(sign | ((exponent + 14) * 1024 + units))};
}

}  // namespace fastsn
