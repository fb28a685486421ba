// SPDX-License-Identifier: MIT
//
// Vectors and scalars whose dtype is known at run time only, torch's order of columns, and norms.
#pragma once

#include "tile.cuh"

namespace fastsn {

template <typename A>
FASTSN_DEVICE A load_as(const void* data, int32_t dtype, int index) {
  if (dtype == kFloat32) return static_cast<A>(static_cast<const float*>(data)[index]);
  if (dtype == kFloat64) return static_cast<A>(static_cast<const double*>(data)[index]);
  if (dtype == kFloat16) return static_cast<A>(widen(static_cast<const Float16*>(data)[index]));
  return static_cast<A>(widen(static_cast<const BFloat16*>(data)[index]));
}

template <typename A>
FASTSN_DEVICE void store_as(void* data, int32_t dtype, int index, A value) {
  const auto wide = static_cast<float>(value);
  if (dtype == kFloat32) static_cast<float*>(data)[index] = wide;
  if (dtype == kFloat64) static_cast<double*>(data)[index] = value;
  if (dtype == kFloat16) static_cast<Float16*>(data)[index] = narrow<Float16>(wide);
  if (dtype == kBFloat16) static_cast<BFloat16*>(data)[index] = narrow<BFloat16>(wide);
}

// The scale of a weight: from the device where one is given there, else from the launch.
template <typename Table>
FASTSN_DEVICE double load_scale(const Table& table, int problem) {
  if (table.scales == nullptr) return table.problem[problem].scale;
  return load_as<double>(table.scales, table.scale_dtype, table.first_problem + problem);
}

// Where entry `index` of s or t, in memory order, is in torch's order of u or v.
FASTSN_DEVICE int torch_index(int split, int side, int length, int index) {
  if (side == kRows || split == 0) return index;
  return index % split * (length / split) + index / split;
}

// max(length, eps), and NaN for NaN.
FASTSN_DEVICE double clamp_length(double length, double eps) { return length < eps ? eps : length; }

FASTSN_DEVICE bool is_usable(double length) {
  return length > 0 && length <= 1.7976931348623157e308;  // the largest finite double
}

}  // namespace fastsn
