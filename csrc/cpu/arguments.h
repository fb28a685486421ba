// SPDX-License-Identifier: MIT
//
// Checks of the ops' arguments. Messages name the argument and its index.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <ostream>
#include <vector>

#include "../problem.h"
#include "kernels.h"

namespace fastsn::cpu {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// An argument's name, with an index if it is a list; made to a string by messages alone.
struct Name {
  const char* name;
  int64_t index = -1;
};
std::ostream& operator<<(std::ostream& out, const Name& name);

DType to_dtype(ScalarType type, Name name);
ScalarType to_scalar_type(DType dtype);

// What both ops take: dims, kinds, scales and views of k weights.
struct Settings {
  std::vector<Views> views;
  std::vector<double> scales;
  size_t view_count = 0;
};

void check_length(Name name, size_t got, size_t expected);
void check_cpu(const Tensor& tensor, Name name);
// A vector of `size` elements that can be read in order.
void check_vector(const Tensor& tensor, Name name, int64_t size);

// `name` is the list `weights`: all of one dtype, on the CPU, in a layout that kernels walk in
// place.
Settings check_settings(const std::vector<Tensor>& weights, const char* name,
                        const std::vector<int64_t>& dims, const std::vector<int64_t>& kinds,
                        const std::vector<double>& scales,
                        const std::optional<Tensor>& scale_tensor);

// Elements of a floating-point vector on the CPU.
std::vector<double> to_doubles(const Tensor& tensor, Name name);

bool same_strides(const Tensor& a, const Tensor& b);

// Uninitialized, with sizes and strides of `like`.
Tensor new_like(const Tensor& like, DType dtype);
Tensor new_tensor(std::initializer_list<int64_t> sizes, DType dtype);

}  // namespace fastsn::cpu
