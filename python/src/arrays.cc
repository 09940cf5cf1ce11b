#include "arrays.h"

#include <nanobind/stl/string.h>

#include <algorithm>
#include <cstring>
#include <memory>

#include "base/check.h"
#include "base/device.h"
#include "base/half.h"
#include "kvquant/error.h"

namespace kvquant::python {
namespace {

using Code = nb::dlpack::dtype_code;

bool is_from_torch(nb::handle object) {
  const nb::object module = nb::getattr(object.type(), "__module__", nb::none());
  nb::str name;
  return nb::try_cast(module, name) && std::strncmp(name.c_str(), "torch", 5) == 0;
}

bool has_gradient(nb::handle tensor) {
  bool value = false;
  return nb::try_cast(nb::getattr(tensor, "requires_grad", nb::none()), value) && value;
}

std::string type_of(nb::handle object) {
  return nb::cast<std::string>(nb::getattr(object.type(), "__name__"));
}

// As numpy and torch call them.
std::string dtype_name(nb::dlpack::dtype dtype) {
  const std::string bits = std::to_string(dtype.bits);
  switch (static_cast<Code>(dtype.code)) {
    case Code::Int: return "int" + bits;
    case Code::UInt: return "uint" + bits;
    case Code::Float: return "float" + bits;
    case Code::Bfloat: return "bfloat" + bits;
    case Code::Complex: return "complex" + bits;
    case Code::Bool: return "bool";
    default: return "of an unknown type";
  }
}

bool is_of(nb::dlpack::dtype dtype, Code code, int bits) {
  return dtype.code == static_cast<uint8_t>(code) && dtype.bits == bits && dtype.lanes == 1;
}

// Calls fn with every element's address, row by row.
template <class Fn>
void for_each(const nb::ndarray<nb::ro>& array, Fn&& fn) {
  const size_t count = array.size(), ndim = array.ndim(), item = array.itemsize();
  const auto* const base = static_cast<const std::byte*>(array.data());
  std::vector<int64_t> at(ndim, 0);
  int64_t offset = 0;  // in elements
  for (size_t i = 0; i < count; ++i) {
    fn(base + offset * static_cast<int64_t>(item));
    for (size_t d = ndim; d-- > 0;) {
      offset += array.stride(d);
      if (++at[d] < static_cast<int64_t>(array.shape(d))) break;
      offset -= array.stride(d) * at[d];
      at[d] = 0;
    }
  }
}

template <class T>
T load(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

template <class Stored>
std::vector<float> widen(const nb::ndarray<nb::ro>& array) {
  std::vector<float> out;
  out.reserve(array.size());
  for_each(array, [&](const std::byte* at) { out.push_back(to_float(load<Stored>(at))); });
  return out;
}

std::vector<float> floats_of(const char* name, const nb::ndarray<nb::ro>& array) {
  const auto dtype = array.dtype();
  if (is_of(dtype, Code::Float, 32)) return widen<float>(array);
  if (is_of(dtype, Code::Float, 16)) return widen<Half>(array);
  if (is_of(dtype, Code::Bfloat, 16)) return widen<BFloat16>(array);
  throw std::invalid_argument(std::string(name) + " is " + dtype_name(dtype) +
                              ", not float32 (float16 and bfloat16 are widened)");
}

// Calls fn with every element as an int64_t.
template <class Stored, class Fn>
void for_each_as(const nb::ndarray<nb::ro>& array, Fn&& fn) {
  for_each(array, [&](const std::byte* at) { fn(static_cast<int64_t>(load<Stored>(at))); });
}

template <class Fn>
bool for_each_integer(const nb::ndarray<nb::ro>& array, Fn&& fn) {
  const auto dtype = array.dtype();
  if (is_of(dtype, Code::Int, 64)) return for_each_as<int64_t>(array, fn), true;
  if (is_of(dtype, Code::Int, 32)) return for_each_as<int32_t>(array, fn), true;
  if (is_of(dtype, Code::Int, 16)) return for_each_as<int16_t>(array, fn), true;
  if (is_of(dtype, Code::Int, 8)) return for_each_as<int8_t>(array, fn), true;
  if (is_of(dtype, Code::UInt, 8)) return for_each_as<uint8_t>(array, fn), true;
  if (is_of(dtype, Code::UInt, 16)) return for_each_as<uint16_t>(array, fn), true;
  if (is_of(dtype, Code::UInt, 32)) return for_each_as<uint32_t>(array, fn), true;
  return false;
}

template <class T>
std::vector<T> integers_of(const char* name, const Array& argument) {
  const auto& array = argument.data(name);
  std::vector<T> out;
  out.reserve(array.size());
  const bool done = for_each_integer(array, [&](int64_t value) {
    check_arg(std::in_range<T>(value), std::string(name) + " holds " + std::to_string(value) +
                                           ", which is not in [" +
                                           std::to_string(std::numeric_limits<T>::min()) + ", " +
                                           std::to_string(std::numeric_limits<T>::max()) + "]");
    out.push_back(static_cast<T>(value));
  });
  check_arg(done, std::string(name) + " is " + dtype_name(array.dtype()) + ", not an integer type");
  return out;
}

void check_rank(const char* name, const nb::ndarray<nb::ro>& array, int rank) {
  if (static_cast<int>(array.ndim()) == rank) return;
  std::vector<int64_t> shape(array.shape_ptr(), array.shape_ptr() + array.ndim());
  throw std::invalid_argument(std::string(name) + " has " + std::to_string(array.ndim()) +
                              " dimensions, not " + std::to_string(rank) + ": its shape is " +
                              describe_shape(shape));
}

}  // namespace

std::string describe_shape(std::span<const int64_t> shape) {
  std::string out;
  for (const int64_t extent : shape) out += (out.empty() ? "" : ", ") + std::to_string(extent);
  return "[" + out + "]";
}

Array::Array(nb::handle source) : source_(nb::borrow(source)) {
  // What can't be used is refused where its name is known.
  if (is_from_torch(source)) framework_ = Framework::kTorch;
  if (framework_.kind == Framework::kTorch && has_gradient(source)) return;
  nb::try_cast(source, data_);
  if (data_.is_valid() && data_.device_type() == nb::device::cuda::value) {
    framework_.cuda_device = data_.device_id();
  }
}

// Of the memory that the array's elements lie in, gaps among it.
void Array::copy_to_host(const char* name) const {
  const size_t ndim = data_.ndim();
  int64_t first = 0, last = 0;  // elements from where the array begins
  std::vector<size_t> shape(ndim);
  std::vector<int64_t> strides(ndim);
  for (size_t d = 0; d < ndim; ++d) {
    shape[d] = data_.shape(d);
    strides[d] = data_.stride(d);
    const int64_t reach = (static_cast<int64_t>(shape[d]) - 1) * strides[d];
    (reach < 0 ? first : last) += reach;
  }
  const auto item = static_cast<int64_t>(data_.itemsize());
  host_.resize(data_.size() == 0 ? 0 : static_cast<size_t>((last - first + 1) * item));
  const auto* const from = static_cast<const std::byte*>(data_.data()) + first * item;
  try {
    if (!host_.empty()) {
      copy_from_device(framework_.cuda_device, host_.data(), from, std::ssize(host_));
    }
  } catch (const DeviceError& error) {
    throw DeviceError(std::string(name) + ": " + error.what() + " (or use .cpu())");
  }
  data_ = nb::ndarray<nb::ro>(host_.data() - first * item, ndim, shape.data(), nb::handle(),
                              strides.data(), data_.dtype(), nb::device::cpu::value);
}

const nb::ndarray<nb::ro>& Array::data(const char* name) const {
  check_arg(is_given(), std::string(name) + " is missing");
  if (data_.is_valid()) {
    if (data_.device_type() == nb::device::cuda::value) copy_to_host(name);
    check_arg(data_.device_type() == nb::device::cpu::value,
              std::string(name) + " is neither on the CPU nor on a CUDA device: use .cpu()");
    return data_;
  }
  if (framework_.kind == Framework::kTorch) {
    throw std::invalid_argument(std::string(name) +
                                (has_gradient(source_)
                                     ? " requires a gradient, and kvquant has none: use .detach()"
                                     : " can't be read through DLPack: it has to be a dense tensor "
                                       "on the CPU"));
  }
  throw nb::type_error((std::string(name) + " is of type " + type_of(source_) +
                        ", not a numpy array or a torch tensor of numbers")
                           .c_str());
}

std::vector<int64_t> Array::shape(const char* name) const {
  const auto& array = data(name);
  return {array.shape_ptr(), array.shape_ptr() + array.ndim()};
}

template <int Rank>
Floats<Rank>::Floats(const char* name, const Array& argument) {
  if (!argument.is_given()) return;
  const auto& array = argument.data(name);
  check_rank(name, array, Rank);
  const bool is_direct = is_of(array.dtype(), Code::Float, 32) &&
                         (array.stride(Rank - 1) == 1 || array.shape(Rank - 1) <= 1);
  if (!is_direct) copy_ = floats_of(name, array);
  view_.data = is_direct ? static_cast<const float*>(array.data()) : copy_.data();
  int64_t stride = 1;
  for (int d = Rank - 1; d >= 0; --d) {
    view_.shape[d] = static_cast<int64_t>(array.shape(d));
    view_.stride[d] = is_direct ? array.stride(d) : stride;
    stride *= view_.shape[d];
  }
  if (is_direct) view_.stride[Rank - 1] = 1;
}

template class Floats<1>;
template class Floats<2>;
template class Floats<3>;
template class Floats<4>;

std::vector<float> to_floats(const char* name, const Array& array) {
  return floats_of(name, array.data(name));
}
std::vector<int64_t> to_int64(const char* name, const Array& array) {
  return integers_of<int64_t>(name, array);
}
std::vector<int32_t> to_int32(const char* name, const Array& array) {
  return integers_of<int32_t>(name, array);
}
std::vector<uint8_t> to_uint8(const char* name, const Array& array) {
  return integers_of<uint8_t>(name, array);
}

Mask::Mask(const char* name, const Array& argument) {
  if (!argument.is_given()) return;
  const auto& array = argument.data(name);
  check_rank(name, array, 2);
  batch_ = static_cast<int64_t>(array.shape(0));
  seq_len_ = static_cast<int64_t>(array.shape(1));
  values_.reserve(array.size() + 1);  // with data, even if it is empty
  const auto keep = [&](auto value) {
    const auto at = static_cast<int64_t>(values_.size());
    check_arg(value == 0 || value == 1, std::string(name) + " holds " + std::to_string(value) +
                                            " in row " + std::to_string(at / seq_len_) +
                                            " at position " + std::to_string(at % seq_len_) +
                                            ", not 0 or 1");
    values_.push_back(value == 1);
  };
  if (array.dtype().code == static_cast<uint8_t>(Code::Bool)) {
    for_each_as<uint8_t>(array, keep);
  } else if (!for_each_integer(array, keep)) {
    std::vector<float> floats = floats_of(name, array);
    std::for_each(floats.begin(), floats.end(), keep);
  }
}

TensorView<const uint8_t, 2> Mask::view() const {
  if (values_.capacity() == 0) return {};
  return row_major<const uint8_t, 2>(values_.data(), {batch_, seq_len_});
}

template <class T>
nb::object to_python(Result<T> result) {
  result.data.reserve(1);  // an address, even if it is empty
  auto owned = std::make_unique<std::vector<T>>(std::move(result.data));
  T* const data = owned->data();
  const nb::capsule owner(owned.get(), [](void* p) noexcept {
    const std::unique_ptr<std::vector<T>> freed(static_cast<std::vector<T>*>(p));
  });
  static_cast<void>(owned.release());
  std::vector<size_t> shape(result.shape.begin(), result.shape.end());
  const auto dtype = result.is_bool ? nb::dtype<bool>() : nb::dtype<T>();
  if (result.framework.kind == Framework::kTorch) {
    const nb::ndarray<nb::pytorch> array(data, shape.size(), shape.data(), owner, nullptr, dtype,
                                         nb::device::cpu::value);
    const nb::object tensor = nb::cast(array, nb::rv_policy::reference);
    const int device = result.framework.cuda_device;
    return device < 0 ? tensor : tensor.attr("to")("cuda:" + std::to_string(device));
  }
  const nb::ndarray<nb::numpy> array(data, shape.size(), shape.data(), owner, nullptr, dtype,
                                     nb::device::cpu::value);
  return nb::cast(array, nb::rv_policy::reference);
}

template nb::object to_python(Result<float>);
template nb::object to_python(Result<double>);
template nb::object to_python(Result<uint8_t>);
template nb::object to_python(Result<int32_t>);
template nb::object to_python(Result<int64_t>);

}  // namespace kvquant::python
