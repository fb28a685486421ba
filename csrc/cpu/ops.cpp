// SPDX-License-Identifier: MIT
//
// The ops of namespace fastsn_cpu: arguments checked, results allocated, jobs run.
#include <Python.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <string>
#include <tuple>

#include "../arguments.h"
#include "../schema.h"
#include "backward.h"
#include "forward.h"

namespace fastsn::cpu {
namespace {

using Tensors = std::vector<Tensor>;

int64_t total_elements(const Tensors& tensors) {
  int64_t elements = 0;
  for (const Tensor& tensor : tensors) elements += tensor.numel();
  return elements;
}

template <typename R>
R* data(const Tensor& tensor) {
  return static_cast<R*>(tensor.mutable_data_ptr());
}

// Elements of a floating-point vector.
std::vector<double> to_doubles(const Tensor& tensor, Name name) {
  std::vector<double> values(tensor.numel());
  kernels<double>().convert_from(tensor.const_data_ptr(), to_dtype(tensor.scalar_type(), name),
                                 tensor.numel(), values.data());
  return values;
}

template <typename SomeJob>
void run(std::vector<SomeJob>& jobs, const Tensors& weights) {
  std::vector<Job*> order;
  order.reserve(jobs.size());
  for (SomeJob& job : jobs) order.push_back(&job);
  run_jobs(order, total_elements(weights));
}

// The new vectors, per view u, then v, into those that were given.
template <typename R>
void store_vectors(const R* vector, const Tensors& us, const Tensors& vs) {
  for (size_t j = 0; j < us.size(); ++j) {
    for (const Tensor* given : {&us[j], &vs[j]}) {
      const DType dtype = to_dtype(given->scalar_type(), {"us"});
      kernels<R>().convert_to(vector, given->numel(), given->mutable_data_ptr(), dtype);
      vector += given->numel();
    }
  }
}

template <typename R>
std::tuple<Tensors, Tensor, Tensor, Tensor> run_forward(
    const Weights& settings, const Tensors& weights, const Tensors& us, const Tensors& vs,
    const std::vector<int64_t>& kinds, const std::vector<double>& scales, int64_t n, double eps,
    DType out_dtype, bool store, const std::vector<Tensor>& memory,
    const std::vector<double>& bounds) {
  const size_t k = weights.size();
  const Tensor sigmas = settings.new_tensor({static_cast<int64_t>(k)}, dtype_of<R>);
  const Tensor vectors = settings.new_tensor({settings.vector_elements}, dtype_of<R>);
  const Tensor view_stats =
      settings.new_tensor({static_cast<int64_t>(settings.view_count), 2}, dtype_of<R>);
  size_t used = 0;  // of memory
  Tensors weights_sn;
  weights_sn.reserve(k);
  R* vector = data<R>(vectors);
  R* stats = data<R>(view_stats);
  std::vector<ForwardJob<R>> jobs(k);
  int64_t view = 0;
  for (size_t i = 0; i < k; ++i) {
    weights_sn.push_back(settings.new_like(weights[i], out_dtype, memory, used));
    VectorSlot slots[4];
    const Views& views = settings.views[i];
    const int64_t first = view;
    for (int d = 0; d < views.count; ++d, ++view) {
      const bool swapped = kinds[i] == kSNVFirst;
      const int64_t sizes[2] = {views.view[d].rows, views.view[d].cols()};
      for (int side = 0; side < 2; ++side) {
        const Name name{side == 0 ? "us" : "vs", view};
        const Tensor& given = (side == 0 ? us : vs)[view];
        const int64_t size = sizes[swapped ? 1 - side : side];
        settings.check_vector(given, name, size);
        slots[2 * d + side] = {given.const_data_ptr(), to_dtype(given.scalar_type(), name), vector};
        vector += size;
      }
    }
    const ForwardProblem problem{views,
                                 kinds[i],
                                 n,
                                 eps,
                                 scales[i],
                                 weights[i].const_data_ptr(),
                                 settings.dtype,
                                 weights_sn[i].mutable_data_ptr(),
                                 out_dtype,
                                 weights[i].numel(),
                                 bounds.empty() ? 0.0 : bounds[i]};
    jobs[i].set(problem, slots, data<R>(sigmas) + i, stats + 2 * first);
  }
  run(jobs, weights);
  if (store) store_vectors(data<R>(vectors), us, vs);
  return {weights_sn, sigmas, vectors, view_stats};
}

void check_bounds(const std::vector<double>& bounds, size_t k) {
  if (bounds.empty()) return;
  check_length("bounds", bounds.size(), k);
  for (size_t i = 0; i < k; ++i) {
    STD_TORCH_CHECK(bounds[i] >= 0, "fastsn: expected bounds[", i, "] to be 0 or more, got ",
                    bounds[i]);
  }
}

std::tuple<Tensors, Tensor, Tensor, Tensor> forward(
    Tensors weights, Tensors us, Tensors vs, std::vector<int64_t> dims, std::vector<int64_t> kinds,
    std::vector<double> scales, std::optional<Tensor> scale_tensor, int64_t n_power_iterations,
    double eps, std::optional<ScalarType> out_dtype, bool store_vectors, std::vector<Tensor> memory,
    std::vector<double> bounds) {
  check_bounds(bounds, weights.size());
  const Weights settings(weights, "weights", dims, kinds, scales, scale_tensor);
  check_length("us", us.size(), settings.view_count);
  check_length("vs", vs.size(), settings.view_count);
  STD_TORCH_CHECK(n_power_iterations >= 0,
                  "fastsn: expected n_power_iterations to be 0 or more, got ", n_power_iterations);
  if (scale_tensor.has_value()) scales = to_doubles(*scale_tensor, {"scale_tensor"});
  const DType out = out_dtype.has_value() ? to_dtype(*out_dtype, {"out_dtype"}) : settings.dtype;
  const auto run = settings.dtype == kFloat64 ? run_forward<double> : run_forward<float>;
  return run(settings, weights, us, vs, kinds, scales, n_power_iterations, eps, out, store_vectors,
             memory, bounds);
}

template <typename R>
std::tuple<Tensors, Tensor> run_backward(
    const Weights& settings, const Tensors& grads, const std::vector<double>& grad_sigmas,
    const Tensors& weights_sn, const Tensor& sigmas, const Tensor& vectors,
    const Tensor& view_stats, const std::vector<int64_t>& kinds, const std::vector<double>& scales,
    DType grad_dtype, const std::vector<Tensor>& memory, const std::vector<double>& bounds) {
  const size_t k = grads.size();
  size_t used = 0;  // of memory
  Tensors grad_weights;
  grad_weights.reserve(k);
  const Tensor grad_scales = settings.new_tensor({static_cast<int64_t>(k)}, dtype_of<R>);
  const R* vector = data<R>(vectors);
  const R* stats = data<R>(view_stats);
  std::vector<BackwardJob<R>> jobs(k);
  for (size_t i = 0; i < k; ++i) {
    grad_weights.push_back(settings.new_like(weights_sn[i], grad_dtype, memory, used));
    const BackwardProblem problem{settings.views[i],
                                  kinds[i],
                                  scales[i],
                                  grad_sigmas.empty() ? 0.0 : grad_sigmas[i],
                                  grads[i].const_data_ptr(),
                                  weights_sn[i].const_data_ptr(),
                                  settings.dtype,
                                  grad_weights[i].mutable_data_ptr(),
                                  grad_dtype,
                                  weights_sn[i].numel(),
                                  bounds.empty() ? 0.0 : bounds[i]};
    jobs[i].set(problem, data<R>(sigmas) + i, vector, stats, data<R>(grad_scales) + i);
    for (int d = 0; d < settings.views[i].count; ++d) {
      vector += settings.views[i].view[d].rows + settings.views[i].view[d].cols();
      stats += 2;
    }
  }
  run(jobs, grads);
  return {grad_weights, grad_scales};
}

std::tuple<Tensors, Tensor> backward(Tensors grads, std::optional<Tensor> grad_sigmas,
                                     Tensors weights_sn, Tensor sigmas, Tensor vectors,
                                     Tensor view_stats, std::vector<int64_t> dims,
                                     std::vector<int64_t> kinds, std::vector<double> scales,
                                     std::optional<Tensor> scale_tensor, ScalarType grad_dtype,
                                     std::vector<Tensor> memory, std::vector<double> bounds) {
  check_bounds(bounds, grads.size());
  const Weights settings(weights_sn, "weights_sn", dims, kinds, scales, scale_tensor);
  check_grads(settings, grads, weights_sn);
  const DType accumulate = to_dtype(sigmas.scalar_type(), {"sigmas"});
  STD_TORCH_CHECK(accumulate == kFloat32 || accumulate == kFloat64,
                  "fastsn: expected sigmas to be float32 or float64, got ",
                  torch::headeronly::toString(sigmas.scalar_type()));
  settings.check_vector(sigmas, {"sigmas"}, static_cast<int64_t>(grads.size()));
  settings.check_vector(vectors, {"vectors"}, settings.vector_elements);
  settings.check_vector(view_stats, {"view_stats"}, static_cast<int64_t>(2 * settings.view_count));
  STD_TORCH_CHECK(vectors.scalar_type() == sigmas.scalar_type() &&
                      view_stats.scalar_type() == sigmas.scalar_type(),
                  "fastsn: expected vectors and view_stats to have the dtype of sigmas, ",
                  torch::headeronly::toString(sigmas.scalar_type()), ", got ",
                  torch::headeronly::toString(vectors.scalar_type()), " and ",
                  torch::headeronly::toString(view_stats.scalar_type()));
  std::vector<double> sigma_grads;
  if (grad_sigmas.has_value()) {
    settings.check_vector(*grad_sigmas, {"grad_sigmas"}, static_cast<int64_t>(grads.size()));
    sigma_grads = to_doubles(*grad_sigmas, {"grad_sigmas"});
  }
  if (scale_tensor.has_value()) scales = to_doubles(*scale_tensor, {"scale_tensor"});
  const DType grad = to_dtype(grad_dtype, {"grad_dtype"});
  const auto run = accumulate == kFloat64 ? run_backward<double> : run_backward<float>;
  return run(settings, grads, sigma_grads, weights_sn, sigmas, vectors, view_stats, kinds, scales,
             grad, memory, bounds);
}

std::vector<std::string> simd_levels() {
  std::vector<std::string> names;
  for (const Level& level : levels()) names.push_back(level.name);
  return names;
}

std::string simd_level() { return level().name; }

void set_simd_level(std::string name) {
  std::string names;
  for (const Level& level : levels()) {
    if (name == level.name) return set_level(level);
    names += (names.empty() ? "" : ", ") + std::string(level.name);
  }
  STD_TORCH_CHECK(false, "fastsn: expected an instruction set of this processor (", names,
                  "), got ", name);
}

}  // namespace
}  // namespace fastsn::cpu

STABLE_TORCH_LIBRARY(fastsn_cpu, m) {
  m.def(fastsn::kForwardSchema);
  m.def(fastsn::kBackwardSchema);
  // For tests and diagnostics: the instruction sets of this processor, and the one in use.
  m.def("simd_levels() -> str[]");
  m.def("simd_level() -> str");
  m.def("set_simd_level(str name) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastsn_cpu, CPU, m) {
  m.impl("forward", TORCH_BOX(&fastsn::cpu::forward));
  m.impl("backward", TORCH_BOX(&fastsn::cpu::backward));
}

STABLE_TORCH_LIBRARY_IMPL(fastsn_cpu, CompositeExplicitAutograd, m) {
  m.impl("simd_levels", TORCH_BOX(&fastsn::cpu::simd_levels));
  m.impl("simd_level", TORCH_BOX(&fastsn::cpu::simd_level));
  m.impl("set_simd_level", TORCH_BOX(&fastsn::cpu::set_simd_level));
}

// `import fastsn._C` has no other purpose than to load this library.
PyMODINIT_FUNC PyInit__C(void) {
  static PyModuleDef module = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
