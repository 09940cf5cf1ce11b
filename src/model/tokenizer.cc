#include "model/tokenizer.h"

#include <fmt/core.h>

#include <array>
#include <limits>
#include <optional>
#include <unordered_map>
#include <utility>

#include "base/check.h"
#include "kvquant/error.h"
#include "model/bpe.h"
#include "model/byte_alphabet.h"
#include "model/pre_tokenizer.h"
#include "model/special_tokens.h"
#include "model/utf8.h"

namespace kvquant {
namespace {

constexpr std::string_view kMetaspaceText = "\u2581";

using IdByText = std::unordered_map<std::string_view, int32_t>;  // views into TokenizerData::tokens

void check_id(const TokenizerData& data, int32_t id, const char* what) {
  if (id < 0 || id >= static_cast<int64_t>(data.tokens.size())) {
    throw FormatError(fmt::format("tokenizer: {} has id {}, the vocabulary has {} tokens", what, id,
                                  data.tokens.size()));
  }
}

void check_optional_id(const TokenizerData& data, int32_t id, const char* what) {
  if (id != -1) check_id(data, id, what);
}

TokenizerData checked(TokenizerData data) {
  constexpr int64_t kMaxTokens = std::numeric_limits<int32_t>::max();
  const auto num_tokens = static_cast<int64_t>(data.tokens.size());
  if (num_tokens == 0 || num_tokens > kMaxTokens) {
    throw FormatError(fmt::format("tokenizer: a vocabulary of {} tokens", num_tokens));
  }
  if (static_cast<int64_t>(data.merges.size()) >= kMaxTokens) {
    throw FormatError(fmt::format("tokenizer: {} merges are too many", data.merges.size()));
  }
  check_optional_id(data, data.bos, "bos");
  check_optional_id(data, data.eos, "eos");
  check_optional_id(data, data.unk, "unk");
  if (data.add_bos && data.bos < 0) {
    throw FormatError("tokenizer: bos is to be added but there is no bos token");
  }
  for (const auto* ids : {&data.special, &data.added}) {
    for (const int32_t id : *ids) {
      check_id(data, id, "a special or added token");
      if (data.tokens[id].empty()) {
        throw FormatError(fmt::format("tokenizer: special or added token {} has no text", id));
      }
    }
  }
  return data;
}

IdByText index_tokens(const TokenizerData& data) {
  IdByText ids;
  ids.reserve(data.tokens.size());
  for (size_t id = 0; id < data.tokens.size(); ++id) {
    const auto [other, is_new] = ids.emplace(data.tokens[id], static_cast<int32_t>(id));
    if (!is_new) {
      throw FormatError(
          fmt::format("tokenizer: tokens {} and {} have the same text", other->second, id));
    }
  }
  return ids;
}

std::optional<int32_t> find_id(const IdByText& ids, std::string_view text) {
  const auto found = ids.find(text);
  if (found == ids.end()) return std::nullopt;
  return found->second;
}

std::vector<BpeMerge> resolve_merges(const TokenizerData& data, const IdByText& ids) {
  std::vector<BpeMerge> merges;
  merges.reserve(data.merges.size());
  for (const auto& [left, right] : data.merges) {
    const auto left_id = find_id(ids, left);
    const auto right_id = find_id(ids, right);
    const auto merged_id = find_id(ids, left + right);
    if (left_id && right_id && merged_id) merges.push_back({*left_id, *right_id, *merged_id});
  }
  return merges;
}

std::string replace_all(std::string_view text, std::string_view from, std::string_view to) {
  std::string result;
  for (size_t start = 0;;) {
    const size_t found = text.find(from, start);
    result += text.substr(start, found - start);
    if (found == std::string_view::npos) return result;
    result += to;
    start = found + from.size();
  }
}

std::string normalize_metaspace(std::string_view text) {
  if (text.empty()) return "";
  return std::string(kMetaspaceText) + replace_all(text, " ", kMetaspaceText);
}

std::string byte_fallback_text(int byte) { return fmt::format("<0x{:02X}>", byte); }

SpecialTokens collect_special(const TokenizerData& data, bool with_special) {
  std::vector<SpecialTokens::Token> tokens;
  const auto add = [&](const std::vector<int32_t>& ids) {
    for (const int32_t id : ids) {
      const std::string& text = data.tokens[id];
      tokens.push_back({data.match_normalized ? normalize_metaspace(text) : text, id});
    }
  };
  add(data.added);
  if (with_special) add(data.special);
  return SpecialTokens(std::move(tokens));
}

}  // namespace

struct Tokenizer::Impl {
  explicit Impl(TokenizerData tokenizer_data);

  void index_bytes();
  void encode_piece(std::string_view text, std::vector<int32_t>& ids) const;
  void encode_word(std::string_view word, std::vector<int32_t>& symbols) const;
  void append_bytes(std::string_view bytes, std::vector<int32_t>& symbols) const;
  void append_characters(std::string_view text, std::vector<int32_t>& symbols) const;
  void append_unknown(std::vector<int32_t>& symbols) const;
  bool is_metaspace() const { return data.pre_tokenizer == PreTokenizer::kMetaspace; }

  const TokenizerData data;
  const IdByText id_by_text;
  const WordSplitter splitter;
  const BpeMerges merges;
  const SpecialTokens all_special;  // special and added
  const SpecialTokens added_only;
  std::vector<bool> special;             // by id
  std::vector<std::string> bytes;        // by id
  IdByText id_by_word;                   // views into `bytes`; empty unless ignore_merges
  std::array<int32_t, 256> byte_symbol;  // id of a byte, -1: none
};

Tokenizer::Impl::Impl(TokenizerData tokenizer_data)
    : data(checked(std::move(tokenizer_data))),
      id_by_text(index_tokens(data)),
      splitter(data.pre_tokenizer),
      merges(resolve_merges(data, id_by_text)),
      all_special(collect_special(data, true)),
      added_only(collect_special(data, false)),
      special(data.tokens.size(), false) {
  for (const int32_t id : data.special) special[id] = true;
  byte_symbol.fill(-1);
  for (int byte = 0; byte < 256; ++byte) {
    const char as_char = static_cast<char>(byte);
    if (!is_metaspace()) {
      byte_symbol[byte] = find_id(id_by_text, to_byte_alphabet({&as_char, 1})).value_or(-1);
    } else if (data.byte_fallback) {
      byte_symbol[byte] = find_id(id_by_text, byte_fallback_text(byte)).value_or(-1);
    }
  }
  index_bytes();
}

void Tokenizer::Impl::index_bytes() {
  std::vector<bool> as_is = special;
  for (const int32_t id : data.added) as_is[id] = true;
  bytes = data.tokens;
  for (size_t id = 0; id < bytes.size(); ++id) {
    if (as_is[id]) continue;
    if (is_metaspace()) {
      bytes[id] = replace_all(data.tokens[id], kMetaspaceText, " ");
    } else if (auto raw = from_byte_alphabet(data.tokens[id])) {
      bytes[id] = std::move(*raw);
    }
  }
  if (is_metaspace()) {
    for (int byte = 0; byte < 256; ++byte) {
      if (byte_symbol[byte] >= 0)
        bytes[byte_symbol[byte]] = std::string(1, static_cast<char>(byte));
    }
  }
  if (!data.ignore_merges) return;
  for (size_t id = 0; id < bytes.size(); ++id) {
    if (!as_is[id]) id_by_word.emplace(bytes[id], static_cast<int32_t>(id));
  }
}

void Tokenizer::Impl::encode_piece(std::string_view text, std::vector<int32_t>& ids) const {
  std::vector<int32_t> symbols;
  splitter.split(text, [&](std::string_view word) {
    symbols.clear();
    encode_word(word, symbols);
    ids.insert(ids.end(), symbols.begin(), symbols.end());
  });
}

void Tokenizer::Impl::encode_word(std::string_view word, std::vector<int32_t>& symbols) const {
  if (data.ignore_merges) {
    if (const auto id = find_id(id_by_word, word)) {
      symbols.push_back(*id);
      return;
    }
  }
  if (is_metaspace()) {
    append_characters(word, symbols);
  } else {
    append_bytes(word, symbols);
  }
  merges.apply(symbols);
}

void Tokenizer::Impl::append_bytes(std::string_view word, std::vector<int32_t>& symbols) const {
  for (const char byte : word) {
    const int32_t id = byte_symbol[static_cast<unsigned char>(byte)];
    if (id >= 0) {
      symbols.push_back(id);
    } else {
      append_unknown(symbols);
    }
  }
}

void Tokenizer::Impl::append_characters(std::string_view text,
                                        std::vector<int32_t>& symbols) const {
  for (size_t offset = 0; offset < text.size();) {
    const int64_t size = utf8_sequence(text, static_cast<int64_t>(offset)).size;
    const std::string_view character = text.substr(offset, size);
    offset += size;
    if (const auto id = find_id(id_by_text, character)) {
      symbols.push_back(*id);
      continue;
    }
    bool has_bytes = true;
    for (const char byte : character) {
      has_bytes = has_bytes && byte_symbol[static_cast<unsigned char>(byte)] >= 0;
    }
    if (has_bytes) {
      append_bytes(character, symbols);
    } else {
      append_unknown(symbols);
    }
  }
}

void Tokenizer::Impl::append_unknown(std::vector<int32_t>& symbols) const {
  const bool fused = data.fuse_unk && !symbols.empty() && symbols.back() == data.unk;
  if (data.unk >= 0 && !fused) symbols.push_back(data.unk);
}

Tokenizer::Tokenizer(TokenizerData data) : impl_(std::make_unique<Impl>(std::move(data))) {}
Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;

std::vector<int32_t> Tokenizer::encode(std::string_view text, Special special, Bos bos) const {
  const TokenizerData& data = impl_->data;
  const int64_t invalid = find_invalid_utf8(text);
  if (invalid >= 0) {
    throw std::invalid_argument(fmt::format("encode: the text is not UTF-8 at byte {}", invalid));
  }
  check_arg(text.size() < static_cast<size_t>(std::numeric_limits<int32_t>::max() / 4),
            "encode: the text has 512 MiB or more");
  std::vector<int32_t> ids;
  if (bos == Bos::kAsConfigured && data.add_bos) ids.push_back(data.bos);

  std::string normalized;
  const bool normalize_first = impl_->is_metaspace() && data.match_normalized;
  if (normalize_first) {
    normalized = normalize_metaspace(text);
    text = normalized;
  }
  const SpecialTokens& matcher =
      special == Special::kParse ? impl_->all_special : impl_->added_only;
  const auto size = static_cast<int64_t>(text.size());
  for (int64_t start = 0; start < size;) {
    const SpecialTokens::Match match = matcher.find(text, start);
    const std::string_view piece = text.substr(start, match.offset - start);
    if (impl_->is_metaspace() && !normalize_first) {
      impl_->encode_piece(normalize_metaspace(piece), ids);
    } else {
      impl_->encode_piece(piece, ids);
    }
    if (match.id >= 0) ids.push_back(match.id);
    start = match.offset + match.size;
  }
  return ids;
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool with_special) const {
  std::string text;
  for (const int32_t id : ids) {
    const std::string_view bytes = token_bytes(id);
    if (with_special || !impl_->special[id]) text += bytes;
  }
  if (impl_->is_metaspace() && text.starts_with(' ')) text.erase(0, 1);
  return text;
}

std::string_view Tokenizer::token_bytes(int32_t id) const {
  if (id < 0 || id >= vocab_size()) {
    throw std::invalid_argument(
        fmt::format("tokenizer: id {} is not below the vocabulary's {}", id, vocab_size()));
  }
  return impl_->bytes[id];
}

bool Tokenizer::is_special(int32_t id) const {
  return id >= 0 && id < vocab_size() && impl_->special[id];
}

int32_t Tokenizer::vocab_size() const { return static_cast<int32_t>(impl_->data.tokens.size()); }
const TokenizerData& Tokenizer::data() const { return impl_->data; }

}  // namespace kvquant
