#include "eval/prompt_parts.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>

#include "model/model.h"

namespace kvquant {
namespace {

const Tokenizer& embedded_tokenizer() {
  static const Model model = Model::load(KVQUANT_SOURCE_DIR "/assets/ref5m");
  return model.tokenizer();
}

TEST(SplitSentences, CutsBehindFullStopsAndAtBlankLines) {
  using Parts = std::vector<std::string>;
  EXPECT_EQ(split_sentences("One. Two!  Three?\nFour"),
            (Parts{"One.", " Two!", "  Three?", "\nFour"}));
  EXPECT_EQ(split_sentences("A title\n\n\"Go.\" He went..."),
            (Parts{"A title", "\n\n\"Go.\"", " He went..."}));
  EXPECT_EQ(split_sentences("Version 1.5 is out. "), (Parts{"Version 1.5 is out."}));
  EXPECT_EQ(split_sentences(" \n\n "), Parts{});
  EXPECT_EQ(split_sentences(""), Parts{});
}

RC_GTEST_PROP(SplitSentences, LosesNothing, ()) {
  const auto text =
      *rc::gen::container<std::string>(rc::gen::elementOf(std::string("ab.!? \n\"'1")));
  std::string joined;
  for (const auto& part : split_sentences(text)) joined += part;
  RC_ASSERT(text.substr(0, joined.size()) == joined);
  RC_ASSERT(text.find_first_not_of(" \n", joined.size()) == std::string::npos);
}

RC_GTEST_PROP(Fill, TakesWholeSentencesUpToTheLimit, ()) {
  const auto sizes =
      *rc::gen::nonEmpty(rc::gen::container<std::vector<int>>(rc::gen::inRange(1, 9)));
  Sentences sentences;
  int32_t next = 0;
  for (const int size : sizes) {
    sentences.emplace_back();
    for (int i = 0; i < size; ++i) sentences.back().push_back(next++);
  }
  const int64_t longest = *std::max_element(sizes.begin(), sizes.end());
  const auto first = *rc::gen::inRange<size_t>(0, sizes.size());
  const auto max_tokens = *rc::gen::inRange<int64_t>(0, 200);
  const Filler filler = fill(sentences, first, max_tokens);
  RC_ASSERT(std::ssize(filler.tokens) <= max_tokens);
  RC_ASSERT(std::ssize(filler.tokens) > max_tokens - longest);
  RC_ASSERT(filler.borders.front() == 0);
  RC_ASSERT(filler.borders.back() == std::ssize(filler.tokens));
  for (size_t i = 0; i + 1 < filler.borders.size(); ++i) {
    const auto& sentence = sentences[(first + i) % sentences.size()];
    RC_ASSERT(
        std::equal(sentence.begin(), sentence.end(), filler.tokens.begin() + filler.borders[i]));
  }
}

TEST(Fill, NeedsASentence) { EXPECT_THROW(fill({}, 0, 10), std::invalid_argument); }

TEST(NearestBorder, PrefersTheLowerOfTwo) {
  const Filler filler{{}, {0, 10, 20}};
  EXPECT_EQ(nearest_border(filler, 4), 0);
  EXPECT_EQ(nearest_border(filler, 5), 0);
  EXPECT_EQ(nearest_border(filler, 6), 10);
  EXPECT_EQ(nearest_border(filler, 99), 20);
}

TEST(NumOccurrences, CountsOverlappingOnes) {
  const std::vector<int32_t> tokens = {1, 1, 1, 2, 1, 1}, part = {1, 1}, none = {2, 2};
  EXPECT_EQ(num_occurrences(tokens, part), 3);
  EXPECT_EQ(num_occurrences(tokens, none), 0);
  EXPECT_EQ(num_occurrences({}, part), 0);
}

TEST(PromptFrame, IsWhatTheTemplatePrintsAroundTheMessage) {
  const Tokenizer& tokenizer = embedded_tokenizer();
  const PromptFrame plain = prompt_frame(tokenizer, {}, {});
  EXPECT_EQ(plain.before, tokenizer.encode(""));
  EXPECT_TRUE(plain.after.empty());
  const PromptFrame chat = prompt_frame(tokenizer, chat_format_named("chatml"), {});
  const std::string before = tokenizer.decode(chat.before, true);
  EXPECT_EQ(before.substr(before.size() - 17), "<|im_start|>user\n");
  EXPECT_NE(tokenizer.decode(chat.after, true).find("assistant"), std::string::npos);
}

}  // namespace
}  // namespace kvquant
