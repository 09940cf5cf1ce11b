#include "model/tokenizer_json_parts.h"

#include <algorithm>
#include <array>
#include <optional>

#include "model/text_normalizer.h"

namespace kvquant {
namespace {

// Patterns as the files spell them. The three of each kind cut the same words: \s*[\r\n]+ and
// \s*[\r\n] end at the same newline, possessive quantifiers and \s++$ only save time.
struct KnownPattern {
  const char* regex;
  PreTokenizer pre_tokenizer;
};
constexpr std::array kKnownPatterns{
    KnownPattern{R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)",
                 PreTokenizer::kGpt2},
    KnownPattern{
        R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
        PreTokenizer::kLlama3},
    KnownPattern{
        R"('(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+)",
        PreTokenizer::kLlama3},
    KnownPattern{
        R"('(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s)",
        PreTokenizer::kLlama3},
    KnownPattern{
        R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
        PreTokenizer::kLlama3SingleDigits},
    KnownPattern{
        R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
        PreTokenizer::kTekken},
};

bool is_byte_level(const Json& part, bool use_regex) {
  return is_type(part, "ByteLevel") && !flag(part, "add_prefix_space", true) &&
         flag(part, "use_regex", true) == use_regex;
}

bool is_split(const Json& part, const char* kind, const char* pattern) {
  return is_type(part, "Split") && member(member(part, "pattern"), kind) == pattern;
}

// The words are the matches: isolated, or the only thing that is not removed.
bool cuts_words(const Json& part, const char* regex) {
  const char* behavior = flag(part, "invert", false) ? "Removed" : "Isolated";
  return is_split(part, "Regex", regex) && member(part, "behavior") == behavior;
}

bool is_digits(const Json& part, bool individual) {
  return is_type(part, "Digits") && flag(part, "individual_digits", false) == individual;
}

bool is_replace(const Json& part, std::string_view from, std::string_view to) {
  return is_type(part, "Replace") && member(member(part, "pattern"), "String") == from &&
         member(part, "content") == to;
}

std::optional<PreTokenizer> byte_level(const std::vector<Json>& parts) {
  if (parts.size() == 1 && is_byte_level(parts[0], true)) return PreTokenizer::kGpt2;
  if (parts.size() == 2 && is_byte_level(parts[1], false)) {
    for (const KnownPattern& known : kKnownPatterns) {
      if (cuts_words(parts[0], known.regex)) return known.pre_tokenizer;
    }
  }
  if (parts.size() == 2 && is_byte_level(parts[1], true) && is_digits(parts[0], true)) {
    return PreTokenizer::kSmolLm;
  }
  if (parts.size() == 4 && is_type(parts[0], "Punctuation") &&
      member(parts[0], "behavior") == "Contiguous" && is_byte_level(parts[1], true) &&
      is_digits(parts[2], false) && !flag(parts[3], "invert", false) &&
      cuts_words(parts[3], "[0-9][0-9][0-9]")) {
    return PreTokenizer::kFalcon;
  }
  return std::nullopt;
}

// Metaspace as pre-tokenizer; old files say add_prefix_space rather than prepend_scheme.
void read_metaspace(const Json& part, TokenizerData& data) {
  if (member(part, "replacement") != kSpaceMark) refuse("replacement of", part);
  const Json& scheme = member(part, "prepend_scheme");
  const bool adds_prefix = flag(part, "add_prefix_space", true);
  data.pre_tokenizer = PreTokenizer::kMetaspace;
  data.split_at_spaces = flag(part, "split", true);
  if (scheme == "never" || (scheme.is_null() && !adds_prefix)) {
    data.space_prefix = SpacePrefix::kNever;
  } else if (scheme == "first") {
    data.space_prefix = SpacePrefix::kFirstUnlessThere;
  } else if (scheme == "always" || scheme.is_null()) {
    data.space_prefix = SpacePrefix::kUnlessThere;
  } else {
    refuse("prepend_scheme of pre_tokenizer", part);
  }
}

// [Prepend of U+2581,] Replace of the space by it. False when the normalizer is something else.
bool read_metaspace_normalizer(const std::vector<Json>& parts, TokenizerData& data) {
  const bool prepends = parts.size() == 2 && is_type(parts[0], "Prepend") &&
                        member(parts[0], "prepend") == kSpaceMark;
  if (parts.empty() || parts.size() != (prepends ? 2u : 1u) ||
      !is_replace(parts.back(), " ", kSpaceMark)) {
    return false;
  }
  data.pre_tokenizer = PreTokenizer::kMetaspace;
  data.space_prefix = prepends ? SpacePrefix::kAlways : SpacePrefix::kNever;
  return true;
}

bool is_strip_of_one_space(const Json& part) {
  return is_type(part, "Strip") && member(part, "content") == " " && member(part, "start") == 1 &&
         member(part, "stop") == 0;
}

bool is_metaspace_part(const Json& part) {
  return is_type(part, "Metaspace") && member(part, "replacement") == kSpaceMark;
}

bool read_metaspace_decoder(const Json& decoder, TokenizerData& data) {
  std::vector<Json> parts = sequence(decoder, "decoders");
  const auto has = [&](auto predicate) {
    const auto found = std::find_if(parts.begin(), parts.end(), predicate);
    if (found == parts.end()) return false;
    parts.erase(found);
    return true;
  };
  if (has([](const Json& part) { return is_type(part, "ByteFallback"); }) != data.byte_fallback) {
    return false;
  }
  if (parts.size() == 1 && is_metaspace_part(parts[0])) {
    const bool never =
        member(parts[0], "prepend_scheme") == "never" ||
        (member(parts[0], "prepend_scheme").is_null() && !flag(parts[0], "add_prefix_space", true));
    data.space_strip = never ? SpaceStrip::kNothing : SpaceStrip::kOfTheFirstToken;
    return true;
  }
  const bool strips = !parts.empty() && is_strip_of_one_space(parts.back());
  if (strips) parts.pop_back();
  data.space_strip = strips ? SpaceStrip::kOne : SpaceStrip::kNothing;
  // Without Fuse every token would be stripped.
  return (parts.size() == 2 || (parts.size() == 1 && !strips)) &&
         is_replace(parts[0], kSpaceMark, " ") && (parts.size() == 1 || is_type(parts[1], "Fuse"));
}

}  // namespace

void read_pre_tokenizer(const Json& json, TokenizerData& data) {
  const Json& normalizer = member(json, "normalizer");
  const Json& pre_tokenizer = member(json, "pre_tokenizer");
  const std::vector<Json> normalizers = sequence(normalizer, "normalizers");
  const std::vector<Json> parts = sequence(pre_tokenizer, "pretokenizers");
  if (read_metaspace_normalizer(normalizers, data)) {
    // What cuts at spaces finds none any more.
    const bool is_idle =
        parts.size() == 1 && is_split(parts[0], "String", " ") && !flag(parts[0], "invert", false);
    if (!parts.empty() && !is_idle) refuse("pre_tokenizer behind a normalizer", pre_tokenizer);
    return;
  }
  data.nfc = normalizers.size() == 1 && is_type(normalizers[0], "NFC");
  if (!normalizers.empty() && !data.nfc) refuse("normalizer", normalizer);
  if (parts.size() == 1 && is_type(parts[0], "Metaspace")) {
    if (data.nfc) refuse("normalizer in front of Metaspace", normalizer);
    read_metaspace(parts[0], data);
    return;
  }
  const auto found = byte_level(parts);
  if (!found) refuse("pre_tokenizer", pre_tokenizer);
  data.pre_tokenizer = *found;
}

void read_decoder(const Json& json, TokenizerData& data) {
  const Json& decoder = member(json, "decoder");
  const bool is_known = data.pre_tokenizer == PreTokenizer::kMetaspace
                            ? read_metaspace_decoder(decoder, data)
                            : is_type(decoder, "ByteLevel");
  if (!is_known) refuse("decoder", decoder);
}

}  // namespace kvquant
