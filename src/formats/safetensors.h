// Safetensors files, their index, and a writer. https://github.com/huggingface/safetensors
//
//   uint64 header_bytes (little-endian)
//   header  JSON: {"name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [begin, end]}, ...,
//           "__metadata__": {"key": "text", ...}}, padded with spaces
//   data    tensors row by row, one after the other without gaps; offsets count from its start
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"

namespace kvquant {

struct SafetensorsTensor {
  std::string name;
  std::string dtype;                // "F32", "F16", "BF16", "I64", ...
  std::vector<int64_t> shape;       // outermost first; may be empty (a scalar) or hold zeros
  std::span<const std::byte> data;  // need not be aligned to anything
};

struct Safetensors {
  std::vector<SafetensorsTensor> tensors;  // by name
  std::map<std::string, std::string> metadata;

  const SafetensorsTensor* find(std::string_view name) const;  // null when there is none
};

// Views into `bytes`. Throws FormatError naming `path`: a header that is not such JSON, unknown
// dtypes, sizes other than the shape's, offsets out of range, overlaps, gaps or trailing bytes.
Safetensors parse_safetensors(std::span<const std::byte> bytes, const std::string& path);

// Bytes of one element, 0 when the dtype is not known.
int64_t dtype_bytes(std::string_view dtype);

// model.safetensors.index.json: tensor name -> file name. Throws FormatError when a file name is
// more than a name, so that nothing outside the folder is ever opened.
std::map<std::string, std::string> parse_safetensors_index(const std::string& text,
                                                           const std::string& path);

// A tensor to be written.
struct SafetensorsEntry {
  std::string name;
  std::string dtype;
  std::vector<int64_t> shape;
};

// Writes a file atomically. write_tensor(i, sink) sends the bytes of entries[i] in as many parts as
// it likes; it is called once for every entry, in order. Throws std::invalid_argument when it sends
// another number of bytes than the shape says, a name is there twice, or a dtype is not known; and
// what write_file_atomic throws.
void write_safetensors(const std::string& path, std::span<const SafetensorsEntry> entries,
                       const std::map<std::string, std::string>& metadata,
                       const std::function<void(size_t i, const ByteSink& sink)>& write_tensor);

}  // namespace kvquant
