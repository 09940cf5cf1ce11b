#include "model/tokenizer_json.h"

#include <fmt/core.h>

#include <algorithm>
#include <filesystem>
#include <limits>
#include <map>

#include "base/file.h"
#include "kvquant/error.h"
#include "model/sentencepiece_model.h"
#include "model/tiktoken_ranks.h"
#include "model/tokenizer_json_fields.h"
#include "model/tokenizer_json_parts.h"

namespace kvquant {
namespace {

constexpr int64_t kMaxFileBytes = int64_t{1} << 30;

constexpr const char* kModelFile = "tokenizer.model";
constexpr const char* kAddedTokensFile = "added_tokens.json";

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

void read_added_token(const Json& token, Vocabulary& vocabulary, TokenizerData& data) {
  const Json& content = member(token, "content");
  if (!content.is_string() || content.get_ref<const std::string&>().empty()) {
    refuse("added token", token);
  }
  if (flag(token, "single_word", false)) refuse("single_word of added token", content);
  const int32_t id = vocabulary.put(content.get<std::string>(), member(token, "id"));
  const bool is_special = flag(token, "special", false);
  (is_special ? data.special : data.added).push_back(id);
  if (flag(token, "normalized", !is_special)) data.match_normalized.push_back(id);
  if (flag(token, "lstrip", false)) data.strip_left.push_back(id);
  if (flag(token, "rstrip", false)) data.strip_right.push_back(id);
}

void read_tokens(const Json& json, TokenizerData& data) {
  const Json& vocab = member(member(json, "model"), "vocab");
  const Json& added = member(json, "added_tokens");
  if (!vocab.is_object()) throw FormatError(fmt::format("{}: no model.vocab", kTokenizerFile));
  if (!added.is_array() && !added.is_null()) refuse("added_tokens", added);
  Vocabulary vocabulary(vocab.size() + added.size(), data.tokens);
  for (const auto& [text, id] : vocab.items()) vocabulary.put(text, id);
  for (const Json& token : added) read_added_token(token, vocabulary, data);
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
    throw FormatError(
        fmt::format("{}: {} is {}, not a token", kTokenizerConfigFile, key, shown(value)));
  }
  id = find_token(data, text.get<std::string>(), key, kTokenizerConfigFile);
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
  throw FormatError(fmt::format("{}: chat_template is neither a text nor has it a default",
                                kTokenizerConfigFile));
}

void read_config(const Json& config, TokenizerData& data) {
  read_config_token(config, "bos_token", data, data.bos);
  read_config_token(config, "eos_token", data, data.eos);
  data.add_bos = flag(config, "add_bos_token", data.add_bos, kTokenizerConfigFile);
  if (data.add_bos && data.bos < 0) {
    throw FormatError(fmt::format("{}: add_bos_token without a bos_token", kTokenizerConfigFile));
  }
  if (flag(config, "add_eos_token", false, kTokenizerConfigFile)) {
    throw FormatError(fmt::format("{}: add_eos_token true is not supported", kTokenizerConfigFile));
  }
  data.chat_template = read_chat_template(config);
}

struct AddedToken {
  std::string text;
  bool is_special;
};

int64_t checked_added_id(const Json& id, const char* file) {
  if (!id.is_number_unsigned() || id.get<uint64_t>() > INT32_MAX) {
    throw FormatError(fmt::format("{}: {} is not the id of a token", file, shown(id)));
  }
  return id.get<int64_t>();
}

// Tokens behind the pieces, by id; others must be what they are there already.
void add_tokens(const std::map<int64_t, AddedToken>& added, TokenizerData& data) {
  const auto num_pieces = static_cast<int64_t>(data.tokens.size());
  for (const auto& [id, token] : added) {
    const auto end = static_cast<int64_t>(data.tokens.size());
    if (id < num_pieces ? data.tokens[id] != token.text : id != end || token.text.empty()) {
      throw FormatError(
          fmt::format("{}: added token {} with id {} does not fit the {} tokens before it",
                      kModelFile, shown(token.text), id, end));
    }
    if (id < num_pieces) continue;
    data.tokens.push_back(token.text);
    if (data.merge_order == MergeOrder::kScores) {
      data.scores.push_back(std::numeric_limits<float>::lowest());
    }
    (token.is_special ? data.special : data.added).push_back(static_cast<int32_t>(id));
  }
}

}  // namespace

TokenizerData tokenizer_from_json(std::string_view tokenizer_json,
                                  std::string_view tokenizer_config) {
  const Json json = parse_object(tokenizer_json, kTokenizerFile);
  TokenizerData data;
  read_pre_tokenizer(json, data);
  read_model(json, data);
  read_decoder(json, data);
  read_post_processor(json, data);
  if (!tokenizer_config.empty())
    read_config(parse_object(tokenizer_config, kTokenizerConfigFile), data);
  return data;
}

TokenizerData tokenizer_from_model_file(std::string_view model, std::string_view tokenizer_config,
                                        std::string_view added_tokens) {
  TokenizerData data = is_tiktoken_ranks(model) ? tokenizer_from_tiktoken_ranks(model)
                                                : tokenizer_from_sentencepiece(model);
  std::map<int64_t, AddedToken> added;
  if (!added_tokens.empty()) {
    const Json ids = parse_object(added_tokens, kAddedTokensFile);
    for (const auto& [text, id] : ids.items()) {
      added[checked_added_id(id, kAddedTokensFile)] = {text, false};
    }
  }
  const Json config = tokenizer_config.empty()
                          ? Json::object()
                          : parse_object(tokenizer_config, kTokenizerConfigFile);
  for (const auto& [key, token] : member(config, "added_tokens_decoder").items()) {
    const Json& content = member(token, "content");
    const Json id = Json::parse(key, nullptr, false);
    if (!content.is_string()) {
      throw FormatError(
          fmt::format("{}: added token {} is {}", kTokenizerConfigFile, shown(key), shown(token)));
    }
    added[checked_added_id(id, kTokenizerConfigFile)] = {
        content.get<std::string>(), flag(token, "special", false, kTokenizerConfigFile)};
  }
  add_tokens(added, data);
  read_config(config, data);
  return data;
}

TokenizerData load_tokenizer_folder(const std::string& folder) {
  namespace fs = std::filesystem;
  const fs::path path(folder);
  const auto read_if_any = [&](const char* file) {
    return fs::exists(path / file) ? read_text((path / file).string(), kMaxFileBytes) : "";
  };
  const bool has_json = fs::exists(path / kTokenizerFile) || !fs::exists(path / kModelFile);
  const std::string text =
      read_text((path / (has_json ? kTokenizerFile : kModelFile)).string(), kMaxFileBytes);
  const std::string config = read_if_any(kTokenizerConfigFile);
  const std::string added = has_json ? "" : read_if_any(kAddedTokensFile);
  const std::string chat_template = read_if_any("chat_template.jinja");
  try {
    TokenizerData data = has_json ? tokenizer_from_json(text, config)
                                  : tokenizer_from_model_file(text, config, added);
    if (!chat_template.empty()) data.chat_template = chat_template;
    return data;
  } catch (const FormatError& error) {
    throw FormatError(fmt::format("{}/{}", folder, error.what()));
  }
}

}  // namespace kvquant
