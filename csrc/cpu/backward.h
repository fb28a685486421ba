// SPDX-License-Identifier: MIT
//
// Backward of one weight, two passes over G = dL/dW_sn:
//   c = <G, W_sn>,   dL/dW = (scale G - (c - g sigma) sum_d alpha_d fold_d(u_d v_d^T)) / sigma
#pragma once

#include "levels.h"
#include "schedule.h"
#include "tiling.h"

namespace fastsn::cpu {

// One weight as the caller gave it.
struct BackwardProblem {
  Views views;
  int64_t kind;
  double scale;
  double grad_sigma;
  const void* grad;
  const void* weight_sn;
  DType dtype;  // of both
  void* grad_weight;
  DType grad_dtype;
  int64_t numel;
};

template <typename R>
class BackwardJob final : public Job {
 public:
  // vectors: u and v of every view, one after the other; view_stats [views, 2]; grad_scale is a
  // result.
  void set(const BackwardProblem& problem, const R* sigma, const R* vectors, const R* view_stats,
           R* grad_scale);

  int64_t workspace_bytes() const override;
  void set_workspace(char* workspace) override;
  int64_t scratch_bytes() const override;
  void run(int phase, int64_t unit, void* scratch) const override;
  void finish(int phase, void* scratch) override;

 private:
  // fold(u v^T) for a matrix stored by rows, [rows, cols], or by slabs, [outer, rows, inner].
  struct Term {
    bool present = false;
    View view;
    const R* u;
    const R* v;   // in torch's order
    R* memory_v;  // in memory order where that is another, else null
    double alpha;
    R factor;

    const R* columns() const { return memory_v == nullptr ? v : memory_v; }
  };

  void multiply_unit(int64_t unit) const;
  void write_tile(const Tile& tile, R* scratch) const;

  const Kernels<R>& kernels_ = kernels<R>();
  BackwardProblem problem_;
  double sigma_ = 0;
  R* grad_scale_ = nullptr;
  Term by_rows_, by_slabs_;
  Tiling tiling_;
  int64_t slabs_per_row_ = 1;
  double* products_ = nullptr;  // [units], the parts of c
  R scale_over_sigma_ = 0;
};

}  // namespace fastsn::cpu
