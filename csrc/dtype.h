// SPDX-License-Identifier: MIT
//
// Dtypes of weights and results; the values are torch's.
#pragma once

#include <cstdint>

namespace fastsn {

enum DType : int32_t { kFloat16 = 5, kFloat32 = 6, kFloat64 = 7, kBFloat16 = 15 };

constexpr int64_t size_of(DType dtype) { return dtype == kFloat64 ? 8 : dtype == kFloat32 ? 4 : 2; }

}  // namespace fastsn
