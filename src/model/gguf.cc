#include "model/gguf.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <set>
#include <utility>

#include "base/quote.h"
#include "kvquant/error.h"

namespace kvquant {
namespace {

static_assert(std::endian::native == std::endian::little, "numbers are read as they are stored");

constexpr uint64_t kMaxKeyBytes = 65535;  // the format's limits
constexpr uint64_t kMaxTensorNameBytes = 64;
constexpr uint32_t kMaxDims = 4;
constexpr int64_t kDefaultAlignment = 32;
constexpr int64_t kMaxAlignment = 1 << 20;
constexpr uint64_t kMinKeyValueBytes = 8 + 4 + 1;
constexpr uint64_t kMinTensorBytes = 8 + 4 + 8 + 4 + 8;

[[noreturn]] void fail(const std::string& path, const std::string& what) {
  throw FormatError(path + ": " + what);
}

// Bytes of one element, 0 when they vary or the type is unknown.
int64_t element_bytes(GgufType type) {
  switch (type) {
    case GgufType::kUint8:
    case GgufType::kInt8:
    case GgufType::kBool: return 1;
    case GgufType::kUint16:
    case GgufType::kInt16: return 2;
    case GgufType::kUint32:
    case GgufType::kInt32:
    case GgufType::kFloat32: return 4;
    case GgufType::kUint64:
    case GgufType::kInt64:
    case GgufType::kFloat64: return 8;
    case GgufType::kString:
    case GgufType::kArray: break;
  }
  return 0;
}

template <class T>
T load(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

// Reads from front to back; every read is checked against what is left.
class Reader {
 public:
  Reader(std::span<const std::byte> bytes, const std::string& path) : bytes_(bytes), path_(path) {}

  size_t position() const { return position_; }
  uint64_t num_left() const { return bytes_.size() - position_; }

  std::span<const std::byte> take(uint64_t count, const char* what) {
    if (count > num_left()) {
      fail(path_, std::string(what) + " of " + std::to_string(count) + " bytes at offset " +
                      std::to_string(position_) + " ends behind the file's " +
                      std::to_string(bytes_.size()));
    }
    const auto part = bytes_.subspan(position_, static_cast<size_t>(count));
    position_ += static_cast<size_t>(count);
    return part;
  }

  template <class T>
  T number(const char* what) {
    return load<T>(take(sizeof(T), what).data());
  }

  std::string_view text(uint64_t max_bytes, const char* what) {
    const auto length = number<uint64_t>(what);
    if (length > max_bytes) {
      fail(path_, std::string(what) + " has " + std::to_string(length) + " bytes, at most " +
                      std::to_string(max_bytes) + " are allowed");
    }
    const auto part = take(length, what);
    return {reinterpret_cast<const char*>(part.data()), part.size()};
  }

  GgufValue value(const std::string& key) {
    auto type = number<uint32_t>("a value's type");
    GgufValue value{GgufType{type}, false, 1, {}};
    uint64_t count = 1;
    if (value.type == GgufType::kArray) {
      type = number<uint32_t>("an array's type");
      value.type = GgufType{type};
      value.is_array = true;
      count = number<uint64_t>("an array's length");
      if (value.type == GgufType::kArray) fail(path_, quote(key) + " is an array of arrays");
    }
    const size_t start = position_;
    if (value.type == GgufType::kString) {
      // Every round takes 8 bytes or more, so a hostile count ends at the end of the file.
      for (uint64_t i = 0; i < count; ++i) text(UINT64_MAX, "a metadata string");
    } else if (const auto size = static_cast<uint64_t>(element_bytes(value.type)); size > 0) {
      if (count > num_left() / size) {
        fail(path_, quote(key) + " has " + std::to_string(count) + " elements, more than the file");
      }
      take(count * size, "a metadata value");
    } else {
      fail(path_, quote(key) + " has unknown type " + std::to_string(type));
    }
    value.count = static_cast<int64_t>(count);
    value.bytes = bytes_.subspan(start, position_ - start);
    return value;
  }

 private:
  std::span<const std::byte> bytes_;
  const std::string& path_;
  size_t position_ = 0;
};

// A tensor whose data has not been located yet.
struct TensorHeader {
  GgufTensor tensor;
  uint64_t offset;
  uint64_t num_bytes;
};

TensorHeader read_tensor_header(Reader& reader, const std::string& path) {
  TensorHeader header{};
  GgufTensor& tensor = header.tensor;
  tensor.name = reader.text(kMaxTensorNameBytes, "a tensor's name");
  const std::string who = "tensor " + quote(tensor.name);
  const auto num_dims = reader.number<uint32_t>("a tensor's number of dimensions");
  if (num_dims < 1 || num_dims > kMaxDims) {
    fail(path, who + " has " + std::to_string(num_dims) + " dimensions, not 1 to 4");
  }
  uint64_t num_elements = 1;
  for (uint32_t i = 0; i < num_dims; ++i) {
    const auto dim = reader.number<uint64_t>("a tensor's shape");
    if (dim < 1 || dim > static_cast<uint64_t>(INT64_MAX) / num_elements) {
      fail(path, who + ": dimension " + std::to_string(dim) + " is zero or too large");
    }
    num_elements *= dim;
    tensor.shape.insert(tensor.shape.begin(), static_cast<int64_t>(dim));
  }
  const auto type = reader.number<uint32_t>("a tensor's type");
  header.offset = reader.number<uint64_t>("a tensor's offset");
  tensor.format = find_weight_format(type);
  if (tensor.format == nullptr) {
    fail(path,
         who + " has type " + gguf_type_name(type) + "; supported are " + weight_format_names());
  }
  if (tensor.shape.back() % tensor.format->block_size != 0) {
    fail(path, who + ": rows of " + std::to_string(tensor.shape.back()) +
                   " are not whole blocks of " + std::to_string(tensor.format->block_size));
  }
  const uint64_t num_blocks = num_elements / static_cast<uint64_t>(tensor.format->block_size);
  const auto block_bytes = static_cast<uint64_t>(tensor.format->block_bytes);
  if (num_blocks > static_cast<uint64_t>(INT64_MAX) / block_bytes)
    fail(path, who + " is too large");
  header.num_bytes = num_blocks * block_bytes;
  return header;
}

// Sets every tensor's view; `data` is what follows the padding.
void locate(std::vector<TensorHeader>& headers, std::span<const std::byte> data, int64_t alignment,
            const std::string& path) {
  for (TensorHeader& h : headers) {
    const std::string who = "tensor " + quote(h.tensor.name);
    if (h.offset % static_cast<uint64_t>(alignment) != 0) {
      fail(path, who + ": offset " + std::to_string(h.offset) + " is not a multiple of " +
                     std::to_string(alignment));
    }
    if (h.offset > data.size() || h.num_bytes > data.size() - h.offset) {
      fail(path, who + ": " + std::to_string(h.num_bytes) + " bytes at offset " +
                     std::to_string(h.offset) + " end behind the data's " +
                     std::to_string(data.size()));
    }
    h.tensor.data = data.subspan(static_cast<size_t>(h.offset), static_cast<size_t>(h.num_bytes));
  }
  std::vector<const TensorHeader*> sorted;
  for (const TensorHeader& h : headers) sorted.push_back(&h);
  std::sort(sorted.begin(), sorted.end(),
            [](const TensorHeader* a, const TensorHeader* b) { return a->offset < b->offset; });
  for (size_t i = 1; i < sorted.size(); ++i) {
    if (sorted[i - 1]->offset + sorted[i - 1]->num_bytes > sorted[i]->offset) {
      fail(path, "tensors " + quote(sorted[i - 1]->tensor.name) + " and " +
                     quote(sorted[i]->tensor.name) + " overlap");
    }
  }
}

int64_t checked_alignment(const Gguf& gguf) {
  const int64_t alignment = gguf.integer("general.alignment").value_or(kDefaultAlignment);
  if (alignment < 1 || alignment > kMaxAlignment || (alignment & (alignment - 1)) != 0) {
    fail(gguf.path(), "general.alignment " + std::to_string(alignment) +
                          " is not a power of two up to " + std::to_string(kMaxAlignment));
  }
  return alignment;
}

std::optional<int64_t> load_integer(GgufType type, const std::byte* from) {
  switch (type) {
    case GgufType::kUint8: return load<uint8_t>(from);
    case GgufType::kInt8: return load<int8_t>(from);
    case GgufType::kUint16: return load<uint16_t>(from);
    case GgufType::kInt16: return load<int16_t>(from);
    case GgufType::kUint32: return load<uint32_t>(from);
    case GgufType::kInt32: return load<int32_t>(from);
    case GgufType::kInt64: return load<int64_t>(from);
    case GgufType::kUint64: {
      const auto value = load<uint64_t>(from);
      if (value > static_cast<uint64_t>(INT64_MAX)) return std::nullopt;
      return static_cast<int64_t>(value);
    }
    default: return std::nullopt;
  }
}

[[noreturn]] void wrong_type(const std::string& path, std::string_view key, const char* wanted) {
  fail(path, quote(key) + " is not " + wanted);
}

}  // namespace

bool is_gguf(std::span<const std::byte> bytes) {
  return bytes.size() >= 4 && std::memcmp(bytes.data(), "GGUF", 4) == 0;
}

Gguf::Gguf(std::span<const std::byte> bytes, std::string path) : path_(std::move(path)) {
  if (!is_gguf(bytes)) fail(path_, "not a GGUF file (its first bytes are not \"GGUF\")");
  Reader reader(bytes, path_);
  reader.take(4, "the magic number");
  version_ = reader.number<uint32_t>("the version");
  if (version_ == 0x02000000 || version_ == 0x03000000) fail(path_, "big-endian GGUF");
  if (version_ != 2 && version_ != 3) {
    fail(path_, "GGUF version " + std::to_string(version_) + ", not 2 or 3");
  }
  const auto num_tensors = reader.number<uint64_t>("the number of tensors");
  const auto num_metadata = reader.number<uint64_t>("the number of metadata values");
  if (num_tensors > bytes.size() / kMinTensorBytes ||
      num_metadata > bytes.size() / kMinKeyValueBytes) {
    fail(path_, std::to_string(num_tensors) + " tensors and " + std::to_string(num_metadata) +
                    " metadata values can't be in " + std::to_string(bytes.size()) + " bytes");
  }
  for (uint64_t i = 0; i < num_metadata; ++i) {
    std::string key(reader.text(kMaxKeyBytes, "a metadata key"));
    const GgufValue value = reader.value(key);
    if (!metadata_.emplace(key, value).second) fail(path_, "two values of " + quote(key));
  }
  std::vector<TensorHeader> headers;
  std::set<std::string, std::less<>> names;
  for (uint64_t i = 0; i < num_tensors; ++i) {
    headers.push_back(read_tensor_header(reader, path_));
    const std::string& name = headers.back().tensor.name;
    if (!names.insert(name).second) fail(path_, "two tensors of the name " + quote(name));
  }
  const int64_t alignment = checked_alignment(*this);
  const auto step = static_cast<size_t>(alignment);
  const size_t data_start = (reader.position() + step - 1) / step * step;
  const bool has_data = data_start <= bytes.size();
  if (!has_data && !headers.empty()) fail(path_, "the file ends before its tensors");
  locate(headers, has_data ? bytes.subspan(data_start) : bytes.last(0), alignment, path_);
  for (TensorHeader& h : headers) tensors_.push_back(std::move(h.tensor));
}

std::optional<std::string> Gguf::text(std::string_view key) const {
  const auto found = metadata_.find(key);
  if (found == metadata_.end()) return std::nullopt;
  const GgufValue& value = found->second;
  if (value.type != GgufType::kString || value.is_array) wrong_type(path_, key, "a string");
  return std::string(Reader(value.bytes, path_).text(UINT64_MAX, "a metadata string"));
}

std::optional<int64_t> Gguf::integer(std::string_view key) const {
  const auto found = metadata_.find(key);
  if (found == metadata_.end()) return std::nullopt;
  const GgufValue& value = found->second;
  const auto number = value.is_array ? std::nullopt : load_integer(value.type, value.bytes.data());
  if (!number) wrong_type(path_, key, "an integer");
  return number;
}

std::optional<double> Gguf::number(std::string_view key) const {
  const auto found = metadata_.find(key);
  if (found == metadata_.end()) return std::nullopt;
  const GgufValue& value = found->second;
  if (!value.is_array && value.type == GgufType::kFloat32) return load<float>(value.bytes.data());
  if (!value.is_array && value.type == GgufType::kFloat64) return load<double>(value.bytes.data());
  return static_cast<double>(*integer(key));
}

std::optional<bool> Gguf::boolean(std::string_view key) const {
  const auto found = metadata_.find(key);
  if (found == metadata_.end()) return std::nullopt;
  const GgufValue& value = found->second;
  if (value.type != GgufType::kBool || value.is_array) wrong_type(path_, key, "a boolean");
  return value.bytes[0] != std::byte{0};
}

std::optional<std::vector<std::string>> Gguf::texts(std::string_view key) const {
  const auto found = metadata_.find(key);
  if (found == metadata_.end()) return std::nullopt;
  const GgufValue& value = found->second;
  if (value.type != GgufType::kString || !value.is_array) {
    wrong_type(path_, key, "an array of strings");
  }
  std::vector<std::string> out;
  out.reserve(static_cast<size_t>(value.count));  // at most num_bytes / 8
  Reader reader(value.bytes, path_);
  for (int64_t i = 0; i < value.count; ++i) {
    out.emplace_back(reader.text(UINT64_MAX, "a metadata string"));
  }
  return out;
}

std::optional<std::vector<int64_t>> Gguf::integers(std::string_view key) const {
  const auto found = metadata_.find(key);
  if (found == metadata_.end()) return std::nullopt;
  const GgufValue& value = found->second;
  std::vector<int64_t> out;
  const int64_t size = element_bytes(value.type);
  for (int64_t i = 0; value.is_array && i < value.count; ++i) {
    const auto number = load_integer(value.type, value.bytes.data() + i * size);
    if (!number) wrong_type(path_, key, "an array of integers");
    out.push_back(*number);
  }
  if (!value.is_array) wrong_type(path_, key, "an array of integers");
  return out;
}

}  // namespace kvquant
