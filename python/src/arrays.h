// Arrays that cross the border: numpy arrays and torch CPU tensors come in through DLPack as views,
// CUDA tensors as copies; results go out in the caller's framework, to the device they came from.
// What doesn't fit is a std::invalid_argument (of another kind than an array: a TypeError) that
// names the argument, the rule and what was found.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/filesystem.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kvquant/tensor_view.h"

namespace kvquant::python {

namespace nb = nanobind;
using Path = std::filesystem::path;  // str or os.PathLike

struct Framework {
  enum Kind { kNumpy, kTorch };
  Framework(Kind of = kNumpy) : kind(of) {}  // NOLINT(google-explicit-constructor)

  Kind kind;
  int cuda_device = -1;  // of a torch tensor that is not on the CPU
};

// An argument: nothing (None), or any object; functions that read it check that it is an array.
class Array {
 public:
  Array() = default;
  explicit Array(nb::handle source);

  bool is_given() const { return source_.is_valid(); }
  Framework framework() const { return framework_; }
  // On the CPU: of a CUDA tensor a copy, made when it is first asked for. Throws for what is no
  // array. `name` is that of the argument, here and below.
  const nb::ndarray<nb::ro>& data(const char* name) const;
  std::vector<int64_t> shape(const char* name) const;

 private:
  void copy_to_host(const char* name) const;

  nb::object source_;
  mutable nb::ndarray<nb::ro> data_;
  mutable std::vector<std::byte> host_;
  Framework framework_ = Framework::kNumpy;
};

// The argument whose framework the result has: stubs give both the same type.
class LeadingArray : public Array {
  using Array::Array;
};

std::string describe_shape(std::span<const int64_t> shape);  // "[2, 8, 64]"

// An argument [*, *, ...] of float32 numbers, or of float16 or bfloat16, which are widened. The
// view is of the argument's own memory where it has float32 and an innermost stride of 1, else of a
// copy that lives here; empty where the argument is not given.
template <int Rank>
class Floats {
 public:
  Floats(const char* name, const Array& array);
  TensorView<const float, Rank> view() const { return view_; }

 private:
  TensorView<const float, Rank> view_{};
  std::vector<float> copy_;
};

// All elements, row-major: of float32, float16 or bfloat16; of integers that fit.
std::vector<float> to_floats(const char* name, const Array& array);
std::vector<int64_t> to_int64(const char* name, const Array& array);
std::vector<int32_t> to_int32(const char* name, const Array& array);
std::vector<uint8_t> to_uint8(const char* name, const Array& array);

// An attention mask [batch, seq_len] of booleans, integers or floats, all 0 or 1. Without data
// where it is not given.
class Mask {
 public:
  Mask(const char* name, const Array& array);
  TensorView<const uint8_t, 2> view() const;

 private:
  std::vector<uint8_t> values_;
  int64_t batch_ = 0, seq_len_ = 0;
};

// An array to be: `data` has as many elements as `shape` says. Elements of uint8_t may be meant as
// booleans.
template <class T>
struct Result {
  std::vector<T> data{};
  std::vector<int64_t> shape{};
  Framework framework = Framework::kNumpy;
  bool is_bool = false;
};

// The same where no argument of the call tells the framework: stubs say Any.
template <class T>
struct AnyResult {
  Result<T> result;
};

// Of float, double, uint8_t, int32_t and int64_t.
template <class T>
nb::object to_python(Result<T> result);

}  // namespace kvquant::python

namespace nanobind::detail {

template <>
struct type_caster<kvquant::python::Array> {
  NB_TYPE_CASTER(kvquant::python::Array, const_name("kvquant._types.Array"))

  bool from_python(handle source, uint32_t, cleanup_list*) noexcept {
    if (!source.is_none()) value = kvquant::python::Array(source);
    return true;
  }
};

template <>
struct type_caster<kvquant::python::LeadingArray> {
  NB_TYPE_CASTER(kvquant::python::LeadingArray, const_name("kvquant._types.ArrayT"))

  bool from_python(handle source, uint32_t, cleanup_list*) noexcept {
    if (!source.is_none()) value = kvquant::python::LeadingArray(source);
    return true;
  }
};

template <class T>
struct type_caster<kvquant::python::Result<T>> {
  NB_TYPE_CASTER(kvquant::python::Result<T>, const_name("kvquant._types.ArrayT"))

  bool from_python(handle, uint32_t, cleanup_list*) noexcept { return false; }
  static handle from_cpp(kvquant::python::Result<T>&& result, rv_policy, cleanup_list*) {
    return kvquant::python::to_python(std::move(result)).release();
  }
};

template <class T>
struct type_caster<kvquant::python::AnyResult<T>> {
  NB_TYPE_CASTER(kvquant::python::AnyResult<T>, const_name("typing.Any"))

  bool from_python(handle, uint32_t, cleanup_list*) noexcept { return false; }
  static handle from_cpp(kvquant::python::AnyResult<T>&& any, rv_policy, cleanup_list*) {
    return kvquant::python::to_python(std::move(any.result)).release();
  }
};

}  // namespace nanobind::detail
