// SPDX-License-Identifier: MIT
#include "schedule.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <thread>

#include "tiling.h"

namespace fastsn::cpu {

void Job::add_phase(int64_t units) {
  phase_ends_.push_back((phase_ends_.empty() ? 0 : phase_ends_.back()) + units);
  if (phase_ends_.size() == 1) open_.store(units, std::memory_order_relaxed);
}

bool Job::step(void* scratch) {
  int64_t unit = taken_.load(std::memory_order_relaxed);
  do {
    if (unit >= open_.load(std::memory_order_acquire)) return false;
  } while (!taken_.compare_exchange_weak(unit, unit + 1, std::memory_order_relaxed));
  // The phase cannot end before this unit is done, so phase_ is not being written.
  const int64_t begin = phase_ == 0 ? 0 : phase_ends_[phase_ - 1];
  // Every other phase runs backwards: it starts with what the one before has left in cache.
  const bool backwards = phase_ % 2 == 1;
  run(phase_, backwards ? phase_ends_[phase_] - 1 - unit : unit - begin, scratch);
  const int64_t end = phase_ends_[phase_];
  if (done_.fetch_add(1, std::memory_order_acq_rel) + 1 == end) complete(scratch);
  return true;
}

void Job::complete(void* scratch) {
  const int phases = static_cast<int>(phase_ends_.size());
  do {
    finish(phase_, scratch);
    if (phase_ + 1 == phases) return;
    ++phase_;
  } while (phase_ends_[phase_] == phase_ends_[phase_ - 1]);
  open_.store(phase_ends_[phase_], std::memory_order_release);
}

namespace {

// Blocks begin at a cache line.
constexpr int64_t kLine = 64;

int64_t round_up(int64_t bytes) { return (bytes + kLine - 1) / kLine * kLine; }

void work(const std::vector<Job*>& jobs, void* scratch) {
  size_t first = 0;
  int idle = 0;
  while (true) {
    while (first < jobs.size() && jobs[first]->all_taken()) ++first;
    if (first == jobs.size()) return;
    bool busy = false;
    for (size_t i = first; i < jobs.size() && !busy; ++i) busy = jobs[i]->step(scratch);
    // Another thread is about to open a phase, unless it has lost its processor.
    idle = busy ? 0 : idle + 1;
    if (idle > 1000) std::this_thread::yield();
  }
}

}  // namespace

void run_jobs(std::vector<Job*> jobs, int64_t elements) {
  // Large problems first: the small ones fill the time in which threads would wait for each other.
  std::stable_sort(jobs.begin(), jobs.end(),
                   [](const Job* a, const Job* b) { return a->units() > b->units(); });
  const int64_t threads =
      std::clamp<int64_t>(elements / kUnit, 1, torch::stable::get_num_threads());
  int64_t workspace = 0, scratch = 0;
  for (Job* job : jobs) {
    workspace += round_up(job->workspace_bytes());
    scratch = std::max(scratch, round_up(job->scratch_bytes()));
  }
  const auto memory = torch::stable::empty({workspace + threads * scratch + kLine},
                                           torch::headeronly::ScalarType::Byte);
  char* next = static_cast<char*>(memory.mutable_data_ptr());
  next += round_up(reinterpret_cast<intptr_t>(next)) - reinterpret_cast<intptr_t>(next);
  for (Job* job : jobs) {
    job->set_workspace(next);
    next += round_up(job->workspace_bytes());
  }
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) work(jobs, next + i * scratch);
  });
}

}  // namespace fastsn::cpu
