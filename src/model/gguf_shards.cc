#include "model/gguf_shards.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <set>
#include <utility>

#include "base/quote.h"
#include "kvquant/error.h"

namespace kvquant {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxShards = 65535;  // split.count has 16 bits

[[noreturn]] void fail(const Gguf& shard, const std::string& what) {
  throw FormatError(shard.path() + ": " + what);
}

int64_t num_shards(const Gguf& shard) {
  const int64_t count = shard.integer("split.count").value_or(0);
  if (count < 0 || count > kMaxShards) {
    fail(shard, fmt::format("split.count {} is not between 0 and {}", count, kMaxShards));
  }
  return std::max<int64_t>(count, 1);  // 0 is what some programs write for whole files
}

std::string name_end(int64_t index, int64_t count) {
  return fmt::format("-{:05}-of-{:05}.gguf", index + 1, count);
}

void check_place(const Gguf& shard, int64_t index, int64_t count) {
  if (num_shards(shard) != count) {
    fail(shard,
         fmt::format("split.count is {}, that of its first shard {}", num_shards(shard), count));
  }
  const int64_t own = shard.integer("split.no").value_or(-1);
  if (own != index) {
    fail(shard, fmt::format("split.no is {}, the name says {}: shards were renamed", own, index));
  }
}

// What shards of one model all have. The first one has all metadata, the others may have some.
void check_metadata(const Gguf& first, const Gguf& shard) {
  for (const auto& [key, value] : shard.metadata()) {
    const auto found = first.metadata().find(key);
    if (key == "split.no" || key == "general.alignment" || found == first.metadata().end()) {
      continue;
    }
    const GgufValue& other = found->second;
    if (value.type != other.type || value.is_array != other.is_array ||
        !std::equal(value.bytes.begin(), value.bytes.end(), other.bytes.begin(),
                    other.bytes.end())) {
      fail(shard, fmt::format("{} differs from that of {}: a shard of another model", quote(key),
                              first.path()));
    }
  }
}

void check_num_tensors(const std::vector<Gguf>& shards) {
  int64_t count = 0;
  for (const Gguf& shard : shards) count += static_cast<int64_t>(shard.tensors().size());
  for (const Gguf& shard : shards) {
    const int64_t expected = shard.integer("split.tensors.count").value_or(count);
    if (expected != count) {
      fail(shard, fmt::format("split.tensors.count is {}, but the {} shards have {} tensors",
                              expected, shards.size(), count));
    }
  }
}

}  // namespace

std::vector<std::string> gguf_shard_paths(const Gguf& shard) {
  const int64_t count = num_shards(shard);
  const std::string& path = shard.path();
  if (count == 1) return {path};
  const int64_t own = shard.integer("split.no").value_or(-1);
  if (own < 0 || own >= count) {
    fail(shard, fmt::format("split.no {} is not one of {} shards", own, count));
  }
  const std::string end = name_end(own, count);
  if (!path.ends_with(end)) {
    fail(shard, fmt::format("shard {} of {} by its metadata: its name must end with {}", own + 1,
                            count, quote(end)));
  }
  const std::string begin = path.substr(0, path.size() - end.size());
  std::vector<std::string> paths;
  for (int64_t i = 0; i < count; ++i) paths.push_back(begin + name_end(i, count));
  return paths;
}

Gguf join_gguf_shards(std::vector<Gguf> shards) {
  const auto count = static_cast<int64_t>(shards.size());
  std::set<std::string, std::less<>> names;
  for (int64_t i = 0; count > 1 && i < count; ++i) {
    const Gguf& shard = shards[static_cast<size_t>(i)];
    check_place(shard, i, count);
    check_metadata(shards[0], shard);
    for (const GgufTensor& tensor : shard.tensors()) {
      if (!names.insert(tensor.name).second) {
        fail(shard, "tensor " + quote(tensor.name) + " is in two shards");
      }
    }
  }
  check_num_tensors(shards);
  for (size_t i = 1; i < shards.size(); ++i) shards[0].append_tensors(shards[i]);
  return std::move(shards[0]);
}

Gguf open_gguf_shards(const MappedFile& file, std::vector<MappedFile>& files) {
  const std::string& own_path = file.path();
  const auto paths = gguf_shard_paths(Gguf(file.bytes(), own_path));
  std::vector<Gguf> shards;
  for (size_t i = 0; i < paths.size(); ++i) {
    std::error_code ignored;
    if (paths[i] != own_path && !fs::exists(paths[i], ignored)) {
      throw IoError(
          fmt::format("{}: missing: shard {} of the {} of a model", paths[i], i + 1, paths.size()));
    }
    files.emplace_back(paths[i]);
    shards.emplace_back(files.back().bytes(), paths[i]);
  }
  return join_gguf_shards(std::move(shards));
}

}  // namespace kvquant
