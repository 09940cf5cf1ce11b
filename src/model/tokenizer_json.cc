#include "model/tokenizer_json.h"

#include <fmt/core.h>

#include <algorithm>
#include <filesystem>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <unordered_map>

#include "base/file.h"
#include "kvquant/error.h"

namespace kvquant {
namespace {

using Json = nlohmann::json;

constexpr int kMaxDepth = 64;
constexpr size_t kMaxQuoted = 120;  // bytes of a file's value in a message
constexpr int64_t kMaxFileBytes = int64_t{1} << 30;

constexpr const char* kTokenizerFile = "tokenizer.json";
constexpr const char* kConfigFile = "tokenizer_config.json";

constexpr const char* kLlama3Regex =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kLlama3SingleDigitsRegex =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kMetaspaceText = "\u2581";

// One line, short enough for a message.
std::string shown(const Json& value) {
  std::string text = value.dump(-1, ' ', true);
  if (text.size() > kMaxQuoted) text = text.substr(0, kMaxQuoted) + "...";
  return text;
}

[[noreturn]] void refuse(const char* what, const Json& value) {
  throw FormatError(fmt::format("{}: {} {} is not supported", kTokenizerFile, what, shown(value)));
}

void check_depth(std::string_view text, const char* file) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      in_string = c != '"';
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      if (++depth > kMaxDepth) {
        throw FormatError(fmt::format("{}: nested deeper than {} at byte {}", file, kMaxDepth, i));
      }
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
}

Json parse_object(std::string_view text, const char* file) {
  check_depth(text, file);
  Json json;
  try {
    json = Json::parse(text);
  } catch (const Json::exception& error) {
    // what() quotes the file's bytes, which may be anything: only where it stopped is of use.
    const auto* parse_error = dynamic_cast<const Json::parse_error*>(&error);
    throw FormatError(
        fmt::format("{}: not JSON at byte {}", file, parse_error ? parse_error->byte : 0));
  }
  if (!json.is_object()) throw FormatError(fmt::format("{}: not a JSON object", file));
  return json;
}

// The member, null when there is none.
const Json& member(const Json& object, const char* key) {
  static const Json kNull;
  if (!object.is_object()) return kNull;
  const auto found = object.find(key);
  return found == object.end() ? kNull : *found;
}

bool is_type(const Json& object, const char* type) { return member(object, "type") == type; }

// A flag that may be missing or null. Throws when it is anything else.
bool flag(const Json& object, const char* key, bool fallback, const char* file = kTokenizerFile) {
  const Json& value = member(object, key);
  if (value.is_null()) return fallback;
  if (!value.is_boolean()) {
    throw FormatError(fmt::format("{}: {} is {}, not true or false", file, key, shown(value)));
  }
  return value.get<bool>();
}

// The parts of a Sequence, or the one thing itself; none for null.
std::vector<Json> sequence(const Json& value, const char* parts) {
  if (value.is_null()) return {};
  if (!is_type(value, "Sequence")) return {value};
  const Json& list = member(value, parts);
  if (!list.is_array()) refuse(parts, value);
  return list.get<std::vector<Json>>();
}

bool is_byte_level(const Json& part, bool use_regex) {
  return is_type(part, "ByteLevel") && !flag(part, "add_prefix_space", true) &&
         flag(part, "use_regex", true) == use_regex;
}

bool is_split(const Json& part, const char* regex) {
  return is_type(part, "Split") && member(member(part, "pattern"), "Regex") == regex &&
         member(part, "behavior") == "Isolated" && !flag(part, "invert", false);
}

bool is_metaspace_normalizer(const Json& normalizer) {
  const std::vector<Json> parts = sequence(normalizer, "normalizers");
  return parts.size() == 2 && is_type(parts[0], "Prepend") &&
         member(parts[0], "prepend") == kMetaspaceText && is_type(parts[1], "Replace") &&
         member(member(parts[1], "pattern"), "String") == " " &&
         member(parts[1], "content") == kMetaspaceText;
}

PreTokenizer read_pre_tokenizer(const Json& json) {
  const Json& normalizer = member(json, "normalizer");
  const Json& pre_tokenizer = member(json, "pre_tokenizer");
  if (!normalizer.is_null()) {
    if (!is_metaspace_normalizer(normalizer)) refuse("normalizer", normalizer);
    if (!pre_tokenizer.is_null()) refuse("pre_tokenizer behind a normalizer", pre_tokenizer);
    return PreTokenizer::kMetaspace;
  }
  const std::vector<Json> parts = sequence(pre_tokenizer, "pretokenizers");
  if (parts.size() == 1 && is_byte_level(parts[0], true)) return PreTokenizer::kGpt2;
  if (parts.size() == 2 && is_byte_level(parts[1], false)) {
    if (is_split(parts[0], kLlama3Regex)) return PreTokenizer::kLlama3;
    if (is_split(parts[0], kLlama3SingleDigitsRegex)) return PreTokenizer::kLlama3SingleDigits;
  }
  if (parts.size() == 2 && is_byte_level(parts[1], true) && is_type(parts[0], "Digits") &&
      flag(parts[0], "individual_digits", false)) {
    return PreTokenizer::kSmolLm;
  }
  refuse("pre_tokenizer", pre_tokenizer);
}

bool is_metaspace_decoder(const Json& decoder, bool byte_fallback) {
  std::vector<Json> parts = sequence(decoder, "decoders");
  const auto fallback = std::remove_if(
      parts.begin(), parts.end(), [](const Json& part) { return is_type(part, "ByteFallback"); });
  const bool has_fallback = fallback != parts.end();
  parts.erase(fallback, parts.end());
  return parts.size() == 3 && has_fallback == byte_fallback && is_type(parts[0], "Replace") &&
         member(member(parts[0], "pattern"), "String") == kMetaspaceText &&
         member(parts[0], "content") == " " && is_type(parts[1], "Fuse") &&
         is_type(parts[2], "Strip") && member(parts[2], "content") == " " &&
         member(parts[2], "start") == 1 && member(parts[2], "stop") == 0;
}

void check_decoder(const Json& json, const TokenizerData& data) {
  const Json& decoder = member(json, "decoder");
  const bool is_known = data.pre_tokenizer == PreTokenizer::kMetaspace
                            ? is_metaspace_decoder(decoder, data.byte_fallback)
                            : is_type(decoder, "ByteLevel");
  if (!is_known) refuse("decoder", decoder);
}

// Puts a token at its id; the vocabulary grows as needed up to `max_tokens`.
class Vocabulary {
 public:
  Vocabulary(size_t max_tokens, std::vector<std::string>& tokens)
      : max_tokens_(max_tokens), tokens_(tokens) {}

  int32_t put(const std::string& text, const Json& id) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() >= max_tokens_) {
      throw FormatError(fmt::format("{}: token {} has id {}, {} tokens have ids from 0 up",
                                    kTokenizerFile, shown(text), shown(id), max_tokens_));
    }
    const auto index = id.get<size_t>();
    if (index >= tokens_.size()) {
      tokens_.resize(index + 1);
      is_set_.resize(index + 1, false);
    }
    if (is_set_[index] && tokens_[index] != text) {
      throw FormatError(fmt::format("{}: id {} has two tokens, {} and {}", kTokenizerFile, index,
                                    shown(tokens_[index]), shown(text)));
    }
    is_set_[index] = true;
    tokens_[index] = text;
    return static_cast<int32_t>(index);
  }

  void check_complete() const {
    const auto hole = std::find(is_set_.begin(), is_set_.end(), false);
    if (hole != is_set_.end()) {
      throw FormatError(
          fmt::format("{}: no token has id {}", kTokenizerFile, hole - is_set_.begin()));
    }
  }

 private:
  size_t max_tokens_;
  std::vector<std::string>& tokens_;
  std::vector<bool> is_set_;
};

void read_added_token(const Json& token, Vocabulary& vocabulary, TokenizerData& data,
                      std::optional<bool>& normalized) {
  const Json& content = member(token, "content");
  if (!content.is_string() || content.get_ref<const std::string&>().empty()) {
    refuse("added token", token);
  }
  for (const char* key : {"single_word", "lstrip", "rstrip"}) {
    if (flag(token, key, false)) {
      refuse(fmt::format("{} of added token", key).c_str(), content);
    }
  }
  const int32_t id = vocabulary.put(content.get<std::string>(), member(token, "id"));
  const bool is_special = flag(token, "special", false);
  (is_special ? data.special : data.added).push_back(id);
  const bool is_normalized = flag(token, "normalized", !is_special);
  if (data.pre_tokenizer == PreTokenizer::kMetaspace &&
      normalized.value_or(is_normalized) != is_normalized) {
    refuse("a \"normalized\" unlike the others' in added token", token);
  }
  normalized = is_normalized;
}

void read_tokens(const Json& json, TokenizerData& data) {
  const Json& vocab = member(member(json, "model"), "vocab");
  const Json& added = member(json, "added_tokens");
  if (!vocab.is_object()) throw FormatError(fmt::format("{}: no model.vocab", kTokenizerFile));
  if (!added.is_array() && !added.is_null()) refuse("added_tokens", added);
  Vocabulary vocabulary(vocab.size() + added.size(), data.tokens);
  for (const auto& [text, id] : vocab.items()) vocabulary.put(text, id);
  std::optional<bool> normalized;
  for (const Json& token : added) read_added_token(token, vocabulary, data, normalized);
  data.match_normalized =
      data.pre_tokenizer == PreTokenizer::kMetaspace && normalized.value_or(false);
  vocabulary.check_complete();
}

std::pair<std::string, std::string> read_merge(const Json& merge) {
  if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
    return {merge[0].get<std::string>(), merge[1].get<std::string>()};
  }
  if (merge.is_string()) {
    const auto& text = merge.get_ref<const std::string&>();
    const size_t space = text.find(' ');
    if (space != std::string::npos && text.find(' ', space + 1) == std::string::npos) {
      return {text.substr(0, space), text.substr(space + 1)};
    }
  }
  throw FormatError(
      fmt::format("{}: {} is not a merge of two tokens", kTokenizerFile, shown(merge)));
}

int32_t find_token(const TokenizerData& data, const std::string& text, const char* what,
                   const char* file) {
  const auto found = std::find(data.tokens.begin(), data.tokens.end(), text);
  if (found == data.tokens.end()) {
    throw FormatError(fmt::format("{}: {} {} is not in the vocabulary", file, what, shown(text)));
  }
  return static_cast<int32_t>(found - data.tokens.begin());
}

void check_empty(const Json& model, const char* key) {
  const Json& value = member(model, key);
  if (!value.is_null() && value != "") refuse(key, value);
}

void read_model(const Json& json, TokenizerData& data) {
  const Json& model = member(json, "model");
  // Old files leave the type out; only BPE has merges.
  const Json& merges = member(model, "merges");
  if (!(is_type(model, "BPE") || (member(model, "type").is_null() && merges.is_array()))) {
    refuse("model.type", member(model, "type"));
  }
  if (!merges.is_array()) throw FormatError(fmt::format("{}: no model.merges", kTokenizerFile));
  check_empty(model, "continuing_subword_prefix");
  check_empty(model, "end_of_word_suffix");
  const Json& dropout = member(model, "dropout");
  if (!dropout.is_null() && dropout != 0) refuse("dropout", dropout);

  data.ignore_merges = flag(model, "ignore_merges", false);
  data.fuse_unk = flag(model, "fuse_unk", false);
  data.byte_fallback = flag(model, "byte_fallback", false);
  if (data.byte_fallback && data.pre_tokenizer != PreTokenizer::kMetaspace) {
    refuse("byte_fallback of a byte-level model:", true);
  }
  read_tokens(json, data);
  data.merges.reserve(merges.size());
  for (const Json& merge : merges) data.merges.push_back(read_merge(merge));
  const Json& unk = member(model, "unk_token");
  if (unk.is_string() && unk != "") {
    data.unk = find_token(data, unk.get<std::string>(), "unk_token", kTokenizerFile);
  } else if (!unk.is_null() && unk != "") {
    refuse("unk_token", unk);
  }
}

// Template "bos A": bos is added. Template "A": nothing is.
void read_template(const Json& processor, TokenizerData& data) {
  const Json& single = member(processor, "single");
  const auto is_text = [](const Json& part) { return member(part, "Sequence").is_object(); };
  const bool is_list = single.is_array();
  if (is_list && single.size() == 1 && is_text(single[0])) return;
  if (!is_list || single.size() != 2 || !is_text(single[1])) refuse("post_processor", processor);
  const Json& name = member(member(single[0], "SpecialToken"), "id");
  if (!name.is_string()) refuse("post_processor", processor);
  const Json& ids =
      member(member(member(processor, "special_tokens"), name.get<std::string>().c_str()), "ids");
  if (!ids.is_array() || ids.size() != 1 || !ids[0].is_number_unsigned() ||
      ids[0].get<uint64_t>() >= data.tokens.size()) {
    refuse("post_processor", processor);
  }
  data.bos = ids[0].get<int32_t>();
  data.add_bos = true;
}

void read_post_processor(const Json& json, TokenizerData& data) {
  for (const Json& part : sequence(member(json, "post_processor"), "processors")) {
    if (is_type(part, "TemplateProcessing") && !data.add_bos) {
      read_template(part, data);
    } else if (!is_type(part, "ByteLevel")) {  // ByteLevel only trims offsets
      refuse("post_processor", part);
    }
  }
}

// "<s>" or {"content": "<s>"}; null and missing keep what is there.
void read_config_token(const Json& config, const char* key, TokenizerData& data, int32_t& id) {
  const Json& value = member(config, key);
  const Json& text = value.is_object() ? member(value, "content") : value;
  if (text.is_null()) return;
  if (!text.is_string()) {
    throw FormatError(fmt::format("{}: {} is {}, not a token", kConfigFile, key, shown(value)));
  }
  id = find_token(data, text.get<std::string>(), key, kConfigFile);
}

// A text, or a list of named ones of which "default" counts.
std::string read_chat_template(const Json& config) {
  const Json& value = member(config, "chat_template");
  if (value.is_null()) return "";
  if (value.is_string()) return value.get<std::string>();
  if (value.is_array()) {
    for (const Json& named : value) {
      const Json& text = member(named, "template");
      if (member(named, "name") == "default" && text.is_string()) return text.get<std::string>();
    }
  }
  throw FormatError(
      fmt::format("{}: chat_template is neither a text nor has it a default", kConfigFile));
}

void read_config(const Json& config, TokenizerData& data) {
  read_config_token(config, "bos_token", data, data.bos);
  read_config_token(config, "eos_token", data, data.eos);
  data.add_bos = flag(config, "add_bos_token", data.add_bos, kConfigFile);
  if (data.add_bos && data.bos < 0) {
    throw FormatError(fmt::format("{}: add_bos_token without a bos_token", kConfigFile));
  }
  if (flag(config, "add_eos_token", false, kConfigFile)) {
    throw FormatError(fmt::format("{}: add_eos_token true is not supported", kConfigFile));
  }
  data.chat_template = read_chat_template(config);
}

}  // namespace

TokenizerData tokenizer_from_json(std::string_view tokenizer_json,
                                  std::string_view tokenizer_config) {
  const Json json = parse_object(tokenizer_json, kTokenizerFile);
  TokenizerData data;
  data.pre_tokenizer = read_pre_tokenizer(json);
  read_model(json, data);
  check_decoder(json, data);
  read_post_processor(json, data);
  if (!tokenizer_config.empty()) read_config(parse_object(tokenizer_config, kConfigFile), data);
  return data;
}

TokenizerData load_tokenizer_folder(const std::string& folder) {
  namespace fs = std::filesystem;
  const fs::path path(folder);
  const auto read_if_any = [&](const char* file) {
    return fs::exists(path / file) ? read_text((path / file).string(), kMaxFileBytes) : "";
  };
  const std::string json = read_text((path / kTokenizerFile).string(), kMaxFileBytes);
  const std::string config = read_if_any(kConfigFile);
  const std::string chat_template = read_if_any("chat_template.jinja");
  try {
    TokenizerData data = tokenizer_from_json(json, config);
    if (!chat_template.empty()) data.chat_template = chat_template;
    return data;
  } catch (const FormatError& error) {
    throw FormatError(fmt::format("{}/{}", folder, error.what()));
  }
}

}  // namespace kvquant
