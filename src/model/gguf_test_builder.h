// Makes small GGUF files in memory, right and wrong ones, for tests.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/gguf.h"

namespace kvquant {

class GgufBuilder {
 public:
  uint32_t version = 3;
  uint64_t alignment = 32;  // of tensors; add general.alignment as well when it is not 32

  GgufBuilder& text(std::string_view key, std::string_view value) {
    start(key, GgufType::kString);
    add_text(metadata_, value);
    return *this;
  }
  GgufBuilder& integer(std::string_view key, uint32_t value) {
    start(key, GgufType::kUint32);
    add(metadata_, value);
    return *this;
  }
  GgufBuilder& number(std::string_view key, float value) {
    start(key, GgufType::kFloat32);
    add(metadata_, value);
    return *this;
  }
  GgufBuilder& boolean(std::string_view key, bool value) {
    start(key, GgufType::kBool);
    add(metadata_, static_cast<uint8_t>(value));
    return *this;
  }
  GgufBuilder& texts(std::string_view key, const std::vector<std::string>& values) {
    start_array(key, GgufType::kString, values.size());
    for (const auto& value : values) add_text(metadata_, value);
    return *this;
  }
  GgufBuilder& integers(std::string_view key, const std::vector<int32_t>& values) {
    start_array(key, GgufType::kInt32, values.size());
    for (const int32_t value : values) add(metadata_, value);
    return *this;
  }
  // A value of any type from its bytes.
  GgufBuilder& raw(std::string_view key, uint32_t type, std::string_view bytes) {
    start(key, GgufType{type});
    metadata_ += bytes;
    return *this;
  }

  // dims innermost first, as in the file. The offset follows from the tensors before.
  GgufBuilder& tensor(std::string_view name, const std::vector<uint64_t>& dims, uint32_t type,
                      std::string_view bytes) {
    data_.resize((data_.size() + alignment - 1) / alignment * alignment);
    tensor_header(name, dims, type, data_.size());
    data_ += bytes;
    return *this;
  }
  GgufBuilder& tensor_header(std::string_view name, const std::vector<uint64_t>& dims,
                             uint32_t type, uint64_t offset) {
    ++num_tensors_;
    add_text(tensors_, name);
    add(tensors_, static_cast<uint32_t>(dims.size()));
    for (const uint64_t dim : dims) add(tensors_, dim);
    add(tensors_, type);
    add(tensors_, offset);
    return *this;
  }

  std::string bytes() const {
    std::string out = header();
    out.resize((out.size() + alignment - 1) / alignment * alignment);
    return out + data_;
  }
  std::string header() const {
    std::string out = "GGUF";
    add(out, version);
    add(out, num_tensors_);
    add(out, num_metadata_);
    return out + metadata_ + tensors_;
  }

 private:
  template <class T>
  static void add(std::string& to, T value) {
    char bytes[sizeof(T)];
    std::memcpy(bytes, &value, sizeof(T));
    to.append(bytes, sizeof(T));
  }
  static void add_text(std::string& to, std::string_view text) {
    add(to, uint64_t{text.size()});
    to += text;
  }
  void start(std::string_view key, GgufType type) {
    ++num_metadata_;
    add_text(metadata_, key);
    add(metadata_, static_cast<uint32_t>(type));
  }
  void start_array(std::string_view key, GgufType type, size_t count) {
    start(key, GgufType::kArray);
    add(metadata_, static_cast<uint32_t>(type));
    add(metadata_, uint64_t{count});
  }

  uint64_t num_tensors_ = 0;
  uint64_t num_metadata_ = 0;
  std::string metadata_, tensors_, data_;
};

inline std::span<const std::byte> as_byte_span(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

}  // namespace kvquant
