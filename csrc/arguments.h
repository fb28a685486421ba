// SPDX-License-Identifier: MIT
//
// Checks of the ops' arguments, and their results' memory, for both extensions. Messages name the
// argument and its index.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <initializer_list>
#include <optional>
#include <ostream>
#include <vector>

#include "dtype.h"
#include "problem.h"

namespace fastsn {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// An argument as messages name it, or an element of it: "name" or "name[index]".
struct Name {
  const char* name;
  int64_t index = -1;
};
std::ostream& operator<<(std::ostream& out, Name name);

DType to_dtype(ScalarType type, Name name);
// The dtype sums over weights of `dtype` are made in.
DType accumulate_dtype(DType dtype);

void check_length(const char* name, size_t got, size_t expected);
// float64 goes with float64 only: kernels that mix it with others are not built.
void check_result_dtype(const char* name, DType got, DType dtype);

// What both ops take: k weights with dims, kinds and scales.
struct Weights {
  DType dtype;
  int32_t device_type;
  int32_t device;
  bool is_cpu;
  std::vector<Views> views;
  size_t view_count = 0;
  int64_t vector_elements = 0;  // of all u and v
  const void* scale_tensor = nullptr;
  DType scale_dtype = kFloat32;

  // `name` is the list `weights`: all of one dtype and device, in a layout kernels walk in place.
  Weights(const std::vector<Tensor>& weights, const char* name, const std::vector<int64_t>& dims,
          const std::vector<int64_t>& kinds, const std::vector<double>& scales,
          const std::optional<Tensor>& scale_tensor);

  // A tensor on the weights' device that can be read as a vector of `size` elements.
  void check_vector(const Tensor& tensor, Name name, int64_t size) const;
  void check_device(const Tensor& tensor, Name name) const;

  // Uninitialized, with sizes and strides of `like`: made in the next vector of `memory`, of which
  // `used` are used, where that has as many elements, else with memory of its own.
  Tensor new_like(const Tensor& like, DType dtype, const std::vector<Tensor>& memory,
                  size_t& used) const;
  // Dense and uninitialized.
  Tensor new_tensor(std::initializer_list<int64_t> sizes, DType dtype) const;
};

// Gradients have sizes, strides and dtype of the normalized weights.
void check_grads(const Weights& settings, const std::vector<Tensor>& grads,
                 const std::vector<Tensor>& weights_sn);

[[noreturn]] void refuse_size(Name name);

}  // namespace fastsn
