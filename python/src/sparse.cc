// include/kvquant/sparse.h in Python.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include "arrays.h"
#include "bindings.h"
#include "kvquant/sparse.h"

using namespace nanobind::literals;

namespace kvquant::python {
namespace {

SparseValueType value_type_of(const std::string& name) {
  if (name == "float32") return SparseValueType::kF32;
  if (name == "float16") return SparseValueType::kF16;
  throw std::invalid_argument("value_type is '" + name + "', not 'float32' or 'float16'");
}

nb::tuple standard(StandardSparse sparse) {
  const auto tokens = static_cast<int64_t>(sparse.offsets.size());
  const auto count = static_cast<int64_t>(sparse.values.size());
  return nb::make_tuple(to_python(Result<int64_t>{std::move(sparse.offsets), {tokens}}),
                        to_python(Result<int32_t>{std::move(sparse.indices), {count}}),
                        to_python(Result<float>{std::move(sparse.values), {count}}));
}

AnyResult<float> dense(SparseDense matrix) {
  return {{std::move(matrix.values), {matrix.num_rows, matrix.num_cols}}};
}

template <class Matrix>
nb::dict footprint(const Matrix& matrix) {
  const SparseFootprint bytes = matrix.memory_footprint();
  nb::dict out;
  out["offset_bytes"] = bytes.offset_bytes;
  out["data_bytes"] = bytes.data_bytes;
  out["total_bytes"] = bytes.total_bytes;
  out["num_nonzeros"] = bytes.num_nonzeros;
  return out;
}

template <class Matrix>
void append_token(Matrix& matrix, const Array& indices, const Array& values) {
  matrix.append_token(to_int32("indices", indices), to_floats("values", values));
}

template <class Matrix>
void append_batch(Matrix& matrix, const Array& offsets, const Array& indices, const Array& values) {
  matrix.append_batch(to_int64("offsets", offsets), to_int32("indices", indices),
                      to_floats("values", values));
}

// What the two matrices share. Calls are short and keep the GIL.
template <class Matrix>
nb::class_<Matrix> bind_matrix(nb::module_& module, const char* name, const char* width,
                               const char* doc) {
  const char* const token_doc =
      "Appends one token: ascending indices (any integer type) and as many float32 values.";
  const char* const batch_doc =
      "Appends len(offsets) - 1 tokens; token t has entries offsets[t] up to offsets[t + 1].";
  return nb::class_<Matrix>(module, name, doc)
      .def(nb::new_([](int64_t size, int64_t block_size, const std::string& value_type) {
             return Matrix(size, block_size, value_type_of(value_type));
           }),
           nb::arg(width), "block_size"_a = 256, "value_type"_a = "float32")
      .def("append_token", &append_token<Matrix>, "indices"_a, "values"_a, token_doc)
      .def("append", &append_token<Matrix>, "indices"_a, "values"_a, token_doc)
      .def("append_batch", &append_batch<Matrix>, "offsets"_a, "indices"_a, "values"_a, batch_doc)
      .def("batch_append", &append_batch<Matrix>, "offsets"_a, "indices"_a, "values"_a, batch_doc)
      .def("memory_footprint", &footprint<Matrix>,
           "Allocated bytes: offset_bytes, data_bytes, total_bytes, and num_nonzeros.")
      .def_prop_ro("num_tokens", [](const Matrix& self) { return self.num_tokens(); })
      .def_prop_ro("num_nonzeros", [](const Matrix& self) { return self.num_nonzeros(); })
      .def_prop_ro("num_blocks", [](const Matrix& self) { return self.num_blocks(); })
      .def_prop_ro("block_size", [](const Matrix& self) { return self.block_size(); })
      .def_prop_ro("num_rows", [](const Matrix& self) { return self.num_rows(); })
      .def_prop_ro("num_cols", [](const Matrix& self) { return self.num_cols(); })
      .def(
          "to_dense", [](const Matrix& self) { return dense(self.to_dense()); },
          "float32 [num_rows, num_cols].");
}

}  // namespace

void bind_sparse(nb::module_& module) {
  bind_matrix<BlockedCSCMatrix>(
      module, "BlockedCSCMatrix", "num_rows",
      "Outliers of keys, [num_rows, num_tokens], that grow token by token; nothing that was\n"
      "appended moves.")
      .def(
          "to_standard_csc",
          [](const BlockedCSCMatrix& self) { return standard(self.to_standard_csc()); },
          "(offsets int64 [num_tokens + 1], indices int32 [nnz], values float32 [nnz]).");
  bind_matrix<BlockedCSRMatrix>(
      module, "BlockedCSRMatrix", "num_cols",
      "Outliers of values, [num_tokens, num_cols], that grow token by token.")
      .def(
          "to_standard_csr",
          [](const BlockedCSRMatrix& self) { return standard(self.to_standard_csr()); },
          "(offsets int64 [num_tokens + 1], indices int32 [nnz], values float32 [nnz]).");
}

}  // namespace kvquant::python
