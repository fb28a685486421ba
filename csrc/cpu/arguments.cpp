// SPDX-License-Identifier: MIT
#include "arguments.h"

#include <torch/csrc/stable/ops.h>

#include "levels.h"

namespace fastsn::cpu {

DType to_dtype(ScalarType type, Name name) {
  switch (type) {
    case ScalarType::Float:
      return DType::kFloat;
    case ScalarType::Double:
      return DType::kDouble;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Half:
      return DType::kHalf;
    default:
      STD_TORCH_CHECK(false, "fastsn: expected ", name,
                      " to be float32, float64, bfloat16 or float16, got ",
                      torch::headeronly::toString(type));
  }
}

ScalarType to_scalar_type(DType dtype) {
  constexpr ScalarType types[] = {ScalarType::Float, ScalarType::Double, ScalarType::BFloat16,
                                  ScalarType::Half};
  return types[static_cast<int>(dtype)];
}

std::ostream& operator<<(std::ostream& out, const Name& name) {
  out << name.name;
  return name.index < 0 ? out : out << "[" << name.index << "]";
}

void check_length(Name name, size_t got, size_t expected) {
  STD_TORCH_CHECK(got == expected, "fastsn: expected ", name, " to have ", expected,
                  " elements, got ", got);
}

void check_cpu(const Tensor& tensor, Name name) {
  STD_TORCH_CHECK(tensor.defined() && tensor.is_cpu(), "fastsn: expected ", name,
                  " to be on the CPU, got another device");
}

void check_vector(const Tensor& tensor, Name name, int64_t size) {
  check_cpu(tensor, name);
  STD_TORCH_CHECK(tensor.numel() == size, "fastsn: expected ", name, " to have ", size,
                  " elements, got ", tensor.numel());
  STD_TORCH_CHECK(tensor.is_contiguous(), "fastsn: expected ", name,
                  " to be contiguous, got a strided tensor");
}

Settings check_settings(const std::vector<Tensor>& weights, const char* name,
                        const std::vector<int64_t>& dims, const std::vector<int64_t>& kinds,
                        const std::vector<double>& scales,
                        const std::optional<Tensor>& scale_tensor) {
  const size_t k = weights.size();
  STD_TORCH_CHECK(k > 0, "fastsn: expected ", name, " to have one element or more, got 0");
  check_length({"dims"}, dims.size(), k);
  check_length({"kinds"}, kinds.size(), k);
  Settings settings;
  if (scale_tensor.has_value()) {
    check_vector(*scale_tensor, {"scale_tensor"}, static_cast<int64_t>(k));
    settings.scales = to_doubles(*scale_tensor, {"scale_tensor"});
  } else {
    check_length({"scales"}, scales.size(), k);
    settings.scales = scales;
  }
  const ScalarType dtype = weights[0].scalar_type();
  for (size_t i = 0; i < k; ++i) {
    const Tensor& weight = weights[i];
    const Name own{name, static_cast<int64_t>(i)};
    check_cpu(weight, own);
    STD_TORCH_CHECK(weight.scalar_type() == dtype, "fastsn: expected ", own, " to be ",
                    torch::headeronly::toString(dtype), " as ", Name{name, 0}, ", got ",
                    torch::headeronly::toString(weight.scalar_type()));
    const int64_t rank = weight.dim();
    STD_TORCH_CHECK(rank >= 2, "fastsn: expected ", own, " to have 2 or more dimensions, got ",
                    rank);
    STD_TORCH_CHECK(dims[i] >= 0 && dims[i] < rank, "fastsn: expected dims[", i,
                    "] to be from 0 to ", rank - 1, ", got ", dims[i]);
    STD_TORCH_CHECK(kinds[i] >= kSN && kinds[i] <= kSNVFirst, "fastsn: expected kinds[", i,
                    "] to be 0, 1 or 2, got ", kinds[i]);
    STD_TORCH_CHECK(kinds[i] != kBSN || (rank >= 3 && dims[i] <= 1), "fastsn: expected ", own,
                    " of kind 1 to have 3 or more dimensions and dim 0 or 1, got ", rank,
                    " dimensions and dim ", dims[i]);
    settings.views.push_back(make_views(weight.sizes().data(), weight.strides().data(),
                                        static_cast<int>(rank), dims[i], kinds[i]));
    STD_TORCH_CHECK(settings.views[i].count > 0, "fastsn: expected ", own,
                    " to be contiguous or channels_last (contiguous with dim 0 for kind 2), got "
                    "another layout for dim ",
                    dims[i], " and kind ", kinds[i]);
    settings.view_count += settings.views[i].count;
  }
  return settings;
}

std::vector<double> to_doubles(const Tensor& tensor, Name name) {
  std::vector<double> values(tensor.numel());
  kernels<double>().convert_from(tensor.const_data_ptr(), to_dtype(tensor.scalar_type(), name),
                                 tensor.numel(), values.data());
  return values;
}

bool same_strides(const Tensor& a, const Tensor& b) {
  if (a.dim() != b.dim()) return false;
  for (int64_t d = 0; d < a.dim(); ++d) {
    if (a.size(d) != b.size(d)) return false;
    if (a.size(d) > 1 && a.stride(d) != b.stride(d)) return false;
  }
  return true;
}

Tensor new_like(const Tensor& like, DType dtype) {
  // The shim's own function: the dispatcher looks an op up by its name at every call.
  static const int32_t types[] = {aoti_torch_dtype_float32(), aoti_torch_dtype_float64(),
                                  aoti_torch_dtype_bfloat16(), aoti_torch_dtype_float16()};
  AtenTensorHandle result = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      like.dim(), like.sizes().data(), like.strides().data(), types[static_cast<int>(dtype)],
      aoti_torch_device_type_cpu(), 0, &result));
  return Tensor(result);
}

Tensor new_tensor(std::initializer_list<int64_t> sizes, DType dtype) {
  return torch::stable::empty(sizes, to_scalar_type(dtype));
}

}  // namespace fastsn::cpu
