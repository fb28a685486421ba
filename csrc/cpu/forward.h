// SPDX-License-Identifier: MIT
//
// Forward of one weight: the power iteration of its views, then the division by sigma.
//
// Phases (see schedule.h): load the given vectors; one phase per pass over the weight; divide. View
// by view, forward.cpp says what a pass does and what follows it, view_state.h what a pass adds up.
#pragma once

#include "schedule.h"
#include "view_state.h"

namespace fastsn::cpu {

// One weight as the caller gave it.
struct ForwardProblem {
  Views views;
  int64_t kind;
  int64_t n_power_iterations;
  double eps;
  double scale;
  const void* weight;
  DType dtype;
  void* weight_sn;
  DType out_dtype;
  int64_t numel;
};

template <typename R>
class ForwardJob final : public Job {
 public:
  // `slots`: u and v of every view. sigma [1] and view_stats [views, 2] are results.
  void set(const ForwardProblem& problem, const VectorSlot* slots, R* sigma, R* view_stats);

  int64_t workspace_bytes() const override;
  void set_workspace(char* workspace) override;
  int64_t scratch_bytes() const override;
  void run(int phase, int64_t unit, void* scratch) const override;
  void finish(int phase, void* scratch) override;

 private:
  struct Active {
    const ViewState<R>* view;
    Step step;
  };

  void run_pass(int pass, int64_t unit, R* scratch) const;
  void run_tile(const Active* active, int count, int64_t unit, R* scratch) const;
  void divide_unit(int64_t unit) const;
  void finish_step(ViewState<R>& view, Step step, R* scratch);
  void repeat(const ViewState<R>& view, Step step, R* scratch) const;
  double finish_s(ViewState<R>& view, double factor) const;
  double finish_t(ViewState<R>& view, double factor) const;
  void evaluate(ViewState<R>& view, R* scratch) const;
  void finish_views();
  double norm(const R* x, int64_t n) const;

  const Kernels<R>& kernels_ = kernels<R>();
  ForwardProblem problem_;
  ViewState<R> views_[2];
  int view_count_ = 0;
  bool shared_ = false;  // the tiles are whole rows and serve both views
  int passes_ = 0;
  R* sigma_result_ = nullptr;
  R* stats_result_ = nullptr;
  double sigma_ = 0;
};

}  // namespace fastsn::cpu
