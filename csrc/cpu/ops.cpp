// SPDX-License-Identifier: MIT
//
// The ops of namespace fastsn_cpu: arguments checked, results allocated, jobs run.
#include <Python.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <memory>
#include <tuple>

#include "arguments.h"
#include "backward.h"
#include "forward.h"

namespace fastsn::cpu {
namespace {

using Tensors = std::vector<Tensor>;
using Jobs = std::vector<std::unique_ptr<Job>>;

int64_t total_elements(const Tensors& tensors) {
  int64_t elements = 0;
  for (const Tensor& tensor : tensors) elements += tensor.numel();
  return elements;
}

template <typename R>
R* data(const Tensor& tensor) {
  return static_cast<R*>(tensor.mutable_data_ptr());
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
    const Tensors& weights, const Tensors& us, const Tensors& vs, const std::vector<int64_t>& kinds,
    const Settings& settings, int64_t n, double eps, DType dtype, DType out_dtype, bool store) {
  const size_t k = weights.size();
  int64_t vector_elements = 0;
  for (size_t j = 0; j < us.size(); ++j) vector_elements += us[j].numel() + vs[j].numel();
  Tensors weights_sn;
  const Tensor sigmas = new_tensor({static_cast<int64_t>(k)}, dtype_of<R>);
  const Tensor vectors = new_tensor({vector_elements}, dtype_of<R>);
  const Tensor view_stats = new_tensor({static_cast<int64_t>(us.size()), 2}, dtype_of<R>);
  R* vector = data<R>(vectors);
  Jobs jobs;
  size_t view = 0;
  for (size_t i = 0; i < k; ++i) {
    weights_sn.push_back(new_like(weights[i], out_dtype));
    VectorSlot slots[4];
    const int count = settings.views[i].count;
    for (int j = 0; j < 2 * count; ++j) {
      const Tensor& given = (j % 2 == 0 ? us : vs)[view + j / 2];
      slots[j] = {given.const_data_ptr(), to_dtype(given.scalar_type(), {"us"}), vector};
      vector += given.numel();
    }
    const ForwardProblem problem{settings.views[i],
                                 kinds[i],
                                 n,
                                 eps,
                                 settings.scales[i],
                                 weights[i].const_data_ptr(),
                                 dtype,
                                 weights_sn[i].mutable_data_ptr(),
                                 out_dtype,
                                 weights[i].numel()};
    jobs.push_back(std::make_unique<ForwardJob<R>>(problem, slots, data<R>(sigmas) + i,
                                                   data<R>(view_stats) + 2 * view));
    view += count;
  }
  run_jobs(std::move(jobs), total_elements(weights));
  if (store) store_vectors(data<R>(vectors), us, vs);
  return {weights_sn, sigmas, vectors, view_stats};
}

std::tuple<Tensors, Tensor, Tensor, Tensor> forward(
    Tensors weights, Tensors us, Tensors vs, std::vector<int64_t> dims, std::vector<int64_t> kinds,
    std::vector<double> scales, std::optional<Tensor> scale_tensor, int64_t n_power_iterations,
    double eps, std::optional<ScalarType> out_dtype, bool store_vectors) {
  const Settings settings = check_settings(weights, "weights", dims, kinds, scales, scale_tensor);
  check_length({"us"}, us.size(), settings.view_count);
  check_length({"vs"}, vs.size(), settings.view_count);
  int64_t j = 0;
  for (const Views& views : settings.views) {
    for (int d = 0; d < views.count; ++d, ++j) {
      const bool swapped = kinds[&views - settings.views.data()] == kSNVFirst;
      const int64_t rows = views.view[d].rows, cols = views.view[d].cols();
      check_vector(us[j], Name{"us", j}, swapped ? cols : rows);
      check_vector(vs[j], Name{"vs", j}, swapped ? rows : cols);
      to_dtype(us[j].scalar_type(), Name{"us", j});
      to_dtype(vs[j].scalar_type(), Name{"vs", j});
    }
  }
  STD_TORCH_CHECK(n_power_iterations >= 0,
                  "fastsn: expected n_power_iterations to be 0 or more, got ", n_power_iterations);
  const DType dtype = to_dtype(weights[0].scalar_type(), {"weights", 0});
  const DType out = out_dtype.has_value() ? to_dtype(*out_dtype, {"out_dtype"}) : dtype;
  const auto run = dtype == DType::kDouble ? run_forward<double> : run_forward<float>;
  return run(weights, us, vs, kinds, settings, n_power_iterations, eps, dtype, out, store_vectors);
}

template <typename R>
std::tuple<Tensors, Tensor> run_backward(const Tensors& grads,
                                         const std::vector<double>& grad_sigmas,
                                         const Tensors& weights_sn, const Tensor& sigmas,
                                         const Tensor& vectors, const Tensor& view_stats,
                                         const std::vector<int64_t>& kinds,
                                         const Settings& settings, DType dtype, DType grad_dtype) {
  const size_t k = grads.size();
  Tensors grad_weights;
  const Tensor grad_scales = new_tensor({static_cast<int64_t>(k)}, dtype_of<R>);
  const R* vector = data<R>(vectors);
  const R* stats = data<R>(view_stats);
  Jobs jobs;
  for (size_t i = 0; i < k; ++i) {
    grad_weights.push_back(new_like(weights_sn[i], grad_dtype));
    const BackwardProblem problem{settings.views[i],
                                  kinds[i],
                                  settings.scales[i],
                                  grad_sigmas.empty() ? 0.0 : grad_sigmas[i],
                                  grads[i].const_data_ptr(),
                                  weights_sn[i].const_data_ptr(),
                                  dtype,
                                  grad_weights[i].mutable_data_ptr(),
                                  grad_dtype,
                                  weights_sn[i].numel()};
    jobs.push_back(std::make_unique<BackwardJob<R>>(problem, data<R>(sigmas) + i, vector, stats,
                                                    data<R>(grad_scales) + i));
    for (int d = 0; d < settings.views[i].count; ++d) {
      vector += settings.views[i].view[d].rows + settings.views[i].view[d].cols();
      stats += 2;
    }
  }
  run_jobs(std::move(jobs), total_elements(grads));
  return {grad_weights, grad_scales};
}

std::tuple<Tensors, Tensor> backward(Tensors grads, std::optional<Tensor> grad_sigmas,
                                     Tensors weights_sn, Tensor sigmas, Tensor vectors,
                                     Tensor view_stats, std::vector<int64_t> dims,
                                     std::vector<int64_t> kinds, std::vector<double> scales,
                                     std::optional<Tensor> scale_tensor, ScalarType grad_dtype) {
  const size_t k = weights_sn.size();
  const Settings settings =
      check_settings(weights_sn, "weights_sn", dims, kinds, scales, scale_tensor);
  check_length({"grads"}, grads.size(), k);
  int64_t vector_elements = 0;
  for (int64_t i = 0; i < static_cast<int64_t>(k); ++i) {
    check_cpu(grads[i], Name{"grads", i});
    STD_TORCH_CHECK(grads[i].scalar_type() == weights_sn[i].scalar_type() &&
                        same_strides(grads[i], weights_sn[i]),
                    "fastsn: expected ", Name{"grads", i},
                    " to have the sizes, strides and dtype of ", Name{"weights_sn", i},
                    ", got others");
    for (int d = 0; d < settings.views[i].count; ++d) {
      vector_elements += settings.views[i].view[d].rows + settings.views[i].view[d].cols();
    }
  }
  const DType accumulate = to_dtype(sigmas.scalar_type(), {"sigmas"});
  STD_TORCH_CHECK(accumulate == DType::kFloat || accumulate == DType::kDouble,
                  "fastsn: expected sigmas to be float32 or float64, got ",
                  torch::headeronly::toString(sigmas.scalar_type()));
  check_vector(sigmas, {"sigmas"}, static_cast<int64_t>(k));
  check_vector(vectors, {"vectors"}, vector_elements);
  check_vector(view_stats, {"view_stats"}, static_cast<int64_t>(2 * settings.view_count));
  STD_TORCH_CHECK(vectors.scalar_type() == sigmas.scalar_type() &&
                      view_stats.scalar_type() == sigmas.scalar_type(),
                  "fastsn: expected vectors and view_stats to have the dtype of sigmas, ",
                  torch::headeronly::toString(sigmas.scalar_type()), ", got ",
                  torch::headeronly::toString(vectors.scalar_type()), " and ",
                  torch::headeronly::toString(view_stats.scalar_type()));
  std::vector<double> sigma_grads;
  if (grad_sigmas.has_value()) {
    check_vector(*grad_sigmas, {"grad_sigmas"}, static_cast<int64_t>(k));
    sigma_grads = to_doubles(*grad_sigmas, {"grad_sigmas"});
  }
  const DType dtype = to_dtype(weights_sn[0].scalar_type(), {"weights_sn", 0});
  const DType grad = to_dtype(grad_dtype, {"grad_dtype"});
  const auto run = accumulate == DType::kDouble ? run_backward<double> : run_backward<float>;
  return run(grads, sigma_grads, weights_sn, sigmas, vectors, view_stats, kinds, settings, dtype,
             grad);
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
  m.def(
      "forward(Tensor[] weights, Tensor(a!)[] us, Tensor(b!)[] vs, int[] dims, int[] kinds, "
      "float[] scales, Tensor? scale_tensor, int n_power_iterations, float eps, "
      "ScalarType? out_dtype, bool store_vectors) -> (Tensor[], Tensor, Tensor, Tensor)");
  m.def(
      "backward(Tensor[] grads, Tensor? grad_sigmas, Tensor[] weights_sn, Tensor sigmas, "
      "Tensor vectors, Tensor view_stats, int[] dims, int[] kinds, float[] scales, "
      "Tensor? scale_tensor, ScalarType grad_dtype) -> (Tensor[], Tensor)");
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
