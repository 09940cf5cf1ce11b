#include "model/pre_tokenizer.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace kvquant {
namespace {

using Words = std::vector<std::string>;

Words split(PreTokenizer pre_tokenizer, std::string_view text) {
  Words words;
  WordSplitter(pre_tokenizer).split(text, [&](std::string_view word) { words.emplace_back(word); });
  return words;
}

TEST(WordSplitter, Gpt2TakesASpaceWithTheWordBehindIt) {
  const auto gpt2 = PreTokenizer::kGpt2;
  EXPECT_EQ(split(gpt2, "He's 1851 ok!!"), (Words{"He", "'s", " 1851", " ok", "!!"}));
  EXPECT_EQ(split(gpt2, "a   b \n"), (Words{"a", "  ", " b", " \n"}));
  EXPECT_EQ(split(gpt2, "I'LL"), (Words{"I", "'", "LL"}));
  EXPECT_EQ(split(gpt2, ""), Words{});
}

TEST(WordSplitter, Llama3TakesDigitsInThreesAndNewlinesTogether) {
  const auto llama3 = PreTokenizer::kLlama3;
  EXPECT_EQ(split(llama3, "I'LL go 12345"), (Words{"I", "'LL", " go", " ", "123", "45"}));
  EXPECT_EQ(split(llama3, "a.\n\n  b"), (Words{"a", ".\n\n", " ", " b"}));
  EXPECT_EQ(split(llama3, "(word  \n\n x"), (Words{"(word", "  \n\n", " x"}));
  EXPECT_EQ(split(PreTokenizer::kLlama3SingleDigits, "x 123"), (Words{"x", " ", "1", "2", "3"}));
}

TEST(WordSplitter, SmolLmCutsDigitsOutFirst) {
  const auto smollm = PreTokenizer::kSmolLm;
  EXPECT_EQ(split(smollm, "a1b 23"), (Words{"a", "1", "b", " ", "2", "3"}));
  // Spaces before a digit end a piece, so none of them goes with the digit or stays apart.
  EXPECT_EQ(split(smollm, "a  1"), (Words{"a", "  ", "1"}));
  EXPECT_EQ(split(smollm, "a  b"), (Words{"a", " ", " b"}));
  EXPECT_EQ(split(smollm, "\u2167 \u0663"), (Words{"\u2167", " ", "\u0663"}));  // any numeric
}

TEST(WordSplitter, FalconIsolatesPunctuationAndThreesOfDigits) {
  const auto falcon = PreTokenizer::kFalcon;
  EXPECT_EQ(split(falcon, "He's $12345 ok!!"),
            (Words{"He", "'", "s", " ", "$", "123", "45", " ok", "!!"}));
  EXPECT_EQ(split(falcon, " 12"), (Words{" ", "12"}));
  // Its digits are looked for behind the byte alphabet, where 0xB2 is a superscript two.
  EXPECT_EQ(split(falcon, "x\u00F2"), (Words{"x\xC3", "\xB2"}));
}

TEST(WordSplitter, GgufsDefaultDoesTheSameOnCharacters) {
  const auto gguf = PreTokenizer::kGgufDefault;
  EXPECT_EQ(split(gguf, "a 1234`x\u00F2"), (Words{"a", " ", "123", "4", "`", "x\u00F2"}));
  EXPECT_EQ(split(gguf, "(x)"), (Words{"(", "x", ")"}));
}

TEST(WordSplitter, TekkenCutsWordsByCase) {
  const auto tekken = PreTokenizer::kTekken;
  EXPECT_EQ(split(tekken, "CamelCase XMLHttp 12"),
            (Words{"Camel", "Case", " XMLHttp", " ", "1", "2"}));
  EXPECT_EQ(split(tekken, "a//\nb"), (Words{"a", "//\n", "b"}));
}

TEST(WordSplitter, WhitespaceIsThatOfUnicode) {
  const auto gpt2 = PreTokenizer::kGpt2;
  EXPECT_EQ(split(gpt2, "a\u0085\u3000b"), (Words{"a", "\u0085", "\u3000", "b"}));
  EXPECT_EQ(split(gpt2, "\u00A0\u00A0"), (Words{"\u00A0\u00A0"}));
  EXPECT_EQ(split(gpt2, "!\u180E!"), (Words{"!\u180E!"}));  // no longer White_Space
}

TEST(WordSplitter, MetaspaceDoesNotSplit) {
  EXPECT_EQ(split(PreTokenizer::kMetaspace, "a b\nc"), (Words{"a b\nc"}));
  EXPECT_EQ(split(PreTokenizer::kMetaspace, ""), Words{});
}

TEST(WordSplitter, LongRunsAreOneWordAndTakeLinearTime) {
  const std::string spaces(3'000'000, ' ');
  const std::string letters(3'000'000, 'a');
  for (const auto pre_tokenizer :
       {PreTokenizer::kGpt2, PreTokenizer::kLlama3, PreTokenizer::kSmolLm, PreTokenizer::kFalcon,
        PreTokenizer::kGgufDefault, PreTokenizer::kTekken}) {
    EXPECT_EQ(split(pre_tokenizer, spaces).size(), 1u);
    EXPECT_EQ(split(pre_tokenizer, letters).size(), 1u);
  }
}

}  // namespace
}  // namespace kvquant
