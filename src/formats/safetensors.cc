#include "formats/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/quote.h"
#include "formats/json_fields.h"
#include "kvquant/error.h"

namespace kvquant {
namespace {

static_assert(std::endian::native == std::endian::little, "numbers are read as they are stored");

constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the format's limit
constexpr size_t kLengthBytes = 8;
constexpr size_t kDataAlignment = 64;     // of what we write; readers don't rely on it
constexpr size_t kBufferBytes = 1 << 20;  // bytes written at once

[[noreturn]] void fail(const std::string& path, const std::string& what) {
  throw FormatError(path + ": " + what);
}

// Bytes of a tensor, -1 when it is not possible.
int64_t tensor_bytes(std::string_view dtype, const std::vector<int64_t>& shape) {
  int64_t bytes = dtype_bytes(dtype);
  for (const int64_t dim : shape) {
    if (dim < 0 || __builtin_mul_overflow(bytes, dim, &bytes)) return -1;
  }
  return bytes;
}

std::vector<int64_t> shape_of(const Json& entry, const std::string& who, const std::string& path) {
  const auto found = entry.find("shape");
  if (found == entry.end() || !found->is_array() || found->size() > 8) {
    fail(path, who + ": shape is not a list of up to 8 numbers");
  }
  return json_integers(entry, "shape", path);
}

SafetensorsTensor read_entry(const std::string& name, const Json& entry,
                             std::span<const std::byte> data, const std::string& path) {
  const std::string who = "tensor " + quote(name);
  if (!entry.is_object()) fail(path, who + " is not described by an object");
  const auto dtype = json_text(entry, "dtype", path);
  if (!dtype || dtype_bytes(*dtype) == 0) {
    fail(path, who + ": dtype " + quote(dtype.value_or("")) + " is not known");
  }
  const auto shape = shape_of(entry, who, path);
  const auto offsets = json_integers(entry, "data_offsets", path);
  if (offsets.size() != 2 || offsets[0] < 0 || offsets[1] < offsets[0] ||
      static_cast<uint64_t>(offsets[1]) > data.size()) {
    fail(path, who + ": data_offsets are not two offsets into " + std::to_string(data.size()) +
                   " bytes of data");
  }
  const int64_t size = tensor_bytes(*dtype, shape);
  if (size != offsets[1] - offsets[0]) {
    fail(path, who + ": data_offsets span " + std::to_string(offsets[1] - offsets[0]) +
                   " bytes, the shape needs " + (size < 0 ? "more" : std::to_string(size)));
  }
  return {name, *dtype, shape,
          data.subspan(static_cast<size_t>(offsets[0]), static_cast<size_t>(size))};
}

std::map<std::string, std::string> read_metadata(const Json& json, const std::string& path) {
  if (!json.is_object()) fail(path, "__metadata__ is not an object");
  std::map<std::string, std::string> metadata;
  for (const auto& [key, value] : json.items()) {
    if (!value.is_string()) fail(path, "__metadata__ " + quote(key) + " is not a string");
    metadata[key] = value.get<std::string>();
  }
  return metadata;
}

// Tensors lie one behind the other and fill the data.
void check_layout(const Safetensors& file, std::span<const std::byte> data,
                  const std::string& path) {
  std::vector<const SafetensorsTensor*> sorted;
  for (const auto& tensor : file.tensors) sorted.push_back(&tensor);
  std::sort(sorted.begin(), sorted.end(), [](const auto* a, const auto* b) {
    return std::pair(a->data.data(), a->data.size()) < std::pair(b->data.data(), b->data.size());
  });
  const std::byte* expected = data.data();
  for (const auto* tensor : sorted) {
    if (tensor->data.data() != expected) {
      fail(path, "tensor " + quote(tensor->name) +
                     (tensor->data.data() < expected ? " overlaps another" : " lies behind a gap"));
    }
    expected += tensor->data.size();
  }
  const auto left = data.data() + data.size() - expected;
  if (left != 0) fail(path, std::to_string(left) + " bytes behind the last tensor");
}

// Collects small parts into writes of kBufferBytes, and counts.
class BufferedSink {
 public:
  explicit BufferedSink(const ByteSink& sink) : sink_(sink) { buffer_.reserve(kBufferBytes); }

  void add(std::span<const std::byte> part) {
    num_bytes_ += static_cast<int64_t>(part.size());
    if (buffer_.size() + part.size() > kBufferBytes) flush();
    if (part.size() >= kBufferBytes) return sink_(part);
    buffer_.insert(buffer_.end(), part.begin(), part.end());
  }
  void flush() {
    sink_(buffer_);
    buffer_.clear();
  }
  int64_t num_bytes() const { return num_bytes_; }

 private:
  const ByteSink& sink_;
  std::vector<std::byte> buffer_;
  int64_t num_bytes_ = 0;
};

// Length and JSON, padded so that the data starts at a multiple of kDataAlignment.
std::string header_of(std::span<const SafetensorsEntry> entries,
                      const std::map<std::string, std::string>& metadata) {
  Json json = Json::object();
  if (!metadata.empty()) json["__metadata__"] = metadata;
  int64_t offset = 0;
  for (const auto& entry : entries) {
    const int64_t size = tensor_bytes(entry.dtype, entry.shape);
    int64_t end = 0;
    check_arg(
        dtype_bytes(entry.dtype) > 0 && size >= 0 && !__builtin_add_overflow(offset, size, &end),
        "write_safetensors: dtype or shape of " + quote(entry.name) + " is not possible");
    check_arg(entry.name != "__metadata__" && !json.contains(entry.name),
              "write_safetensors: the name " + quote(entry.name) + " is there twice");
    json[entry.name] = {
        {"dtype", entry.dtype}, {"shape", entry.shape}, {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text = json.dump();
  while ((kLengthBytes + text.size()) % kDataAlignment != 0) text += ' ';
  const uint64_t length = text.size();
  std::string header(kLengthBytes, '\0');
  std::memcpy(header.data(), &length, kLengthBytes);
  return header + text;
}

}  // namespace

int64_t dtype_bytes(std::string_view dtype) {
  if (dtype == "F32" || dtype == "I32" || dtype == "U32") return 4;
  if (dtype == "BF16" || dtype == "F16" || dtype == "I16" || dtype == "U16") return 2;
  if (dtype == "F64" || dtype == "I64" || dtype == "U64") return 8;
  if (dtype == "U8" || dtype == "I8" || dtype == "BOOL") return 1;
  if (dtype == "F8_E4M3" || dtype == "F8_E5M2") return 1;
  return 0;
}

const SafetensorsTensor* Safetensors::find(std::string_view name) const {
  const auto found = std::lower_bound(tensors.begin(), tensors.end(), name,
                                      [](const SafetensorsTensor& tensor, std::string_view wanted) {
                                        return tensor.name < wanted;
                                      });
  return found == tensors.end() || found->name != name ? nullptr : &*found;
}

Safetensors parse_safetensors(std::span<const std::byte> bytes, const std::string& path) {
  if (bytes.size() < kLengthBytes) fail(path, "not a safetensors file: shorter than 8 bytes");
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data(), kLengthBytes);
  if (header_bytes > kMaxHeaderBytes || header_bytes > bytes.size() - kLengthBytes) {
    fail(path, "not a safetensors file: a header of " + std::to_string(header_bytes) +
                   " bytes in a file of " + std::to_string(bytes.size()));
  }
  const auto header = bytes.subspan(kLengthBytes, static_cast<size_t>(header_bytes));
  const auto data = bytes.subspan(kLengthBytes + static_cast<size_t>(header_bytes));
  const Json json = parse_json_object(
      std::string(reinterpret_cast<const char*>(header.data()), header.size()), path);
  Safetensors file;
  for (const auto& [name, entry] : json.items()) {  // nlohmann sorts by name
    if (name == "__metadata__") {
      file.metadata = read_metadata(entry, path);
    } else {
      file.tensors.push_back(read_entry(name, entry, data, path));
    }
  }
  check_layout(file, data, path);
  return file;
}

std::map<std::string, std::string> parse_safetensors_index(const std::string& text,
                                                           const std::string& path) {
  const Json json = parse_json_object(text, path);
  const auto found = json.find("weight_map");
  if (found == json.end() || !found->is_object()) fail(path, "weight_map is not an object");
  std::map<std::string, std::string> files;
  for (const auto& [tensor, file] : found->items()) {
    if (!file.is_string()) fail(path, "the file of " + quote(tensor) + " is not a string");
    const auto name = file.get<std::string>();
    if (name.empty() || name == "." || name == ".." ||
        name.find_first_of(std::string_view("/\\\0", 3)) != std::string::npos) {
      fail(path, "the file " + quote(name) + " is not a name inside the folder");
    }
    files[tensor] = name;
  }
  return files;
}

void write_safetensors(const std::string& path, std::span<const SafetensorsEntry> entries,
                       const std::map<std::string, std::string>& metadata,
                       const std::function<void(size_t i, const ByteSink& sink)>& write_tensor) {
  const std::string header = header_of(entries, metadata);
  write_file_atomic(path, [&](const ByteSink& sink) {
    BufferedSink buffered(sink);
    buffered.add(std::as_bytes(std::span(header.data(), header.size())));
    for (size_t i = 0; i < entries.size(); ++i) {
      const int64_t start = buffered.num_bytes();
      write_tensor(i, [&](std::span<const std::byte> part) { buffered.add(part); });
      check_arg(buffered.num_bytes() - start == tensor_bytes(entries[i].dtype, entries[i].shape),
                "write_safetensors: wrong number of bytes for " + quote(entries[i].name));
    }
    buffered.flush();
  });
}

}  // namespace kvquant
