#include "cache/cache_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/quote.h"
#include "cache/out_of_memory.h"
#include "formats/json_fields.h"
#include "kvquant/error.h"

namespace kvquant {
namespace {

constexpr char kMagic[] = "KVQCACHE";  // 8 bytes without the terminator
constexpr uint32_t kByteOrder = 0x01020304, kOtherByteOrder = 0x04030201;
constexpr int64_t kMaxHeaderBytes = int64_t{1} << 24;
constexpr int64_t kAlignment = 64;

struct Preamble {
  char magic[8];
  uint32_t version;
  uint32_t byte_order;
  uint64_t header_bytes;
  uint64_t header_hash;
};
static_assert(sizeof(Preamble) == 32);
constexpr auto kPreambleBytes = static_cast<int64_t>(sizeof(Preamble));

constexpr int64_t aligned(int64_t offset) {
  return (offset + kAlignment - 1) / kAlignment * kAlignment;
}

const char* mode_name(CacheMode mode) {
  return mode == CacheMode::kStrict ? "strict" : "as-served";
}

std::string calibration_of(const KvCache& cache) {
  const Calibration* calibration = cache.calibration().get();
  return calibration == nullptr ? "none" : calibration_hash(*calibration);
}

std::string hash_of(const StoredSection& section) {
  Hash64 hash;
  for (const auto& piece : section.pieces) hash.add_bytes(piece);
  return hash.hex();
}

std::string hash_of_tokens(std::span<const int32_t> tokens) {
  Hash64 hash;
  for (const int32_t token : tokens) hash.add_integer(token);
  return hash.hex();
}

// ---- writing

Json header_of(const KvCache& cache, const CacheFileInfo& info, const StoredSequence& stored,
               const std::string& tokens_hash) {
  const KvShape& shape = cache.shape();
  return {{"kvquant_version", info.kvquant_version},
          {"model_fingerprint", info.model_fingerprint},
          {"calibration", calibration_of(cache)},
          {"spec_resolved", resolved(cache.spec())},
          {"mode", mode_name(cache.mode())},
          {"num_layers", shape.num_layers},
          {"num_kv_heads", shape.num_kv_heads},
          {"head_dim", shape.head_dim},
          {"num_tokens", stored.num_tokens},
          {"num_encoded", stored.num_encoded},
          {"tokens_hash", tokens_hash}};
}

// Where each of the sections begins, from the start of the data.
Json table_of(const std::vector<StoredSection>& sections) {
  Json table = Json::array();
  int64_t offset = 0;
  for (const StoredSection& section : sections) {
    const int64_t bytes = section.num_bytes();
    table.push_back(
        {{"name", section.name}, {"offset", offset}, {"bytes", bytes}, {"hash", hash_of(section)}});
    offset = aligned(offset + bytes);
  }
  return table;
}

Preamble preamble_of(const std::string& header) {
  Preamble out{.magic = {},
               .version = kCacheFileVersion,
               .byte_order = kByteOrder,
               .header_bytes = header.size(),
               .header_hash = 0};
  std::memcpy(out.magic, kMagic, sizeof(out.magic));
  Hash64 hash;
  hash.add_bytes(std::as_bytes(std::span(header)));
  out.header_hash = hash.value();
  return out;
}

// ---- reading

[[noreturn]] void fail(const std::string& path, const std::string& rule) {
  throw FormatError(path + ": " + rule);
}

// The header's JSON text.
std::string read_header(std::span<const std::byte> bytes, const std::string& path) {
  const auto num_bytes = static_cast<int64_t>(bytes.size());
  if (bytes.empty()) fail(path, "empty");
  Preamble preamble{};
  std::memcpy(&preamble, bytes.data(), std::min(bytes.size(), sizeof(preamble)));
  if (std::memcmp(preamble.magic, kMagic, sizeof(preamble.magic)) != 0) {
    fail(path, "not a cache file: it doesn't begin with KVQCACHE");
  }
  if (num_bytes < kPreambleBytes) fail(path, fmt::format("truncated: {} bytes", num_bytes));
  if (preamble.byte_order == kOtherByteOrder) {
    fail(path, "written on a machine of the other byte order");
  }
  if (preamble.byte_order != kByteOrder) fail(path, "the mark of the byte order is wrong");
  if (preamble.version != kCacheFileVersion) {
    fail(path, fmt::format("version {}, this program reads version {}", preamble.version,
                           kCacheFileVersion));
  }
  const int64_t most = std::min(kMaxHeaderBytes, num_bytes - kPreambleBytes);
  if (preamble.header_bytes > static_cast<uint64_t>(most)) {
    fail(path, fmt::format("truncated: a header of {} bytes in a file of {}", preamble.header_bytes,
                           num_bytes));
  }
  const auto header = bytes.subspan(sizeof(Preamble), preamble.header_bytes);
  Hash64 hash;
  hash.add_bytes(header);
  if (hash.value() != preamble.header_hash) fail(path, "the header's checksum is wrong");
  return {reinterpret_cast<const char*>(header.data()), header.size()};
}

std::string require_text(const Json& json, const char* key, const std::string& path) {
  const auto text = json_text(json, key, path);
  if (!text) fail(path, std::string(key) + " is missing");
  return *text;
}

// Nothing may hide between sections.
void check_padding(std::span<const std::byte> bytes, int64_t begin, int64_t end,
                   const std::string& path) {
  const auto gap =
      bytes.subspan(static_cast<size_t>(begin), static_cast<size_t>(std::max(begin, end) - begin));
  if (std::any_of(gap.begin(), gap.end(), [](std::byte b) { return b != std::byte{0}; })) {
    fail(path, fmt::format("bytes {} to {} are not all zero", begin, end));
  }
}

// Sections one behind the other, each aligned; the first is `tokens`.
void read_table(const Json& json, std::span<const std::byte> bytes, int64_t header_end,
                CacheFile& out) {
  const std::string& path = out.sequence.origin;
  const auto table = json.find("sections");
  if (table == json.end() || !table->is_array() || table->empty()) {
    fail(path, "sections is not a list of sections");
  }
  const auto num_bytes = static_cast<int64_t>(bytes.size());
  const int64_t data = aligned(header_end);
  int64_t end = header_end;
  for (const Json& entry : *table) {
    if (!entry.is_object()) fail(path, "a section is not an object");
    StoredSection section{require_text(entry, "name", path)};
    const int64_t offset = require_integer(entry, "offset", path);
    const int64_t size = require_integer(entry, "bytes", path);
    const int64_t begin = aligned(end);
    if (offset != begin - data) {
      fail(path, fmt::format("section {} is at {}, expected {}", quote(section.name), offset,
                             begin - data));
    }
    if (size < 0 || begin > num_bytes || size > num_bytes - begin) {
      fail(path, fmt::format("truncated: section {} has {} bytes at {}, the file {}",
                             quote(section.name), size, begin, num_bytes));
    }
    check_padding(bytes, end, begin, path);
    section.pieces.push_back(bytes.subspan(static_cast<size_t>(begin), static_cast<size_t>(size)));
    end = begin + size;
    out.hashes.push_back(require_text(entry, "hash", path));
    out.sequence.sections.push_back(std::move(section));
  }
  if (end != num_bytes) {
    fail(path, fmt::format("{} bytes behind the last section", num_bytes - end));
  }
  out.tokens = std::move(out.sequence.sections.front());
  out.sequence.sections.erase(out.sequence.sections.begin());
}

}  // namespace

void save_cache(KvCache& cache, KvCache::SequenceId id, std::span<const int32_t> tokens,
                const CacheFileInfo& info, const std::string& path) {
  const StoredSequence stored = cache.store(id);
  check_arg(static_cast<int64_t>(tokens.size()) == stored.num_tokens,
            fmt::format("save_cache: {} token ids of a sequence of {}", tokens.size(),
                        stored.num_tokens));
  std::vector<StoredSection> sections;
  add_section(sections, "tokens", tokens.data(), stored.num_tokens);
  sections.insert(sections.end(), stored.sections.begin(), stored.sections.end());
  Json json = header_of(cache, info, stored, hash_of_tokens(tokens));
  json["sections"] = table_of(sections);
  const std::string header = json.dump(-1, ' ', true, Json::error_handler_t::replace);
  check_arg(static_cast<int64_t>(header.size()) <= kMaxHeaderBytes,
            fmt::format("save_cache: a header of {} bytes", header.size()));
  const Preamble preamble = preamble_of(header);
  write_file_atomic(path, [&](const ByteSink& sink) {
    constexpr std::byte kZeros[kAlignment] = {};
    int64_t at = 0;
    const auto write = [&](std::span<const std::byte> bytes) {
      sink(bytes);
      at += static_cast<int64_t>(bytes.size());
    };
    write(std::as_bytes(std::span(&preamble, 1)));
    write(std::as_bytes(std::span(header)));
    for (const StoredSection& section : sections) {
      write(std::span(kZeros).first(static_cast<size_t>(aligned(at) - at)));
      for (const auto& piece : section.pieces) write(piece);
    }
  });
}

CacheFile parse_cache_file(std::span<const std::byte> bytes, const std::string& path) {
  const std::string header = read_header(bytes, path);
  const Json json = parse_json_object(header, path);
  CacheFile out;
  out.info = {.kvquant_version = require_text(json, "kvquant_version", path),
              .model_fingerprint = require_text(json, "model_fingerprint", path)};
  out.calibration = require_text(json, "calibration", path);
  out.spec = require_text(json, "spec_resolved", path);
  out.mode = require_text(json, "mode", path);
  out.shape = {.num_layers = require_integer(json, "num_layers", path),
               .num_kv_heads = require_integer(json, "num_kv_heads", path),
               .head_dim = require_integer(json, "head_dim", path)};
  out.tokens_hash = require_text(json, "tokens_hash", path);
  out.sequence.origin = path;
  out.sequence.num_tokens = require_integer(json, "num_tokens", path);
  out.sequence.num_encoded = require_integer(json, "num_encoded", path);
  read_table(json, bytes, kPreambleBytes + static_cast<int64_t>(header.size()), out);
  const int64_t num_bytes = out.tokens.num_bytes();
  if (out.tokens.name != "tokens" || num_bytes % 4 != 0 ||
      num_bytes / 4 != out.sequence.num_tokens) {
    fail(path, fmt::format("the first section is {} of {} bytes, expected the ids of {} tokens",
                           quote(out.tokens.name), num_bytes, out.sequence.num_tokens));
  }
  return out;
}

void check_cache_file_fits(const CacheFile& file, const KvCache& cache,
                           const std::string& model_fingerprint) {
  const auto compare = [&](const char* thing, const std::string& found, const std::string& wanted) {
    if (found == wanted) return;
    fail(file.sequence.origin,
         fmt::format("its {} is {}, but {} is asked for", thing, quote(found), quote(wanted)));
  };
  const auto text_of = [](const KvShape& shape) {
    return fmt::format("{} layers, {} KV heads, head_dim {}", shape.num_layers, shape.num_kv_heads,
                       shape.head_dim);
  };
  compare("model", file.info.model_fingerprint, model_fingerprint);
  compare("shape", text_of(file.shape), text_of(cache.shape()));
  compare("spec", file.spec, resolved(cache.spec()));
  compare("mode", file.mode, mode_name(cache.mode()));
  compare("calibration", file.calibration, calibration_of(cache));
}

void check_cache_file_hashes(const CacheFile& file) {
  for (size_t i = 0; i < file.hashes.size(); ++i) {
    const StoredSection& section = i == 0 ? file.tokens : file.sequence.sections[i - 1];
    if (hash_of(section) == file.hashes[i]) continue;
    fail(file.sequence.origin,
         fmt::format("damaged: the checksum of section {} is wrong", quote(section.name)));
  }
}

LoadedSequence restore_cache(KvCache& cache, const CacheFile& file) {
  LoadedSequence out;
  or_out_of_memory("cache",
                   [&] { out.tokens.resize(static_cast<size_t>(file.sequence.num_tokens)); });
  if (!out.tokens.empty()) {
    std::memcpy(out.tokens.data(), file.tokens.pieces[0].data(), file.tokens.pieces[0].size());
  }
  if (hash_of_tokens(out.tokens) != file.tokens_hash) {
    fail(file.sequence.origin, "tokens_hash is not that of the tokens");
  }
  out.id = cache.restore(file.sequence);
  return out;
}

LoadedSequence load_cache(KvCache& cache, const std::string& model_fingerprint,
                          const std::string& path) {
  const MappedFile mapped(path);
  const CacheFile file = parse_cache_file(mapped.bytes(), path);
  check_cache_file_fits(file, cache, model_fingerprint);
  check_cache_file_hashes(file);
  return restore_cache(cache, file);
}

}  // namespace kvquant
