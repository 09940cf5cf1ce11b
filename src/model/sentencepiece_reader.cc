// tokenizer.model's protobuf message, field by field:
//
//   1  pieces, repeated: 1 text, 2 score (float), 3 type
//   2  trainer: 3 model type, 24 spaces as suffixes, 35 byte fallback, 40 unk, 41 bos, 42 eos
//   3  normalizer: 2 character map, 3 dummy prefix, 4 extra spaces removed, 5 spaces as U+2581
//   5  denormalizer: 2 character map
#include <fmt/core.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <optional>

#include "kvquant/error.h"
#include "model/sentencepiece_model.h"
#include "model/tokenizer_tables.h"
#include "model/utf8.h"

namespace kvquant {
namespace {

[[noreturn]] void fail(const std::string& what) { throw FormatError("tokenizer.model: " + what); }

// One field of a protobuf message.
struct Field {
  uint64_t number = 0;
  uint64_t varint = 0;     // wire type 0
  uint32_t fixed32 = 0;    // wire type 5
  std::string_view bytes;  // wire type 2
  int wire_type = 0;
};

class FieldReader {
 public:
  explicit FieldReader(std::string_view bytes) : rest_(bytes) {}

  std::optional<Field> next() {
    if (rest_.empty()) return std::nullopt;
    Field field;
    const uint64_t tag = varint();
    field.number = tag >> 3;
    field.wire_type = static_cast<int>(tag & 7);
    switch (field.wire_type) {
      case 0: field.varint = varint(); break;
      case 1: take(8); break;
      case 2: field.bytes = take(varint()); break;
      case 5: std::memcpy(&field.fixed32, take(4).data(), 4); break;
      default: fail(fmt::format("a field has wire type {}", field.wire_type));
    }
    return field;
  }

 private:
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const auto byte = static_cast<unsigned char>(take(1)[0]);
      value |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80) return value;
    }
    fail("a number has more than 64 bits");
  }

  std::string_view take(uint64_t size) {
    if (size > rest_.size()) fail("it ends inside a field");
    const std::string_view taken = rest_.substr(0, size);
    rest_.remove_prefix(size);
    return taken;
  }

  std::string_view rest_;
};

enum PieceType : uint64_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6,
};

enum ModelType : uint64_t { kUnigram = 1, kBytePairs = 2 };

// What of the message isn't in TokenizerData; the defaults are protobuf's.
struct Settings {
  uint64_t model_type = kUnigram;
  std::vector<uint64_t> types;  // by piece
  bool adds_prefix = true;
  bool removes_spaces = true;
  uint64_t unk = 0, bos = 1, eos = 2;
};

void read_piece(std::string_view message, TokenizerData& data, Settings& settings) {
  std::string_view text;
  float score = 0;
  uint64_t type = kNormal;
  FieldReader reader(message);
  while (const auto field = reader.next()) {
    if (field->number == 1 && field->wire_type == 2) text = field->bytes;
    if (field->number == 2 && field->wire_type == 5) score = std::bit_cast<float>(field->fixed32);
    if (field->number == 3 && field->wire_type == 0) type = field->varint;
  }
  const size_t id = data.tokens.size();
  if (text.empty() || find_invalid_utf8(text) >= 0) {
    fail(fmt::format("piece {} is {}", id, text.empty() ? "empty" : "not UTF-8"));
  }
  if (type < kNormal || type > kByte) fail(fmt::format("piece {} has type {}", id, type));
  if (id >= static_cast<size_t>(std::numeric_limits<int32_t>::max())) fail("too many pieces");
  if (type == kUnknown || type == kControl) data.special.push_back(static_cast<int32_t>(id));
  if (type == kUserDefined) data.added.push_back(static_cast<int32_t>(id));
  settings.types.push_back(type);
  data.tokens.emplace_back(text);
  data.scores.push_back(score);
}

void read_trainer(std::string_view message, TokenizerData& data, Settings& settings) {
  FieldReader reader(message);
  while (const auto field = reader.next()) {
    if (field->wire_type != 0) continue;
    switch (field->number) {
      case 3: settings.model_type = field->varint; break;
      case 24:
        if (field->varint != 0) fail("treat_whitespace_as_suffix is not supported");
        break;
      case 35: data.byte_fallback = field->varint != 0; break;
      case 40: settings.unk = field->varint; break;
      case 41: settings.bos = field->varint; break;
      case 42: settings.eos = field->varint; break;
      default: break;
    }
  }
}

void refuse_character_map(const Field& field, const char* what) {
  if (field.number == 2 && field.wire_type == 2 && !field.bytes.empty()) {
    fail(fmt::format("{} with a character map is not supported (only \"identity\" is)", what));
  }
}

void read_normalizer(std::string_view message, Settings& settings) {
  FieldReader reader(message);
  while (const auto field = reader.next()) {
    refuse_character_map(*field, "a normalizer");
    if (field->wire_type != 0) continue;
    if (field->number == 3) settings.adds_prefix = field->varint != 0;
    if (field->number == 4) settings.removes_spaces = field->varint != 0;
    if (field->number == 5 && field->varint == 0) {
      fail("escape_whitespaces false is not supported");
    }
  }
}

void read_denormalizer(std::string_view message) {
  FieldReader reader(message);
  while (const auto field = reader.next()) refuse_character_map(*field, "a denormalizer");
}

// Ids are 32-bit integers on the wire's 64 bits; -1 is none.
int32_t token_id(uint64_t value, const TokenizerData& data) {
  return value < data.tokens.size() ? static_cast<int32_t>(value) : -1;
}

struct Parsed {
  TokenizerData data;
  Settings settings;
};

Parsed parse(std::string_view bytes) {
  Parsed parsed;
  FieldReader reader(bytes);
  while (const auto field = reader.next()) {
    if (field->wire_type != 2) continue;
    switch (field->number) {
      case 1: read_piece(field->bytes, parsed.data, parsed.settings); break;
      case 2: read_trainer(field->bytes, parsed.data, parsed.settings); break;
      case 3: read_normalizer(field->bytes, parsed.settings); break;
      case 5: read_denormalizer(field->bytes); break;
      default: break;
    }
  }
  return parsed;
}

UnigramPiece::Kind kind_of(uint64_t type) {
  if (type == kNormal) return UnigramPiece::Kind::kNormal;
  return type == kUserDefined ? UnigramPiece::Kind::kUserDefined : UnigramPiece::Kind::kOther;
}

}  // namespace

TokenizerData tokenizer_from_sentencepiece(std::string_view bytes) {
  auto [data, settings] = parse(bytes);
  data.pre_tokenizer = PreTokenizer::kMetaspace;
  data.merge_order = MergeOrder::kScores;
  data.fuse_unk = true;
  if (data.tokens.empty()) fail("it has no pieces");
  if (settings.model_type != kUnigram && settings.model_type != kBytePairs) {
    fail(fmt::format("model type {} is not supported; 1 (unigram) and 2 (byte pairs) are",
                     settings.model_type));
  }
  data.unk = token_id(settings.unk, data);
  data.bos = token_id(settings.bos, data);
  data.eos = token_id(settings.eos, data);
  data.add_bos = data.bos >= 0;
  data.space_prefix = settings.adds_prefix ? SpacePrefix::kAlways : SpacePrefix::kNever;
  data.space_strip = settings.adds_prefix ? SpaceStrip::kOne : SpaceStrip::kNothing;
  const auto& types = settings.types;
  const bool has_unused = std::find(types.begin(), types.end(), kUnused) != types.end();
  data.remove_spaces = settings.removes_spaces;
  if (settings.model_type != kBytePairs || has_unused) {
    data.sentencepiece = bytes;
    data.merge_order = MergeOrder::kRanks;  // no merges of ours
    data.scores.clear();
  }
  return data;
}

std::optional<UnigramData> unigram_from_sentencepiece(std::string_view bytes) {
  const auto [data, settings] = parse(bytes);
  if (settings.model_type != kUnigram) return std::nullopt;
  UnigramData unigram;
  unigram.has_byte_ids = data.byte_fallback;
  unigram.spaces = {settings.adds_prefix, settings.removes_spaces};
  for (size_t id = 0; id < data.tokens.size(); ++id) {
    const std::string& text = data.tokens[id];
    const uint64_t type = settings.types[id];
    // What the library's trie and normalizer do with these is not worth following.
    if (text.find('\0') != std::string::npos) return std::nullopt;
    if (type == kUserDefined && text.find(' ') != std::string::npos) return std::nullopt;
    if (type == kUnknown) unigram.unk = static_cast<int32_t>(id);
    unigram.pieces.push_back({text, data.scores[id], kind_of(type)});
  }
  if (!data.byte_fallback) return unigram;
  const IdByText ids = index_tokens(data);
  for (int byte = 0; byte < 256; ++byte) {
    const int32_t id = find_id(ids, fmt::format("<0x{:02X}>", byte));
    unigram.byte_ids[static_cast<size_t>(byte)] = id < 0 ? unigram.unk : id;
  }
  return unigram;
}

}  // namespace kvquant
