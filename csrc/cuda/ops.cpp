// SPDX-License-Identifier: MIT
//
// The ops of namespace fastsn_cuda: arguments checked, results allocated, launches enqueued.
#ifdef FASTSN_HOST  // the kernels in the shim, as ops on CPU tensors
#define FASTSN_NAMESPACE fastsn_cuda_host
#define FASTSN_DISPATCH_KEY CPU
#else
#include <Python.h>
#include <dlfcn.h>
#define FASTSN_NAMESPACE fastsn_cuda
#define FASTSN_DISPATCH_KEY CUDA
#endif

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <exception>
#include <string>
#include <tuple>

#include "../arguments.h"
#include "../schema.h"
#include "launch.h"
#include "plan.h"

namespace fastsn {
namespace {

using Tensors = std::vector<Tensor>;

#ifdef FASTSN_HOST

struct Device {
  explicit Device(int32_t) {}
  void* stream = nullptr;
};

#else

// torch's current stream of a device. Only a CUDA build of torch has the function, so it is looked
// up when it is needed: this module is built and loaded with any torch.
void* current_stream(int32_t device) {
  using Function = AOTITorchError (*)(int32_t device_index, void** stream);
  static const Function function = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    void* found = dlsym(library ? library : RTLD_DEFAULT, "aoti_torch_get_current_cuda_stream");
    STD_TORCH_CHECK(found, "fastsn: expected a CUDA build of torch, got one without CUDA streams");
    return reinterpret_cast<Function>(found);
  }();
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(function(device, &stream));
  return stream;
}

// The current device is the tensors', and `stream` its current stream.
struct Device {
  explicit Device(int32_t index) : stream(current_stream(index)), guard(index) {}
  void* stream;
  torch::stable::accelerator::DeviceGuard guard;
};

#endif

const char* dtype_name(DType dtype) {
  return dtype == kFloat64    ? "float64"
         : dtype == kFloat32  ? "float32"
         : dtype == kBFloat16 ? "bfloat16"
                              : "float16";
}

// Runs what enqueues the launches of a table. Whoever called can go on with another backend: none
// of its memory was written to, and "launch refused" says so.
template <typename Table, typename Run>
void enqueue(const Weights& settings, const char* name, const Table& table, Run run) {
  try {
    run();
  } catch (const std::exception& error) {
    STD_TORCH_CHECK(false, "fastsn: launch refused by backend cuda on device ", settings.device,
                    " for ", name, "[", table.first_problem, "] to ", name, "[",
                    table.first_problem + table.problems - 1, "] of ", dtype_name(settings.dtype),
                    ": ", error.what());
  }
}

GivenVector given_vector(const Weights& settings, const Tensors& vectors, const char* name,
                         size_t index, int64_t size, bool store) {
  const Name own{name, static_cast<int64_t>(index)};
  settings.check_vector(vectors[index], own, size);
  return {store ? vectors[index].mutable_data_ptr()
                : const_cast<void*>(vectors[index].const_data_ptr()),
          to_dtype(vectors[index].scalar_type(), own)};
}

void check_no_bounds(const std::vector<double>& bounds) {
  STD_TORCH_CHECK(bounds.empty(),
                  "fastsn: expected no bounds, got some: soft norms have no kernel here");
}

std::tuple<Tensors, Tensor, Tensor, Tensor> forward(
    Tensors weights, Tensors us, Tensors vs, std::vector<int64_t> dims, std::vector<int64_t> kinds,
    std::vector<double> scales, std::optional<Tensor> scale_tensor, int64_t n_power_iterations,
    double eps, std::optional<ScalarType> out_dtype, bool store_vectors, std::vector<Tensor> memory,
    std::vector<double> bounds) {
  check_no_bounds(bounds);
  const Weights settings(weights, "weights", dims, kinds, scales, scale_tensor);
  check_length("us", us.size(), settings.view_count);
  check_length("vs", vs.size(), settings.view_count);
  STD_TORCH_CHECK(n_power_iterations >= 0 && n_power_iterations <= INT32_MAX / 4,
                  "fastsn: expected n_power_iterations to be 0 or more, got ", n_power_iterations);
  const DType out = out_dtype.has_value() ? to_dtype(*out_dtype, {"out_dtype"}) : settings.dtype;
  check_result_dtype("out_dtype", out, settings.dtype);
  const Device device(settings.device);
  ForwardPlan plan(settings.dtype, weights.size());
  size_t used = 0;  // of memory
  Tensors weights_sn;
  weights_sn.reserve(weights.size());
  size_t view = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    GivenVector u[2], v[2];
    for (int j = 0; j < settings.views[i].count; ++j, ++view) {
      const View& shape = settings.views[i].view[j];
      const bool swapped = kinds[i] == kSNVFirst;
      const int64_t rows = swapped ? shape.cols() : shape.rows;
      const int64_t cols = swapped ? shape.rows : shape.cols();
      u[j] = given_vector(settings, us, "us", view, rows, store_vectors);
      v[j] = given_vector(settings, vs, "vs", view, cols, store_vectors);
    }
    weights_sn.push_back(settings.new_like(weights[i], out, memory, used));
    if (!plan.add(settings.views[i], dims[i], kinds[i], weights[i].const_data_ptr(),
                  weights_sn[i].mutable_data_ptr(), settings.scale_tensor ? 0 : scales[i], u, v)) {
      refuse_size({"weights", static_cast<int64_t>(i)});
    }
  }
  const DType accumulate = accumulate_dtype(settings.dtype);
  const Tensor sigmas = settings.new_tensor({static_cast<int64_t>(weights.size())}, accumulate);
  const Tensor vectors = settings.new_tensor({plan.vector_entries()}, accumulate);
  const Tensor view_stats =
      settings.new_tensor({static_cast<int64_t>(settings.view_count), 2}, accumulate);
  // Freed when this returns; what the stream does later in the same memory comes after the kernel.
  const Tensor workspace = settings.new_tensor({plan.workspace_bytes() / 8}, kFloat64);
  for (ForwardTable& table : plan.tables()) {
    table.iterations = static_cast<int32_t>(n_power_iterations);
    table.out_dtype = out;
    table.store_vectors = store_vectors;
    table.scale_dtype = settings.scale_dtype;
    table.eps = eps;
    table.scales = settings.scale_tensor;
    table.workspace = workspace.mutable_data_ptr();
    table.sigmas = sigmas.mutable_data_ptr();
    table.vectors = vectors.mutable_data_ptr();
    table.view_stats = view_stats.mutable_data_ptr();
    enqueue(settings, "weights", table, [&] {
      run_forward(
          table, settings.dtype,
          [&](void* memory, int64_t bytes) {
            fill_zeros(memory, bytes, settings.device, device.stream);
          },
          [&](const Launch& launch) { start(launch, settings.device, device.stream); });
    });
  }
  return {weights_sn, sigmas, vectors, view_stats};
}

std::tuple<Tensors, Tensor> backward(Tensors grads, std::optional<Tensor> grad_sigmas,
                                     Tensors weights_sn, Tensor sigmas, Tensor vectors,
                                     Tensor view_stats, std::vector<int64_t> dims,
                                     std::vector<int64_t> kinds, std::vector<double> scales,
                                     std::optional<Tensor> scale_tensor, ScalarType grad_dtype,
                                     std::vector<Tensor> memory, std::vector<double> bounds) {
  check_no_bounds(bounds);
  const Weights settings(weights_sn, "weights_sn", dims, kinds, scales, scale_tensor);
  const int64_t k = static_cast<int64_t>(weights_sn.size());
  check_grads(settings, grads, weights_sn);
  const DType grad = to_dtype(grad_dtype, {"grad_dtype"});
  check_result_dtype("grad_dtype", grad, settings.dtype);
  const Device device(settings.device);
  BackwardPlan plan(settings.dtype, weights_sn.size());
  size_t used = 0;  // of memory
  Tensors grad_weights;
  grad_weights.reserve(weights_sn.size());
  for (size_t i = 0; i < weights_sn.size(); ++i) {
    const int64_t own = static_cast<int64_t>(i);
    grad_weights.push_back(settings.new_like(weights_sn[i], grad, memory, used));
    if (!plan.add(settings.views[i], dims[i], kinds[i], grads[i].const_data_ptr(),
                  weights_sn[i].const_data_ptr(), grad_weights[i].mutable_data_ptr(),
                  settings.scale_tensor ? 0 : scales[i])) {
      refuse_size({"weights_sn", own});
    }
  }
  const DType accumulate = accumulate_dtype(settings.dtype);
  const auto check_result = [&](const Tensor& tensor, const char* name, int64_t size) {
    settings.check_vector(tensor, {name}, size);
    STD_TORCH_CHECK(to_dtype(tensor.scalar_type(), {name}) == accumulate, "fastsn: expected ", name,
                    " to be ", accumulate == kFloat64 ? "float64" : "float32", ", got ",
                    torch::headeronly::toString(tensor.scalar_type()));
    return tensor.const_data_ptr();
  };
  const void* sigmas_data = check_result(sigmas, "sigmas", k);
  const void* vectors_data = check_result(vectors, "vectors", plan.vector_entries());
  const void* stats_data = check_result(view_stats, "view_stats", 2 * plan.views());
  const void* grad_sigmas_data =
      grad_sigmas.has_value() ? check_result(*grad_sigmas, "grad_sigmas", k) : nullptr;
  const Tensor grad_scales = settings.new_tensor({k}, accumulate);
  const Tensor products = settings.new_tensor({plan.workspace_bytes() / 8}, kFloat64);
  for (BackwardTable& table : plan.tables()) {
    table.grad_dtype = grad;
    table.scale_dtype = settings.scale_dtype;
    table.scales = settings.scale_tensor;
    table.products = products.mutable_data_ptr();
    table.sigmas = sigmas_data;
    table.grad_sigmas = grad_sigmas_data;
    table.vectors = vectors_data;
    table.view_stats = stats_data;
    table.grad_scales = grad_scales.mutable_data_ptr();
    enqueue(settings, "weights_sn", table, [&] {
      run_backward(table, settings.dtype,
                   [&](const Launch& launch) { start(launch, settings.device, device.stream); });
    });
  }
  return {grad_weights, grad_scales};
}

// Why the kernels cannot run on a CUDA device; empty where they can.
std::string device_error(int64_t index) {
  try {
    const Device device(static_cast<int32_t>(index));
    check_device(static_cast<int>(index));
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

}  // namespace
}  // namespace fastsn

STABLE_TORCH_LIBRARY(FASTSN_NAMESPACE, m) {
  m.def(fastsn::kForwardSchema);
  m.def(fastsn::kBackwardSchema);
  m.def("device_error(int index) -> str");
}

STABLE_TORCH_LIBRARY_IMPL(FASTSN_NAMESPACE, FASTSN_DISPATCH_KEY, m) {
  m.impl("forward", TORCH_BOX(&fastsn::forward));
  m.impl("backward", TORCH_BOX(&fastsn::backward));
}

STABLE_TORCH_LIBRARY_IMPL(FASTSN_NAMESPACE, CompositeExplicitAutograd, m) {
  m.impl("device_error", TORCH_BOX(&fastsn::device_error));
}

#ifndef FASTSN_HOST
// `import fastsn._C_cuda` has no other purpose than to load this library.
PyMODINIT_FUNC PyInit__C_cuda(void) {
  static PyModuleDef module = {
      PyModuleDef_HEAD_INIT, "_C_cuda", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
#endif
