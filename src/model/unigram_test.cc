#include "model/unigram.h"

#include <gtest/gtest.h>
#include <sentencepiece_processor.h>

#include <cstring>
#include <random>
#include <set>

#include "base/file.h"
#include "model/sentencepiece_model.h"
#include "model/tokenizer_json.h"

namespace kvquant {
namespace {

using Ids = std::vector<int32_t>;
using Kind = UnigramPiece::Kind;

Ids encode(const Unigram& unigram, std::string_view text) {
  Ids ids;
  unigram.encode(text, ids);
  return ids;
}

TEST(Unigram, TakesThePiecesOfTheLargestSum) {
  UnigramData data;
  data.pieces = {{"<unk>", 0, Kind::kOther},
                 {"\u2581", -3},
                 {"a", -2},
                 {"b", -2},
                 {"ab", -3},
                 {"\u2581a", -5},
                 {"ba", -1.5f}};
  const Unigram unigram(data);
  EXPECT_EQ(encode(unigram, ""), Ids{});
  EXPECT_EQ(encode(unigram, "ab"), (Ids{1, 4}));   // -6; "_a" "b" is -7
  EXPECT_EQ(encode(unigram, "aba"), (Ids{5, 6}));  // -6.5, as "_" "a" "ba"; "_" "ab" "a" is -8
  EXPECT_EQ(encode(unigram, "a  b"), (Ids{5, 1, 1, 3}));
  EXPECT_EQ(encode(unigram, "xyab\u00E9b"), (Ids{1, 0, 4, 0, 3}));
}

TEST(Unigram, UserDefinedPiecesAreAlwaysTakenAndOthersNever) {
  UnigramData data;
  data.pieces = {{"<unk>", 0, Kind::kOther},       {"a", -1},      {"b", -1},
                 {"ab", -100, Kind::kUserDefined}, {"aba", -0.5f}, {"bb", 0, Kind::kOther}};
  data.spaces.add_prefix = false;
  EXPECT_EQ(encode(Unigram(data), "aab"), (Ids{1, 3}));
  EXPECT_EQ(encode(Unigram(data), "bb"), (Ids{2, 2}));
}

TEST(Unigram, UnknownCharactersAreTheirBytes) {
  UnigramData data;
  data.pieces = {{"<unk>", 0, Kind::kOther}, {"a", -1}};
  data.spaces.add_prefix = false;
  data.has_byte_ids = true;
  for (int byte = 0; byte < 256; ++byte) data.byte_ids[static_cast<size_t>(byte)] = 1000 + byte;
  EXPECT_EQ(encode(Unigram(data), "a\u00E9a"), (Ids{1, 1000 + 0xC3, 1000 + 0xA9, 1}));
}

TEST(Unigram, SpacesAreRemovedWhereTheModelSaysSo) {
  UnigramData data;
  data.pieces = {{"<unk>", 0, Kind::kOther}, {"\u2581", -1}, {"a", -1}};
  data.spaces.remove_extra = true;
  EXPECT_EQ(encode(Unigram(data), "  a   a "), (Ids{1, 2, 1, 2}));
  EXPECT_EQ(encode(Unigram(data), "   "), Ids{});
  data.spaces.add_prefix = false;
  EXPECT_EQ(encode(Unigram(data), " a a "), (Ids{2, 1, 2}));
}

// Protobuf by hand, every length below 128.
std::string message(int number, const std::string& bytes) {
  return std::string{static_cast<char>(number << 3 | 2), static_cast<char>(bytes.size())} + bytes;
}

std::string number(int number, int value) {
  return {static_cast<char>(number << 3), static_cast<char>(value)};
}

std::string piece(const std::string& text, float score, int type) {
  std::string bytes = message(1, text) + "\x15";
  bytes.append(reinterpret_cast<const char*>(&score), 4);
  return message(1, bytes + number(3, type));
}

class AgainstLibrary : public testing::Test {
 protected:
  std::string random_text(const std::vector<std::string>& parts, int64_t most) {
    std::string text;
    for (auto left = static_cast<int64_t>(rng_() % static_cast<uint64_t>(most)); left > 0; --left) {
      text += parts[rng_() % parts.size()];
    }
    return text;
  }

  // Of pieces of every kind over a small alphabet.
  std::string random_model() {
    const std::vector<std::string> letters = {"a", "b", "c", "\u00E9", "\u2581"};
    std::string model = piece("<unk>", 0, 2) + piece("<s>", 0, 3) + piece("</s>", 0, 3);
    std::set<std::string> seen;
    for (int i = 0; i < 30; ++i) {
      std::string text = random_text(letters, 5);
      if (text.empty() || !seen.insert(text).second) continue;
      const int type = rng_() % 8 == 0 ? 4 : rng_() % 8 == 1 ? 5 : 1;  // user-defined, unused
      // Few different scores, so that sums are equal now and then.
      model += piece(text, -static_cast<float>(rng_() % 16) * 0.3f, type);
    }
    model += piece("z", -1, 1);
    const int adds_prefix = static_cast<int>(rng_() % 2), removes = static_cast<int>(rng_() % 2);
    return model + message(3, number(3, adds_prefix) + number(4, removes));
  }

  void expect_equal(const std::string& model, const std::vector<std::string>& texts) {
    sentencepiece::SentencePieceProcessor processor;
    ASSERT_TRUE(processor.LoadFromSerializedProto(model).ok());
    const auto data = unigram_from_sentencepiece(model);
    ASSERT_TRUE(data.has_value());
    const Unigram unigram(*data);
    for (const std::string& text : texts) {
      std::vector<int> expected;
      ASSERT_TRUE(processor.Encode(text, &expected).ok());
      ASSERT_EQ(encode(unigram, text), Ids(expected.begin(), expected.end())) << text;
    }
  }

  std::mt19937_64 rng_{7};
};

TEST_F(AgainstLibrary, RandomModelsCutAsTheLibraryDoes) {
  const std::vector<std::string> parts = {"a", "b", "c", "\u00E9", " ", "ab", "z", "\u2581", "x"};
  for (int i = 0; i < 300; ++i) {
    std::vector<std::string> texts;
    for (int j = 0; j < 20; ++j) texts.push_back(random_text(parts, 60));
    expect_equal(random_model(), texts);
    if (HasFatalFailure()) FAIL() << "model " << i;
  }
}

// Long enough for sums whose last bit is worth more than scores differ.
TEST_F(AgainstLibrary, LongTextsAreCutAsTheLibraryDoes) {
  const std::string model = read_text(KVQUANT_SOURCE_DIR "/tests/golden/tokenizers/unigram.model");
  std::vector<std::string> parts = {"  ", "\n", "\u6F22", "q", "the ", "ing "};
  for (const std::string& token : tokenizer_from_model_file(model, "", "").tokens) {
    if (token.size() < 8 && token.find('<') == std::string::npos) parts.push_back(token);
  }
  std::string text;
  while (text.size() < 300'000) text += random_text(parts, 100);
  expect_equal(model, {text, text.substr(0, 1), "", " "});
}

}  // namespace
}  // namespace kvquant
