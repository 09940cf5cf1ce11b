#include "model/tokenizer.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <functional>
#include <limits>
#include <utility>

#include "base/check.h"
#include "kvquant/error.h"
#include "model/pre_tokenizer.h"
#include "model/sentencepiece_model.h"
#include "model/text_normalizer.h"
#include "model/tokenizer_tables.h"
#include "model/utf8.h"

namespace kvquant {
namespace {

// Words of a sentencepiece text: from U+2581 behind another character to the next such place.
void split_at_marks(std::string_view text, const std::function<void(std::string_view)>& word) {
  size_t begin = 0;
  for (size_t mark = text.find(kSpaceMark); mark != std::string_view::npos;) {
    if (mark > begin) word(text.substr(begin, mark - begin));
    begin = mark;
    while (text.substr(mark).starts_with(kSpaceMark)) mark += kSpaceMark.size();
    mark = text.find(kSpaceMark, mark);
  }
  if (begin < text.size()) word(text.substr(begin));
}

// The same from every U+2581 to the next.
void split_at_every_mark(std::string_view text, const std::function<void(std::string_view)>& word) {
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find(kSpaceMark, begin + 1), text.size());
    word(text.substr(begin, end - begin));
    begin = end;
  }
}

}  // namespace

struct Tokenizer::Impl {
  explicit Impl(TokenizerData tokenizer_data);

  struct Matchers {
    SpecialTokens raw, normalized;
  };
  Matchers matchers_of(TokenChoice choice) const {
    return {collect_special(data, choice, MatchedIn::kRaw),
            collect_special(data, choice, MatchedIn::kNormalized)};
  }
  void encode_segment(std::string_view text, bool at_start, const SpecialTokens& matcher,
                      std::vector<int32_t>& ids) const;
  void encode_piece(std::string_view text, bool at_start, std::vector<int32_t>& ids) const;
  void split(std::string_view text, const std::function<void(std::string_view)>& word) const;
  void encode_word(std::string_view word, std::vector<int32_t>& symbols) const;
  void append_bytes(std::string_view bytes, std::vector<int32_t>& symbols) const;
  void append_characters(std::string_view text, std::vector<int32_t>& symbols) const;
  void append_unknown(std::vector<int32_t>& symbols) const;
  bool is_metaspace() const { return data.pre_tokenizer == PreTokenizer::kMetaspace; }

  const TokenizerData data;
  const IdByText id_by_text;
  const WordSplitter splitter;
  const std::vector<BpeMerge> merge_list;
  const BpeMerges merges;
  const bool words_begin_at_marks;
  const Matchers all_matchers;  // special and added
  const Matchers added_matchers;
  const std::array<int32_t, 256> byte_ids;
  const std::vector<std::string> bytes;  // by id
  std::vector<bool> special;             // by id
  IdByText id_by_word;                   // views into `bytes`; empty unless ignore_merges
  std::array<int32_t, 128> ascii_ids;    // kMetaspace: of one-character tokens, -1: none
  std::unique_ptr<SentencepieceModel> sentencepiece;  // null: our merges
};

Tokenizer::Impl::Impl(TokenizerData tokenizer_data)
    : data(checked(std::move(tokenizer_data))),
      id_by_text(index_tokens(data)),
      splitter(data.pre_tokenizer),
      merge_list(resolve_merges(data, id_by_text)),
      merges(merge_list),
      words_begin_at_marks(is_metaspace() && kvquant::words_begin_at_marks(data, merge_list)),
      all_matchers(matchers_of(TokenChoice::kAddedAndSpecial)),
      added_matchers(matchers_of(TokenChoice::kAdded)),
      byte_ids(index_bytes(data, id_by_text)),
      bytes(raw_bytes(data, byte_ids)),
      special(data.tokens.size(), false) {
  for (const int32_t id : data.special) special[id] = true;
  for (int c = 0; c < 128; ++c) {
    const char as_char = static_cast<char>(c);
    ascii_ids[c] = find_id(id_by_text, {&as_char, 1});
  }
  if (data.ignore_merges) {
    std::vector<bool> as_is = special;
    for (const int32_t id : data.added) as_is[id] = true;
    for (size_t id = 0; id < bytes.size(); ++id) {
      if (!as_is[id]) id_by_word.emplace(bytes[id], static_cast<int32_t>(id));
    }
  }
  if (!data.sentencepiece.empty()) {
    sentencepiece = std::make_unique<SentencepieceModel>(data.sentencepiece);
  }
}

// A text between tokens that are matched in the raw text.
void Tokenizer::Impl::encode_segment(std::string_view text, bool at_start,
                                     const SpecialTokens& matcher,
                                     std::vector<int32_t>& ids) const {
  std::string normalized;
  if (data.nfc) {
    text = normalized = to_nfc(text);
  } else if (is_metaspace() && data.space_prefix == SpacePrefix::kAlways && !sentencepiece) {
    text = normalized =
        sentencepiece_text(text, {.add_prefix = true, .remove_extra = data.remove_spaces});
  }
  const auto size = static_cast<int64_t>(text.size());
  for (int64_t start = 0; start < size;) {
    const SpecialTokens::Match match = matcher.find(text, start);
    encode_piece(text.substr(start, match.offset - start), at_start && start == 0, ids);
    if (match.id >= 0) ids.push_back(match.id);
    start = match.offset + match.size;
  }
}

void Tokenizer::Impl::encode_piece(std::string_view text, bool at_start,
                                   std::vector<int32_t>& ids) const {
  if (text.empty()) return;
  if (sentencepiece) {
    sentencepiece->encode(text, ids);
    return;
  }
  std::string marked;
  if (is_metaspace() && data.space_prefix != SpacePrefix::kAlways) {
    marked = sentencepiece_text(text, {.add_prefix = false, .remove_extra = data.remove_spaces});
    const bool wanted = data.space_prefix == SpacePrefix::kUnlessThere ||
                        (data.space_prefix == SpacePrefix::kFirstUnlessThere && at_start);
    if (wanted && !marked.starts_with(kSpaceMark)) marked.insert(0, kSpaceMark);
    text = marked;
  }
  std::vector<int32_t> symbols;
  split(text, [&](std::string_view word) {
    symbols.clear();
    encode_word(word, symbols);
    ids.insert(ids.end(), symbols.begin(), symbols.end());
  });
}

void Tokenizer::Impl::split(std::string_view text,
                            const std::function<void(std::string_view)>& word) const {
  if (!is_metaspace()) {
    splitter.split(text, word);
  } else if (data.split_at_spaces) {
    split_at_every_mark(text, word);
  } else if (words_begin_at_marks) {
    split_at_marks(text, word);
  } else {
    word(text);
  }
}

void Tokenizer::Impl::encode_word(std::string_view word, std::vector<int32_t>& symbols) const {
  if (data.ignore_merges) {
    if (const int32_t id = find_id(id_by_word, word); id >= 0) {
      symbols.push_back(id);
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
    const int32_t id = byte_ids[static_cast<unsigned char>(byte)];
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
    const auto lead = static_cast<unsigned char>(text[offset]);
    const int64_t size = lead < 0x80 ? 1 : utf8_sequence(text, static_cast<int64_t>(offset)).size;
    const std::string_view character = text.substr(offset, size);
    offset += size;
    const int32_t id = lead < 0x80 ? ascii_ids[lead] : find_id(id_by_text, character);
    if (id >= 0) {
      symbols.push_back(id);
      continue;
    }
    bool has_bytes = true;
    for (const char byte : character) {
      has_bytes = has_bytes && byte_ids[static_cast<unsigned char>(byte)] >= 0;
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

  const Impl::Matchers& matchers =
      special == Special::kParse ? impl_->all_matchers : impl_->added_matchers;
  const auto size = static_cast<int64_t>(text.size());
  for (int64_t start = 0; start < size;) {
    const SpecialTokens::Match match = matchers.raw.find(text, start);
    impl_->encode_segment(text.substr(start, match.offset - start), start == 0, matchers.normalized,
                          ids);
    if (match.id >= 0) ids.push_back(match.id);
    start = match.offset + match.size;
  }
  return ids;
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool with_special) const {
  const SpaceStrip strip = impl_->is_metaspace() ? impl_->data.space_strip : SpaceStrip::kNothing;
  std::string text;
  bool is_first = strip == SpaceStrip::kOfTheFirstToken;
  for (const int32_t id : ids) {
    const std::string_view bytes = token_bytes(id);
    if (!with_special && impl_->special[id]) continue;
    if (is_first) {
      text += replace_all(bytes, " ", "");
    } else {
      text += bytes;
    }
    is_first = false;
  }
  if (strip == SpaceStrip::kOne && text.starts_with(' ')) text.erase(0, 1);
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
