// What a Tokenizer looks up, made once from its data.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "model/bpe.h"
#include "model/special_tokens.h"
#include "model/tokenizer_data.h"

namespace kvquant {

using IdByText = std::unordered_map<std::string_view, int32_t>;  // views into TokenizerData::tokens

// -1 where there is none.
int32_t find_id(const IdByText& ids, std::string_view text);

// Throws FormatError when the data can't be a tokenizer (see Tokenizer's constructor).
TokenizerData checked(TokenizerData data);

// Throws FormatError when two tokens have the same text.
IdByText index_tokens(const TokenizerData& data);

// Merges of unknown tokens are left out.
std::vector<BpeMerge> resolve_merges(const TokenizerData& data, const IdByText& ids);

// Ids of single bytes, -1: none.
std::array<int32_t, 256> index_bytes(const TokenizerData& data, const IdByText& ids);

// Raw bytes by id.
std::vector<std::string> raw_bytes(const TokenizerData& data,
                                   const std::array<int32_t, 256>& byte_ids);

// kMetaspace: no merge leads across the place in front of U+2581 behind another character, so a
// text may be cut there.
bool words_begin_at_marks(const TokenizerData& data, std::span<const BpeMerge> merges);

enum class TokenChoice { kAdded, kAddedAndSpecial };
enum class MatchedIn { kRaw, kNormalized };
SpecialTokens collect_special(const TokenizerData& data, TokenChoice choice, MatchedIn matched_in);

}  // namespace kvquant
