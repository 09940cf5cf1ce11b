#include "model/tokenizer_tables.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <utility>

#include "kvquant/error.h"
#include "model/byte_alphabet.h"
#include "model/text_normalizer.h"

namespace kvquant {
namespace {

constexpr int64_t kMaxTokens = std::numeric_limits<int32_t>::max();

// Every way to cut a token in two is tried; sentencepiece's trainer stops at 16 characters.
constexpr size_t kMaxScoredBytes = 1024;

void check_id(const TokenizerData& data, int32_t id, const char* what) {
  if (id < 0 || id >= static_cast<int64_t>(data.tokens.size())) {
    throw FormatError(fmt::format("tokenizer: {} has id {}, the vocabulary has {} tokens", what, id,
                                  data.tokens.size()));
  }
}

void check_optional_id(const TokenizerData& data, int32_t id, const char* what) {
  if (id != -1) check_id(data, id, what);
}

void check_merge_order(const TokenizerData& data) {
  if (static_cast<int64_t>(data.merges.size()) >= kMaxTokens) {
    throw FormatError(fmt::format("tokenizer: {} merges are too many", data.merges.size()));
  }
  if (data.merge_order == MergeOrder::kRanks) return;
  if (data.scores.size() != data.tokens.size()) {
    throw FormatError(
        fmt::format("tokenizer: {} scores for {} tokens", data.scores.size(), data.tokens.size()));
  }
  for (const float score : data.scores) {
    if (std::isnan(score)) throw FormatError("tokenizer: a score is not a number");
  }
  for (size_t id = 0; id < data.tokens.size(); ++id) {
    if (data.tokens[id].size() <= kMaxScoredBytes) continue;
    throw FormatError(fmt::format("tokenizer: token {} has {} bytes, at most {} are supported", id,
                                  data.tokens[id].size(), kMaxScoredBytes));
  }
}

// By id. Requires: checked ids.
std::vector<bool> flags(const TokenizerData& data, const std::vector<int32_t>& ids) {
  std::vector<bool> flags(data.tokens.size(), false);
  for (const int32_t id : ids) flags[id] = true;
  return flags;
}

bool is_metaspace(const TokenizerData& data) {
  return data.pre_tokenizer == PreTokenizer::kMetaspace;
}

std::string byte_fallback_text(int byte) { return fmt::format("<0x{:02X}>", byte); }

// In descending order of the merged token's score; equal scores have equal ranks.
std::vector<BpeMerge> merges_by_score(const TokenizerData& data, const IdByText& ids) {
  std::vector<float> scores = data.scores;
  std::sort(scores.begin(), scores.end(), std::greater<>());
  scores.erase(std::unique(scores.begin(), scores.end()), scores.end());
  std::vector<bool> is_text(data.tokens.size(), true);
  for (const int32_t id : data.special) is_text[id] = false;
  if (is_metaspace(data)) {
    for (const int32_t id : index_bytes(data, ids)) {  // "<0xNN>" stands for a byte
      if (id >= 0) is_text[id] = false;
    }
  }
  std::vector<BpeMerge> merges;
  for (size_t id = 0; id < data.tokens.size(); ++id) {
    if (!is_text[id]) continue;
    const std::string_view text = data.tokens[id];
    const auto place =
        std::lower_bound(scores.begin(), scores.end(), data.scores[id], std::greater<>());
    const auto rank = static_cast<int32_t>(place - scores.begin());
    for (size_t cut = 1; cut < text.size(); ++cut) {
      const int32_t left = find_id(ids, text.substr(0, cut));
      const int32_t right = find_id(ids, text.substr(cut));
      if (left < 0 || right < 0 || !is_text[left] || !is_text[right]) continue;
      merges.push_back({left, right, static_cast<int32_t>(id), rank});
    }
    if (static_cast<int64_t>(merges.size()) >= kMaxTokens) {
      throw FormatError("tokenizer: the scores lead to too many merges");
    }
  }
  return merges;
}

}  // namespace

int32_t find_id(const IdByText& ids, std::string_view text) {
  const auto found = ids.find(text);
  return found == ids.end() ? -1 : found->second;
}

TokenizerData checked(TokenizerData data) {
  const auto num_tokens = static_cast<int64_t>(data.tokens.size());
  if (num_tokens == 0 || num_tokens > kMaxTokens) {
    throw FormatError(fmt::format("tokenizer: a vocabulary of {} tokens", num_tokens));
  }
  check_merge_order(data);
  check_optional_id(data, data.bos, "bos");
  check_optional_id(data, data.eos, "eos");
  check_optional_id(data, data.unk, "unk");
  if (data.add_bos && data.bos < 0) {
    throw FormatError("tokenizer: bos is to be added but there is no bos token");
  }
  for (const auto* ids :
       {&data.special, &data.added, &data.match_normalized, &data.strip_left, &data.strip_right}) {
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

std::vector<BpeMerge> resolve_merges(const TokenizerData& data, const IdByText& ids) {
  if (data.merge_order == MergeOrder::kScores) return merges_by_score(data, ids);
  std::vector<BpeMerge> merges;
  merges.reserve(data.merges.size());
  for (size_t rank = 0; rank < data.merges.size(); ++rank) {
    const auto& [left, right] = data.merges[rank];
    const int32_t left_id = find_id(ids, left);
    const int32_t right_id = find_id(ids, right);
    const int32_t merged_id = find_id(ids, left + right);
    if (left_id < 0 || right_id < 0 || merged_id < 0) continue;
    merges.push_back({left_id, right_id, merged_id, static_cast<int32_t>(rank)});
  }
  return merges;
}

std::array<int32_t, 256> index_bytes(const TokenizerData& data, const IdByText& ids) {
  std::array<int32_t, 256> byte_ids;
  byte_ids.fill(-1);
  for (int byte = 0; byte < 256; ++byte) {
    const char as_char = static_cast<char>(byte);
    if (!is_metaspace(data)) {
      byte_ids[byte] = find_id(ids, to_byte_alphabet({&as_char, 1}));
    } else if (data.byte_fallback) {
      byte_ids[byte] = find_id(ids, byte_fallback_text(byte));
    }
  }
  return byte_ids;
}

std::vector<std::string> raw_bytes(const TokenizerData& data,
                                   const std::array<int32_t, 256>& byte_ids) {
  std::vector<bool> as_is = flags(data, data.special);
  for (const int32_t id : data.added) as_is[id] = true;
  std::vector<std::string> bytes = data.tokens;
  for (size_t id = 0; id < bytes.size(); ++id) {
    if (as_is[id]) continue;
    if (is_metaspace(data)) {
      bytes[id] = replace_all(data.tokens[id], kSpaceMark, " ");
    } else if (auto raw = from_byte_alphabet(data.tokens[id])) {
      bytes[id] = std::move(*raw);
    }
  }
  if (!is_metaspace(data)) return bytes;
  if (data.space_prefix == SpacePrefix::kAlways) {
    for (const int32_t id : data.match_normalized) bytes[id] = std::string(" ").append(bytes[id]);
  }
  for (int byte = 0; byte < 256; ++byte) {
    if (byte_ids[byte] >= 0) bytes[byte_ids[byte]] = std::string(1, static_cast<char>(byte));
  }
  return bytes;
}

bool words_begin_at_marks(const TokenizerData& data, std::span<const BpeMerge> merges) {
  for (const BpeMerge& merge : merges) {
    const std::string_view text = data.tokens[merge.merged];
    size_t mark = 0;
    while (text.substr(mark).starts_with(kSpaceMark)) mark += kSpaceMark.size();
    if (text.find(kSpaceMark, mark) != std::string_view::npos) return false;
  }
  // Unknown characters on both sides of an unknown mark would be one token.
  return std::find(data.tokens.begin(), data.tokens.end(), kSpaceMark) != data.tokens.end();
}

SpecialTokens collect_special(const TokenizerData& data, TokenChoice choice, MatchedIn matched_in) {
  const bool marked = is_metaspace(data) && data.space_prefix == SpacePrefix::kAlways;
  const auto is_normalized = flags(data, data.match_normalized);
  const auto strips_left = flags(data, data.strip_left);
  const auto strips_right = flags(data, data.strip_right);
  std::vector<SpecialTokens::Token> tokens;
  const auto add = [&](const std::vector<int32_t>& ids) {
    for (const int32_t id : ids) {
      const bool normalized = is_normalized[id];
      if (normalized != (matched_in == MatchedIn::kNormalized)) continue;
      std::string text = data.tokens[id];
      if (normalized && data.nfc) text = to_nfc(text);
      if (normalized && marked) text = std::string(kSpaceMark) + mark_spaces(text);
      tokens.push_back({std::move(text), id, strips_left[id], strips_right[id]});
    }
  };
  add(data.added);
  if (choice == TokenChoice::kAddedAndSpecial) add(data.special);
  return SpecialTokens(std::move(tokens));
}

}  // namespace kvquant
