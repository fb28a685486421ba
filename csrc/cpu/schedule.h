// SPDX-License-Identifier: MIT
//
// Runs all problems of a call on all threads, in one parallel region.
//
// A Job (one problem) is a sequence of phases, each made of independent units. A phase opens when
// the one before it is finished; whoever completes its last unit finishes it, so no thread waits
// while any job has work, and a job small enough is scaled while still in cache. What a unit does
// depends on the problem alone, never on who runs it: results have the same bits for any number of
// threads.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

namespace fastsn::cpu {

class Job {
 public:
  virtual ~Job() = default;
  // Memory that lives as long as the call, and memory that each thread has for a unit.
  virtual int64_t workspace_bytes() const = 0;
  virtual void set_workspace(char* workspace) = 0;
  virtual int64_t scratch_bytes() const = 0;

  virtual void run(int phase, int64_t unit, void* scratch) const = 0;
  virtual void finish(int phase, void* scratch) = 0;  // after all units of the phase

  // Takes and runs one unit; false if none is open.
  bool step(void* scratch);
  bool all_taken() const { return taken_.load(std::memory_order_relaxed) >= phase_ends_.back(); }
  int64_t units() const { return phase_ends_.back(); }

 protected:
  // Called before the job is run: how many phases there are, and once for each, in order.
  void reserve_phases(int count) { phase_ends_.reserve(count); }
  void add_phase(int64_t units);

 private:
  void complete(void* scratch);

  // Units are numbered through all phases.
  std::vector<int64_t> phase_ends_;
  int phase_ = 0;
  std::atomic<int64_t> taken_{0}, open_{0}, done_{0};
};

// `elements`: of all problems, a measure of the work.
void run_jobs(std::vector<Job*> jobs, int64_t elements);

}  // namespace fastsn::cpu
