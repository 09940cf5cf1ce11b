// GGUF files, versions 2 and 3, little-endian: typed metadata and tensors, checked and kept as
// views of the file's bytes. https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
//
//   "GGUF"  uint32 version  uint64 num_tensors  uint64 num_metadata
//   metadata: string key, uint32 type, value     (string: uint64 length, bytes)
//                                                (array: uint32 type, uint64 count, elements)
//   tensor:   string name, uint32 num_dims, uint64 dims[num_dims] (innermost first), uint32 type,
//             uint64 offset into the data
//   padding to general.alignment (32), then the data
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/dequant.h"

namespace kvquant {

enum class GgufType : uint32_t {
  kUint8,
  kInt8,
  kUint16,
  kInt16,
  kUint32,
  kInt32,
  kFloat32,
  kBool,
  kString,
  kArray,
  kUint64,
  kInt64,
  kFloat64,
};

// A metadata value as it is stored: one element, or the elements of an array.
struct GgufValue {
  GgufType type;  // of an element; never kArray
  bool is_array;
  int64_t count;  // 1 when it is not an array
  std::span<const std::byte> bytes;
};

struct GgufTensor {
  std::string name;
  std::vector<int64_t> shape;  // outermost first, 1 to 4 numbers > 0, innermost last
  const WeightFormat* format;
  std::span<const std::byte> data;
};

class Gguf {
 public:
  // Reads the whole header; views stay valid as long as `bytes`. Throws FormatError naming `path`
  // when anything is wrong: counts, lengths or offsets out of range, two keys or tensors of one
  // name, tensors that overlap, a type that is not known.
  Gguf(std::span<const std::byte> bytes, std::string path);

  const std::string& path() const { return path_; }
  uint32_t version() const { return version_; }
  const std::vector<GgufTensor>& tensors() const { return tensors_; }
  const std::map<std::string, GgufValue, std::less<>>& metadata() const { return metadata_; }

  // Metadata by key: nothing when it is absent; FormatError when it has another type. Integers may
  // have any width; the value must be in int64's range.
  bool has(std::string_view key) const { return metadata_.find(key) != metadata_.end(); }
  std::optional<std::string> text(std::string_view key) const;
  std::optional<int64_t> integer(std::string_view key) const;
  std::optional<double> number(std::string_view key) const;  // a float or an integer
  std::optional<bool> boolean(std::string_view key) const;
  std::optional<std::vector<std::string>> texts(std::string_view key) const;
  std::optional<std::vector<int64_t>> integers(std::string_view key) const;

  // Adds the tensors of another file, whose names must be others.
  void append_tensors(const Gguf& other) {
    tensors_.insert(tensors_.end(), other.tensors_.begin(), other.tensors_.end());
  }

 private:
  std::string path_;
  uint32_t version_ = 0;
  std::map<std::string, GgufValue, std::less<>> metadata_;
  std::vector<GgufTensor> tensors_;
};

// True when the bytes begin like a GGUF file.
bool is_gguf(std::span<const std::byte> bytes);

}  // namespace kvquant
