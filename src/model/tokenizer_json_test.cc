#include "model/tokenizer_json.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "kvquant/error.h"
#include "model/tokenizer.h"

namespace kvquant {
namespace {

using Json = nlohmann::json;

// A byte-level file of five tokens.
Json small_json() {
  return Json::parse(R"json({
    "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
    "added_tokens": [
      {"id": 3, "content": "<s>", "special": true, "normalized": false, "lstrip": false},
      {"id": 4, "content": "<tool>", "special": false, "normalized": false}],
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
    "post_processor": null,
    "decoder": {"type": "ByteLevel"},
    "model": {"type": "BPE", "unk_token": null, "fuse_unk": false, "byte_fallback": false,
              "vocab": {"a": 0, "b": 1, "ab": 2, "<s>": 3}, "merges": ["a b"]}})json");
}

TokenizerData read(const Json& json, std::string_view config = {}) {
  return tokenizer_from_json(json.dump(), config);
}

std::string refusal(std::string_view json, std::string_view config = {}) {
  try {
    tokenizer_from_json(json, config);
  } catch (const FormatError& error) {
    EXPECT_EQ(std::string_view(error.what()).find('\n'), std::string_view::npos);
    return error.what();
  }
  return "accepted";
}

void expect_refused(const Json& json, const std::string& words) {
  EXPECT_NE(refusal(json.dump()).find(words), std::string::npos) << refusal(json.dump());
}

Json split(const char* regex) {
  return {{"type", "Sequence"},
          {"pretokenizers",
           {{{"type", "Split"},
             {"pattern", {{"Regex", regex}}},
             {"behavior", "Isolated"},
             {"invert", false}},
            {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}}}};
}

TEST(TokenizerJson, ASmallFileIsReadWhole) {
  const TokenizerData data = read(small_json());
  EXPECT_EQ(data.pre_tokenizer, PreTokenizer::kGpt2);
  EXPECT_EQ(data.tokens, (std::vector<std::string>{"a", "b", "ab", "<s>", "<tool>"}));
  EXPECT_EQ(data.merges, (std::vector<std::pair<std::string, std::string>>{{"a", "b"}}));
  EXPECT_EQ(data.special, std::vector<int32_t>{3});
  EXPECT_EQ(data.added, std::vector<int32_t>{4});
  EXPECT_EQ(data.bos, -1);
  EXPECT_FALSE(data.add_bos);
  EXPECT_EQ(Tokenizer(data).encode("ab<s>b<tool>"), (std::vector<int32_t>{2, 3, 1, 4}));
}

TEST(TokenizerJson, MergesMayBePairs) {
  Json json = small_json();
  json["model"]["merges"] = Json::array({Json::array({"a", "b"})});
  EXPECT_EQ(read(json).merges, read(small_json()).merges);
  for (const Json& wrong : {Json("ab"), Json("a b c"), Json::array({"a"}), Json(1)}) {
    json["model"]["merges"] = Json::array({wrong});
    expect_refused(json, "is not a merge of two tokens");
  }
}

TEST(TokenizerJson, PreTokenizersAreRecognisedByContent) {
  Json json = small_json();
  json["pre_tokenizer"] = split(
      R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)");
  EXPECT_EQ(read(json).pre_tokenizer, PreTokenizer::kLlama3);
  json["pre_tokenizer"] = split(
      R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)");
  EXPECT_EQ(read(json).pre_tokenizer, PreTokenizer::kLlama3SingleDigits);
  json["pre_tokenizer"] = {
      {"type", "Sequence"},
      {"pretokenizers",
       {{{"type", "Digits"}, {"individual_digits", true}},
        {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}}}}};
  EXPECT_EQ(read(json).pre_tokenizer, PreTokenizer::kSmolLm);
}

TEST(TokenizerJson, OtherPreTokenizersAreRefused) {
  Json json = small_json();
  const Json with_prefix_space{{"type", "ByteLevel"}, {"add_prefix_space", true}};
  const Json whitespace{{"type", "Whitespace"}};
  for (const Json& other : {split("\\s+"), with_prefix_space, whitespace, Json(), Json(3)}) {
    json["pre_tokenizer"] = other;
    expect_refused(json, "tokenizer.json: pre_tokenizer " + other.dump().substr(0, 20));
  }
}

TEST(TokenizerJson, WhatIsNotUnderstoodIsRefusedByName) {
  const auto expect_change_refused = [](const char* pointer, const Json& value, const char* words) {
    Json json = small_json();
    json[Json::json_pointer(pointer)] = value;
    expect_refused(json, words);
  };
  expect_change_refused("/model/type", "Unigram", "model.type \"Unigram\" is not supported");
  expect_change_refused("/normalizer", {{"type", "NFKC"}}, "normalizer {\"type\":\"NFKC\"}");
  expect_change_refused("/decoder", {{"type", "WordPiece"}}, "decoder {\"type\":\"WordPiece\"}");
  expect_change_refused("/decoder", nullptr, "decoder null");
  expect_change_refused("/post_processor", {{"type", "BertProcessing"}}, "BertProcessing");
  expect_change_refused("/model/dropout", 0.1, "dropout 0.1");
  expect_change_refused("/model/end_of_word_suffix", "</w>", "end_of_word_suffix \"</w>\"");
  expect_change_refused("/model/byte_fallback", true, "byte_fallback");
  expect_change_refused("/model/ignore_merges", 1, "ignore_merges is 1, not true or false");
  expect_change_refused("/model/unk_token", "<none>", "\"<none>\" is not in the vocabulary");
  expect_change_refused("/added_tokens/0/single_word", true, "single_word of added token \"<s>\"");
  expect_change_refused("/added_tokens/0/content", "", "added token");
  expect_change_refused("/added_tokens", "none", "added_tokens");
  expect_change_refused("/model/vocab", nullptr, "no model.vocab");
  expect_change_refused("/model/merges", nullptr, "no model.merges");
}

TEST(TokenizerJson, IdsAreDenseAndUnique) {
  const auto expect_change_refused = [](const char* pointer, const Json& value, const char* words) {
    Json json = small_json();
    json[Json::json_pointer(pointer)] = value;
    expect_refused(json, words);
  };
  expect_change_refused("/model/vocab/ab", 1, "id 1 has two tokens");
  expect_change_refused("/model/vocab/ab", 5, "no token has id 2");
  expect_change_refused("/model/vocab/ab", 4000000000u, "token \"ab\" has id 4000000000");
  expect_change_refused("/model/vocab/ab", -1, "has id -1");
  expect_change_refused("/model/vocab/ab", "2", "has id \"2\"");
  expect_change_refused("/added_tokens/1/id", nullptr, "has id null");
}

TEST(TokenizerJson, ATemplateAddsBos) {
  Json json = small_json();
  const Json text{{"Sequence", {{"id", "A"}, {"type_id", 0}}}};
  const Json bos{{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}};
  Json processor{{"type", "TemplateProcessing"},
                 {"single", {bos, text}},
                 {"special_tokens", {{"<s>", {{"id", "<s>"}, {"ids", {3}}}}}}};
  json["post_processor"] = processor;
  EXPECT_EQ(read(json).bos, 3);
  EXPECT_TRUE(read(json).add_bos);
  EXPECT_FALSE(read(json, R"({"add_bos_token": false})").add_bos);

  json["post_processor"] = {{"type", "Sequence"},
                            {"processors", {{{"type", "ByteLevel"}}, processor}}};
  EXPECT_TRUE(read(json).add_bos);
  json["post_processor"] = processor;
  json["post_processor"]["single"] = Json::array({text});
  EXPECT_FALSE(read(json).add_bos);
  json["post_processor"]["single"] = {text, bos};
  expect_refused(json, "post_processor");
  json["post_processor"]["single"] = {bos, text};
  json["post_processor"]["special_tokens"]["<s>"]["ids"] = {99};
  expect_refused(json, "post_processor");
}

TEST(TokenizerJson, TheConfigNamesTokensAndTheChatTemplate) {
  const TokenizerData data = read(small_json(), R"({
    "bos_token": "<s>", "eos_token": {"content": "<tool>", "lstrip": false},
    "add_bos_token": true, "chat_template": "{{ x }}", "model_max_length": 1e30})");
  EXPECT_EQ(data.bos, 3);
  EXPECT_EQ(data.eos, 4);
  EXPECT_TRUE(data.add_bos);
  EXPECT_EQ(data.chat_template, "{{ x }}");
  const char* named = R"({"chat_template": [{"name": "tools", "template": "t"},
                                            {"name": "default", "template": "d"}]})";
  EXPECT_EQ(read(small_json(), named).chat_template, "d");
}

TEST(TokenizerJson, AConfigThatDoesNotFitIsRefused) {
  const std::string json = small_json().dump();
  const auto starts = [&](const char* config, const char* words) {
    EXPECT_TRUE(refusal(json, config).starts_with(words)) << refusal(json, config);
  };
  starts(R"({"bos_token": "<none>"})", "tokenizer_config.json: bos_token \"<none>\" is not in");
  starts(R"({"eos_token": 3})", "tokenizer_config.json: eos_token is 3");
  starts(R"({"add_bos_token": true})", "tokenizer_config.json: add_bos_token without");
  starts(R"({"add_eos_token": true})", "tokenizer_config.json: add_eos_token");
  starts(R"({"chat_template": [1]})", "tokenizer_config.json: chat_template");
  starts("[]", "tokenizer_config.json: not a JSON object");
}

Json metaspace_json() {
  Json json = small_json();
  json["normalizer"] = Json::parse(R"({"type": "Sequence", "normalizers": [
    {"type": "Prepend", "prepend": "\u2581"},
    {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]})");
  json["pre_tokenizer"] = nullptr;
  json["decoder"] = Json::parse(R"({"type": "Sequence", "decoders": [
    {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
    {"type": "ByteFallback"}, {"type": "Fuse"},
    {"type": "Strip", "content": " ", "start": 1, "stop": 0}]})");
  json["model"]["byte_fallback"] = true;
  json["model"]["unk_token"] = "<s>";
  return json;
}

TEST(TokenizerJson, ConvertedSentencepieceModelsAreRead) {
  Json json = metaspace_json();
  TokenizerData data = read(json);
  EXPECT_EQ(data.pre_tokenizer, PreTokenizer::kMetaspace);
  EXPECT_EQ(data.space_prefix, SpacePrefix::kAlways);
  EXPECT_EQ(data.space_strip, SpaceStrip::kOne);
  EXPECT_TRUE(data.byte_fallback);
  EXPECT_TRUE(data.match_normalized.empty());
  EXPECT_EQ(data.unk, 3);
  json["added_tokens"][0]["normalized"] = true;
  EXPECT_EQ(read(json).match_normalized, std::vector<int32_t>{3});
  json = metaspace_json();
  json["decoder"]["decoders"].erase(1);
  expect_refused(json, "decoder");
  json = metaspace_json();
  json["pre_tokenizer"] = {{"type", "Whitespace"}};
  expect_refused(json, "pre_tokenizer behind a normalizer");
  json = metaspace_json();
  json["normalizer"] = json["normalizer"]["normalizers"][1];
  EXPECT_EQ(read(json).space_prefix, SpacePrefix::kNever);
  json["normalizer"]["content"] = "_";
  expect_refused(json, "normalizer");
}

TEST(TokenizerJson, MetaspaceIsReadWithAllItsSchemes) {
  Json json = metaspace_json();
  json["normalizer"] = nullptr;
  const auto with = [&](const char* metaspace) {
    json["pre_tokenizer"] = Json::parse(metaspace);
    json["pre_tokenizer"]["type"] = "Metaspace";
    json["pre_tokenizer"]["replacement"] = "\u2581";
    return read(json);
  };
  EXPECT_EQ(with(R"({"prepend_scheme": "first", "split": false})").space_prefix,
            SpacePrefix::kFirstUnlessThere);
  EXPECT_FALSE(with(R"({"prepend_scheme": "always", "split": false})").split_at_spaces);
  EXPECT_TRUE(with(R"({"prepend_scheme": "always"})").split_at_spaces);
  EXPECT_EQ(with(R"({"prepend_scheme": "never"})").space_prefix, SpacePrefix::kNever);
  EXPECT_EQ(with(R"({"add_prefix_space": false})").space_prefix, SpacePrefix::kNever);
  EXPECT_EQ(with(R"({"add_prefix_space": true})").space_prefix, SpacePrefix::kUnlessThere);
  json["pre_tokenizer"]["prepend_scheme"] = "last";
  expect_refused(json, "prepend_scheme");
  json["pre_tokenizer"] = {{"type", "Metaspace"}, {"replacement", "_"}};
  expect_refused(json, "replacement");
}

TEST(TokenizerJson, AMetaspaceDecoderTakesAllSpacesOfTheFirstToken) {
  Json json = metaspace_json();
  json["decoder"] = {
      {"type", "Metaspace"}, {"replacement", "\u2581"}, {"prepend_scheme", "always"}};
  expect_refused(json, "decoder");  // bytes would be printed as "<0x0A>"
  json["model"]["byte_fallback"] = false;
  EXPECT_EQ(read(json).space_strip, SpaceStrip::kOfTheFirstToken);
  json["decoder"]["prepend_scheme"] = "never";
  EXPECT_EQ(read(json).space_strip, SpaceStrip::kNothing);
}

TEST(TokenizerJson, NormalFormCIsReadInByteLevelModels) {
  Json json = small_json();
  json["normalizer"] = {{"type", "NFC"}};
  EXPECT_TRUE(read(json).nfc);
  json["normalizer"] = {{"type", "Sequence"}, {"normalizers", Json::array()}};
  EXPECT_FALSE(read(json).nfc);
}

TEST(TokenizerJson, AddedTokensMayTakeTheWhiteSpaceBesideThem) {
  Json json = small_json();
  json["added_tokens"][0]["rstrip"] = true;
  json["added_tokens"][1]["lstrip"] = true;
  const TokenizerData data = read(json);
  EXPECT_EQ(data.strip_right, std::vector<int32_t>{3});
  EXPECT_EQ(data.strip_left, std::vector<int32_t>{4});
  EXPECT_EQ(Tokenizer(data).encode("ab<s> \n b <tool>"), (std::vector<int32_t>{2, 3, 1, 4}));
}

TEST(TokenizerJson, TextThatIsNoJsonIsRefusedWithAnOffset) {
  EXPECT_EQ(refusal("{\"a\": }"), "tokenizer.json: not JSON at byte 7");
  EXPECT_EQ(refusal("[]"), "tokenizer.json: not a JSON object");
  EXPECT_TRUE(refusal("").starts_with("tokenizer.json: not JSON"));
  EXPECT_TRUE(refusal("{\"\xFF\": 1}").starts_with("tokenizer.json: not JSON"));
  const std::string whole = small_json().dump();
  for (size_t size = 0; size < whole.size(); ++size) {
    EXPECT_NE(refusal(whole.substr(0, size)), "accepted") << size;
  }
}

TEST(TokenizerJson, DeepNestingIsRefused) {
  const std::string deep(1'000'000, '[');
  EXPECT_EQ(refusal("{\"a\":" + deep), "tokenizer.json: nested deeper than 64 at byte 68");
  EXPECT_EQ(refusal(small_json().dump(), "{\"a\":" + deep),
            "tokenizer_config.json: nested deeper than 64 at byte 68");
  Json json = small_json();
  json["brackets in a string"] = deep + "\\\"";
  EXPECT_EQ(refusal(json.dump()), "accepted");
}

TEST(TokenizerJson, AFolderIsReadWithItsConfigAndTemplate) {
  namespace fs = std::filesystem;
  const fs::path folder = fs::path(testing::TempDir()) / "kvquant_tokenizer_folder";
  fs::remove_all(folder);
  fs::create_directories(folder);
  EXPECT_THROW(load_tokenizer_folder(folder.string()), IoError);
  write_file_atomic((folder / "tokenizer.json").string(), small_json().dump());
  EXPECT_EQ(load_tokenizer_folder(folder.string()).eos, -1);
  write_file_atomic((folder / "tokenizer_config.json").string(),
                    R"({"eos_token": "<s>", "chat_template": "old"})");
  write_file_atomic((folder / "chat_template.jinja").string(), "new");
  EXPECT_EQ(load_tokenizer_folder(folder.string()).eos, 3);
  EXPECT_EQ(load_tokenizer_folder(folder.string()).chat_template, "new");
  write_file_atomic((folder / "tokenizer_config.json").string(), "{");
  try {
    load_tokenizer_folder(folder.string());
    FAIL();
  } catch (const FormatError& error) {
    EXPECT_EQ(error.what(), folder.string() + "/tokenizer_config.json: not JSON at byte 2");
  }
}

}  // namespace
}  // namespace kvquant
