// Any bytes as a GGUF file, and cut at "|SHARD|" as the shards of one: parsed, or refused with
// FormatError. What was accepted is then read to the last byte.
#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "kvquant/error.h"
#include "model/file_checkpoint.h"
#include "model/gguf.h"
#include "model/gguf_shards.h"

namespace kvquant {
namespace {

void read_tensor(const GgufTensor& tensor) {
  const WeightFormat& format = *tensor.format;
  std::vector<float> out(static_cast<size_t>(format.block_size));
  const auto num_blocks = static_cast<int64_t>(tensor.data.size()) / format.block_bytes;
  for (int64_t b = 0; b < num_blocks; ++b) {
    format.to_floats(tensor.data.data() + b * format.block_bytes, 1, out.data());
  }
  if (format.groups.size == 0) return;
  if (format.groups.fit != nullptr) format.groups.fit(tensor.data.data(), num_blocks);
  std::vector<uint8_t> codes(static_cast<size_t>(format.block_size));
  std::vector<Half> scales(static_cast<size_t>(format.block_size / format.groups.size));
  std::vector<Half> offsets(scales.size());
  for (int64_t b = 0; b < num_blocks; ++b) {
    const std::byte* block = tensor.data.data() + b * format.block_bytes;
    format.groups.convert(block, 1, {codes, scales, offsets});
  }
}

template <class Read>
void read_or_refuse(const Read& read) {
  try {
    read();
  } catch (const FormatError&) {
  }
}

void read_file(std::string_view bytes) {
  const Gguf gguf(std::as_bytes(std::span(bytes.data(), bytes.size())), "fuzz");
  std::for_each(gguf.tensors().begin(), gguf.tensors().end(), read_tensor);
  for (const auto& [key, value] : gguf.metadata()) {
    read_or_refuse([&, &k = key] { gguf.text(k); });
    read_or_refuse([&, &k = key] { gguf.number(k); });
    read_or_refuse([&, &k = key] { gguf.boolean(k); });
    read_or_refuse([&, &k = key] { gguf.texts(k); });
    read_or_refuse([&, &k = key] { gguf.integers(k); });
  }
  read_or_refuse([&] { config_from_gguf(gguf); });
  read_or_refuse([&] { tokenizer_data_from_gguf(gguf); });
}

void read_shards(std::string_view bytes) {
  constexpr std::string_view kCut = "|SHARD|";
  constexpr size_t kMostShards = 4;
  std::vector<std::string_view> parts;
  for (size_t cut = 0; cut != std::string_view::npos && parts.size() < kMostShards;) {
    cut = bytes.find(kCut);
    parts.push_back(bytes.substr(0, cut));
    if (cut != std::string_view::npos) bytes.remove_prefix(cut + kCut.size());
  }
  std::vector<Gguf> shards;
  for (size_t i = 0; i < parts.size(); ++i) {
    const std::string path =
        "m-0000" + std::to_string(i + 1) + "-of-0000" + std::to_string(parts.size()) + ".gguf";
    shards.emplace_back(std::as_bytes(std::span(parts[i].data(), parts[i].size())), path);
    read_or_refuse([&] { gguf_shard_paths(shards.back()); });
  }
  const Gguf gguf = join_gguf_shards(std::move(shards));
  std::for_each(gguf.tensors().begin(), gguf.tensors().end(), read_tensor);
  config_from_gguf(gguf);
}

}  // namespace
}  // namespace kvquant

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  kvquant::read_or_refuse([&] { kvquant::read_file(bytes); });
  kvquant::read_or_refuse([&] { kvquant::read_shards(bytes); });
  return 0;
}
