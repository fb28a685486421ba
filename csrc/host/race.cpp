// SPDX-License-Identifier: MIT
//
// One forward and one backward in the shim, to be compiled with ThreadSanitizer: silent as it is, a
// report for each piece of order left out. `race` prints the barriers reached, `race NAME` leaves
// one out.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <vector>

#include "../cuda/launch.h"
#include "../cuda/plan.h"
#include "shim.h"

using namespace fastsn;

extern "C" void fastsn_host_device(int blocks, int reversed);  // launch.cpp

namespace {

struct Weight {
  std::vector<int64_t> sizes;
  int64_t kind;
};

// Between them: strips of one tile and of several, one unfolding and two, groups of nine and
// others, rows that are added up by warps and by threads.
const std::vector<Weight> kWeights = {{{1, 11000}, kSN},       {{100, 130}, kSN},
                                      {{40, 36}, kSNVFirst},   {{70, 9}, kSN},
                                      {{300, 20, 3, 3}, kBSN}, {{24, 20, 4, 4}, kBSN}};

Views views_of(const Weight& weight) {
  std::vector<int64_t> strides(weight.sizes.size(), 1);
  for (size_t d = strides.size() - 1; d > 0; --d) strides[d - 1] = strides[d] * weight.sizes[d];
  return make_views(weight.sizes.data(), strides.data(), static_cast<int>(strides.size()), 0,
                    weight.kind);
}

std::vector<float> numbers(int64_t count) {
  std::vector<float> values(count);
  for (float& value : values) value = static_cast<float>(std::rand()) / RAND_MAX - 0.5f;
  return values;
}

void run() {
  ForwardPlan forward_plan(kFloat32, kWeights.size());
  BackwardPlan backward_plan(kFloat32, kWeights.size());
  std::vector<std::vector<float>> memory;
  const auto keep = [&](std::vector<float> values) {
    memory.push_back(std::move(values));
    return memory.back().data();
  };
  const auto vector_of = [&](int64_t size) { return GivenVector{keep(numbers(size)), kFloat32}; };
  for (const Weight& weight : kWeights) {
    const Views views = views_of(weight);
    const int64_t elements = views.view[0].rows * views.view[0].cols();
    GivenVector us[2], vs[2];
    for (int j = 0; j < views.count; ++j) {
      us[j] = vector_of(views.view[j].rows);
      vs[j] = vector_of(views.view[j].cols());
      if (weight.kind == kSNVFirst) std::swap(us[j], vs[j]);
    }
    float* weight_sn = keep(numbers(elements));
    forward_plan.add(views, 0, weight.kind, keep(numbers(elements)), weight_sn, 1.0, us, vs);
    backward_plan.add(views, 0, weight.kind, keep(numbers(elements)), weight_sn,
                      keep(numbers(elements)), 1.0);
  }
  std::vector<double> workspace(
      std::max(forward_plan.workspace_bytes(), backward_plan.workspace_bytes()) / 8);
  std::vector<float> sigmas(kWeights.size()), grad_scales(kWeights.size());
  std::vector<float> vectors(forward_plan.vector_entries()), view_stats(2 * forward_plan.views());
  for (ForwardTable& table : forward_plan.tables()) {
    table.iterations = 1;
    table.eps = 1e-12;
    table.out_dtype = kFloat32;
    table.store_vectors = true;
    table.workspace = workspace.data();
    table.sigmas = sigmas.data();
    table.vectors = vectors.data();
    table.view_stats = view_stats.data();
    run_forward(
        table, kFloat32, [](void* at, int64_t bytes) { fill_zeros(at, bytes, 0, nullptr); },
        [](const Launch& launch) { start(launch, 0, nullptr); });
  }
  for (BackwardTable& table : backward_plan.tables()) {
    table.grad_dtype = kFloat32;
    table.products = workspace.data();
    table.sigmas = sigmas.data();
    table.vectors = vectors.data();
    table.view_stats = view_stats.data();
    table.grad_scales = grad_scales.data();
    run_backward(table, kFloat32, [](const Launch& launch) { start(launch, 0, nullptr); });
  }
  std::fprintf(stderr, "sum of sigmas %g\n", std::accumulate(sigmas.begin(), sigmas.end(), 0.0));
}

}  // namespace

int main(int count, char** arguments) {
  if (count > 1) shim::omit_barrier(arguments[1]);
  fastsn_host_device(2, 0);
  run();
  if (count > 1) return 0;
  fastsn_host_device(3, 1);
  run();
  std::fputs(shim::barriers_reached(), stdout);
}
