// Tokenizers of every kind against the packages they come from (tests/golden/tokenizers, made by
// tests/golden/make_tokenizer_golden.py).
#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <cstdlib>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "model/text_normalizer.h"
#include "model/tokenizer.h"
#include "model/tokenizer_json.h"
#include "model/tokenizer_test_text.h"
#include "model/utf8.h"

namespace kvquant {
namespace {

// The properties' seed, unless the environment names one.
[[maybe_unused]] const int kSeeded = setenv("RC_PARAMS", "seed=42", 0);

using Ids = std::vector<int32_t>;

const std::string kFolder = KVQUANT_SOURCE_DIR "/tests/golden/tokenizers/";

const nlohmann::json& golden() {
  static const auto json = nlohmann::json::parse(read_text(kFolder + "golden.json"));
  return json;
}

class GoldenTokenizer : public testing::TestWithParam<const char*> {};

TEST_P(GoldenTokenizer, IdsAndTextsAreThoseOfTheTokenizersPackage) {
  const Tokenizer tokenizer(
      tokenizer_from_json(read_text(kFolder + GetParam() + std::string(".json"))));
  const auto& expected = golden()[GetParam()];
  const auto texts = golden()["texts"].get<std::vector<std::string>>();
  for (size_t i = 0; i < texts.size(); ++i) {
    const Ids ids = tokenizer.encode(texts[i]);
    EXPECT_EQ(ids, expected["ids"][i].get<Ids>()) << texts[i];
    EXPECT_EQ(tokenizer.decode(ids, true), expected["decoded"][i].get<std::string>());
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, GoldenTokenizer,
                         testing::Values("gpt2", "llama3", "cl100k", "qwen2", "tekken", "smollm",
                                         "falcon", "prepend", "prepend_normalized", "replace",
                                         "metaspace_always", "metaspace_always_split",
                                         "metaspace_first", "metaspace_first_split",
                                         "metaspace_never", "metaspace_never_split"),
                         [](const auto& info) { return std::string(info.param); });

// Characters of all planes, spaces and control characters among them, not U+2581.
rc::Gen<std::string> any_text() {
  const auto character = rc::gen::weightedOneOf<char32_t>(
      {{6, rc::gen::cast<char32_t>(rc::gen::inRange(0, 0x80))},
       {4, rc::gen::elementOf(std::u32string(U"  \n\t'sStheaeri<>/0129\u00A0\u0301"))},
       {2, rc::gen::cast<char32_t>(rc::gen::inRange(0x80, 0x2580))},
       {2, rc::gen::cast<char32_t>(rc::gen::inRange(0x2582, 0xD800))},
       {1, rc::gen::cast<char32_t>(rc::gen::inRange(0xE000, 0x110000))}});
  return text_of(character);
}

// Metaspace "always" and "first" don't say whether the text began with a space.
class LosslessTokenizer : public testing::TestWithParam<const char*> {};

Tokenizer lossless_tokenizer(const std::string& name) {
  return Tokenizer(name.starts_with("bpe")
                       ? tokenizer_from_model_file(read_text(kFolder + name + ".model"), "", "")
                       : tokenizer_from_json(read_text(kFolder + name + ".json")));
}

TEST_P(LosslessTokenizer, DecodeUndoesEncodeAndAStreamGivesWholeCharacters) {
  const Tokenizer tokenizer = lossless_tokenizer(GetParam());
  EXPECT_TRUE(rc::check([&] {
    const std::string text = *any_text();
    const Ids ids = tokenizer.encode(text, Tokenizer::Special::kAsText, Tokenizer::Bos::kNever);
    const std::string expected = tokenizer.data().nfc ? to_nfc(text) : text;
    RC_ASSERT(tokenizer.decode(ids, true) == expected);
    StreamDecoder stream(tokenizer);
    std::string streamed;
    for (const int32_t id : ids) {
      const std::string part = stream.next(id);
      RC_ASSERT(find_invalid_utf8(part) == -1);
      streamed += part;
    }
    const bool adds_space = tokenizer.data().space_strip == SpaceStrip::kOne && !text.empty() &&
                            tokenizer.data().pre_tokenizer == PreTokenizer::kMetaspace;
    RC_ASSERT(streamed == (adds_space ? " " : "") + expected);
  }));
}

// What a model generates need not be text.
TEST_P(LosslessTokenizer, AnyIdsAreDecodedToTheSameTextByAStream) {
  const Tokenizer tokenizer = lossless_tokenizer(GetParam());
  EXPECT_TRUE(rc::check([&] {
    const auto ids = *rc::gen::container<Ids>(rc::gen::inRange(0, tokenizer.vocab_size()));
    StreamDecoder stream(tokenizer);
    std::string streamed, bytes;
    for (const int32_t id : ids) {
      streamed += stream.next(id);
      if (!tokenizer.is_special(id)) bytes += tokenizer.token_bytes(id);
    }
    streamed += stream.finish();
    RC_ASSERT(find_invalid_utf8(streamed) == -1);
    if (find_invalid_utf8(bytes) == -1) RC_ASSERT(streamed == bytes);
  }));
}

INSTANTIATE_TEST_SUITE_P(Kinds, LosslessTokenizer,
                         testing::Values("gpt2", "llama3", "qwen2", "tekken", "smollm", "falcon",
                                         "prepend", "prepend_normalized", "replace",
                                         "metaspace_never", "metaspace_never_split", "bpe",
                                         "bpe_no_prefix"),
                         [](const auto& info) { return std::string(info.param); });

class GoldenSentencepiece : public testing::TestWithParam<const char*> {};

TEST_P(GoldenSentencepiece, IdsAreThoseOfTheSentencepiecePackage) {
  const std::string name = GetParam();
  const TokenizerData data =
      tokenizer_from_model_file(read_text(kFolder + name + ".model"), "", "");
  const bool by_library = name == "unigram";
  EXPECT_EQ(data.sentencepiece.empty(), !by_library);
  const Tokenizer tokenizer(data);
  const auto& expected = golden()[name];
  const auto texts = expected["texts"].get<std::vector<std::string>>();
  for (size_t i = 0; i < texts.size(); ++i) {
    const Ids ids = tokenizer.encode(texts[i], Tokenizer::Special::kParse, Tokenizer::Bos::kNever);
    EXPECT_EQ(ids, expected["ids"][i].get<Ids>()) << texts[i];
    const bool has_marks =
        texts[i].find("\u2581") != std::string::npos;  // they come back as spaces
    if (!by_library && !data.remove_spaces && !has_marks) {
      EXPECT_EQ(tokenizer.decode(ids), texts[i]);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, GoldenSentencepiece,
                         testing::Values("bpe", "bpe_no_prefix", "bpe_trimmed", "unigram"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace kvquant
