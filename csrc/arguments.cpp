// SPDX-License-Identifier: MIT
#include "arguments.h"

#include <string>

namespace fastsn {

namespace {

int32_t device_type_of(const Tensor& tensor) {
  int32_t type;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &type));
  return type;
}

std::string to_string(torch::headeronly::IntHeaderOnlyArrayRef values) {
  std::string text = "(";
  for (size_t d = 0; d < values.size(); ++d) {
    text += (d == 0 ? "" : ", ") + std::to_string(values[d]);
  }
  return text + ")";
}

// Numbers of dtypes are the running libtorch's, not those this file was compiled with.
int32_t aoti_dtype(DType dtype) {
  switch (dtype) {
    case kFloat16:
      return aoti_torch_dtype_float16();
    case kFloat64:
      return aoti_torch_dtype_float64();
    case kBFloat16:
      return aoti_torch_dtype_bfloat16();
    default:
      return aoti_torch_dtype_float32();
  }
}

// Sizes, and strides where they matter.
bool same_strides(const Tensor& a, const Tensor& b) {
  const auto sizes = a.sizes();
  const auto other_sizes = b.sizes();
  if (sizes.size() != other_sizes.size()) return false;
  const bool empty = a.numel() == 0;
  const auto strides = a.strides();
  const auto other_strides = b.strides();
  for (size_t d = 0; d < sizes.size(); ++d) {
    if (sizes[d] != other_sizes[d]) return false;
    if (sizes[d] > 1 && !empty && strides[d] != other_strides[d]) return false;
  }
  return true;
}

}  // namespace

std::ostream& operator<<(std::ostream& out, Name name) {
  out << name.name;
  return name.index < 0 ? out : out << "[" << name.index << "]";
}

DType to_dtype(ScalarType type, Name name) {
  switch (type) {
    case ScalarType::Float:
      return kFloat32;
    case ScalarType::Double:
      return kFloat64;
    case ScalarType::BFloat16:
      return kBFloat16;
    case ScalarType::Half:
      return kFloat16;
    default:
      STD_TORCH_CHECK(false, "fastsn: expected ", name,
                      " to be float32, float64, bfloat16 or float16, got ",
                      torch::headeronly::toString(type));
  }
}

DType accumulate_dtype(DType dtype) { return dtype == kFloat64 ? kFloat64 : kFloat32; }

void check_length(const char* name, size_t got, size_t expected) {
  STD_TORCH_CHECK(got == expected, "fastsn: expected ", name, " to have ", expected,
                  " elements, got ", got);
}

void check_result_dtype(const char* name, DType got, DType dtype) {
  STD_TORCH_CHECK((got == kFloat64) == (dtype == kFloat64), "fastsn: expected ", name,
                  dtype == kFloat64 ? " to be float64 as the weights are, got another dtype"
                                    : " to be float32, bfloat16 or float16, got float64");
}

Weights::Weights(const std::vector<Tensor>& weights, const char* name,
                 const std::vector<int64_t>& dims, const std::vector<int64_t>& kinds,
                 const std::vector<double>& scales, const std::optional<Tensor>& scales_on_device) {
  const size_t k = weights.size();
  STD_TORCH_CHECK(k > 0, "fastsn: expected ", name, " to have 1 or more elements, got 0");
  check_length("dims", dims.size(), k);
  check_length("kinds", kinds.size(), k);
  const ScalarType type = weights[0].scalar_type();
  dtype = to_dtype(type, {name, 0});
  device_type = device_type_of(weights[0]);
  device = weights[0].get_device_index();
  is_cpu = device_type == aoti_torch_device_type_cpu();
  if (scales_on_device.has_value()) {
    check_vector(*scales_on_device, {"scale_tensor"}, static_cast<int64_t>(k));
    scale_tensor = scales_on_device->const_data_ptr();
    scale_dtype = to_dtype(scales_on_device->scalar_type(), {"scale_tensor"});
  } else {
    check_length("scales", scales.size(), k);
  }
  views.reserve(k);
  for (size_t i = 0; i < k; ++i) {
    const Tensor& weight = weights[i];
    const Name own{name, static_cast<int64_t>(i)};
    check_device(weight, own);
    STD_TORCH_CHECK(weight.scalar_type() == type, "fastsn: expected ", own, " to be ",
                    torch::headeronly::toString(type), " as ", Name{name, 0}, ", got ",
                    torch::headeronly::toString(weight.scalar_type()));
    const auto sizes = weight.sizes();
    const int64_t rank = static_cast<int64_t>(sizes.size());
    STD_TORCH_CHECK(rank >= 2, "fastsn: expected ", own, " to have 2 or more dimensions, got ",
                    rank);
    STD_TORCH_CHECK(dims[i] >= 0 && dims[i] < rank, "fastsn: expected dims[", i,
                    "] to be from 0 to ", rank - 1, ", got ", dims[i]);
    STD_TORCH_CHECK(kinds[i] >= kSN && kinds[i] <= kSNVFirst, "fastsn: expected kinds[", i,
                    "] to be 0, 1 or 2, got ", kinds[i]);
    STD_TORCH_CHECK(kinds[i] != kBSN || (rank >= 3 && dims[i] <= 1), "fastsn: expected ", own,
                    " of kind 1 to have 3 or more dimensions and dim 0 or 1, got ", rank,
                    " dimensions and dim ", dims[i]);
    views.push_back(make_views(sizes.data(), weight.strides().data(), static_cast<int>(rank),
                               dims[i], kinds[i]));
    STD_TORCH_CHECK(views[i].count > 0, "fastsn: expected ", own,
                    " to be contiguous or channels_last (contiguous with dim 0 for kind 2), got "
                    "sizes ",
                    to_string(sizes), " and strides ", to_string(weight.strides()), " for dim ",
                    dims[i], " and kind ", kinds[i]);
    view_count += views[i].count;
    for (int d = 0; d < views[i].count; ++d) {
      vector_elements += views[i].view[d].rows + views[i].view[d].cols();
    }
  }
}

void Weights::check_device(const Tensor& tensor, Name name) const {
  // The CPU is one device, whatever its index.
  STD_TORCH_CHECK(
      device_type_of(tensor) == device_type && (is_cpu || tensor.get_device_index() == device),
      "fastsn: expected ", name, " to be on the device of the first weight, index ", device,
      ", got another");
}

void Weights::check_vector(const Tensor& tensor, Name name, int64_t size) const {
  check_device(tensor, name);
  STD_TORCH_CHECK(tensor.numel() == size, "fastsn: expected ", name, " to have ", size,
                  " elements, got ", tensor.numel());
  STD_TORCH_CHECK(tensor.is_contiguous(), "fastsn: expected ", name,
                  " to be contiguous, got strides ", to_string(tensor.strides()));
}

// Through the C functions and not the dispatcher: an eager user waits for every allocation.
Tensor Weights::new_like(const Tensor& like, DType dtype, const std::vector<Tensor>& memory,
                         size_t& used) const {
  const auto sizes = like.sizes();
  const auto rank = static_cast<int64_t>(sizes.size());
  AtenTensorHandle handle;
  if (used < memory.size() && memory[used].numel() == like.numel()) {
    const Tensor& own = memory[used];
    const Name name{"memory", static_cast<int64_t>(used++)};
    check_vector(own, name, like.numel());
    STD_TORCH_CHECK(to_dtype(own.scalar_type(), name) == dtype, "fastsn: expected ", name,
                    " to be of the results' dtype, got ",
                    torch::headeronly::toString(own.scalar_type()));
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(
        own.get(), rank, sizes.data(), like.strides().data(), 0, &handle));
  } else {
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(rank, sizes.data(),
                                                           like.strides().data(), aoti_dtype(dtype),
                                                           device_type, device, &handle));
  }
  return Tensor(handle);
}

Tensor Weights::new_tensor(std::initializer_list<int64_t> sizes, DType dtype) const {
  int64_t strides[2] = {1, 1};
  if (sizes.size() == 2) strides[0] = sizes.begin()[1];
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()),
                                                         sizes.begin(), strides, aoti_dtype(dtype),
                                                         device_type, device, &handle));
  return Tensor(handle);
}

void check_grads(const Weights& settings, const std::vector<Tensor>& grads,
                 const std::vector<Tensor>& weights_sn) {
  check_length("grads", grads.size(), weights_sn.size());
  for (size_t i = 0; i < grads.size(); ++i) {
    const auto own = static_cast<int64_t>(i);
    settings.check_device(grads[i], {"grads", own});
    STD_TORCH_CHECK(grads[i].scalar_type() == weights_sn[i].scalar_type() &&
                        same_strides(grads[i], weights_sn[i]),
                    "fastsn: expected ", Name{"grads", own},
                    " to have the sizes, strides and dtype of ", Name{"weights_sn", own},
                    ", got others");
  }
}

void refuse_size(Name name) {
  STD_TORCH_CHECK(false, "fastsn: expected ", name,
                  " to have from 1 to 2^31 - 1 elements, got another number");
}

}  // namespace fastsn
