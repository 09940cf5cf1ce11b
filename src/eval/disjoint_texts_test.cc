#include "eval/disjoint_texts.h"

#include <gtest/gtest.h>

#include <numeric>

#include "base/rng.h"
#include "model/calibration_source.h"

namespace kvquant {
namespace {

std::vector<int32_t> counting(int32_t first, size_t count) {
  std::vector<int32_t> out(count);
  std::iota(out.begin(), out.end(), first);
  return out;
}

using Ranges = std::vector<TextRange>;

TEST(DisjointTexts, SkipWhatIsUsed) {
  const Ranges used = {{15, 16}, {30, 41}};
  EXPECT_EQ(pick_windows(65, 10, 9, used, PickWindows::kFirst),
            (Ranges{{0, 10}, {20, 30}, {50, 60}}));
  EXPECT_EQ(pick_windows(65, 10, 2, used, PickWindows::kFirst), (Ranges{{0, 10}, {20, 30}}));
  EXPECT_EQ(pick_windows(65, 10, 9, used, PickWindows::kSpread).size(), 3u);
  EXPECT_TRUE(pick_windows(9, 10, 1, {}, PickWindows::kFirst).empty());
}

TEST(DisjointTexts, SpreadOverTheText) {
  EXPECT_EQ(pick_windows(100, 10, 2, {}, PickWindows::kSpread), (Ranges{{0, 10}, {50, 60}}));
}

TEST(DisjointTexts, SamplesOfACalibrationAreFoundByTheirTokens) {
  const auto text = counting(0, 100);
  CalibrationInfo info;
  const auto add = [&](int64_t begin, int64_t end, const std::string& hash) {
    info.texts.push_back({.file = "f", .begin = begin, .end = end, .hash = hash});
  };
  add(10, 20, hash_of_tokens(counting(10, 10)));
  add(30, 40, hash_of_tokens(counting(31, 10)));  // of another text
  add(95, 105, "");
  add(-1, 5, "");
  EXPECT_EQ(calibrated_ranges(info, text), (Ranges{{10, 20}}));
}

TEST(DisjointTexts, ACommonRunIsFoundWhereverItLies) {
  const auto a = counting(1000, 200);
  auto b = counting(0, 500);
  EXPECT_FALSE(have_common_run(a, b));
  std::copy_n(a.begin() + 64, 64, b.begin() + 123);
  EXPECT_TRUE(have_common_run(a, b));
  EXPECT_FALSE(have_common_run(a, counting(0, 63)));
}

class ChoiceTextsOfRef5m : public testing::Test {
 protected:
  ChoiceTextsOfRef5m() : model_(Model::load(KVQUANT_SOURCE_DIR "/assets/ref5m")) {}
  Model model_;
};

TEST_F(ChoiceTextsOfRef5m, OneTextGivesBothApart) {
  const TokenizedText text{"text", counting(0, 1100)};
  const auto texts = choose_texts(
      model_, text, nullptr, {.window = 101, .num_selection_windows = 2, .num_test_windows = 3});
  ASSERT_EQ(texts.selection.size(), 2u);
  EXPECT_EQ(texts.selection[0].size(), 101u);  // <|endoftext|> first
  EXPECT_EQ(texts.selection[0][1], 0);
  EXPECT_EQ(texts.selection[1][1], 500);
  ASSERT_EQ(texts.test.size(), 300u);
  EXPECT_EQ(texts.test[0], 100);
  EXPECT_EQ(texts.test[299], 399);
}

TEST_F(ChoiceTextsOfRef5m, AShortOrRepeatedTextIsRefused) {
  const TokenizedText text{"text", counting(0, 250)};
  EXPECT_THROW(choose_texts(model_, text, nullptr, {.window = 101}), std::invalid_argument);
  EXPECT_THROW(choose_texts(model_, text, &text, {.window = 101}), std::invalid_argument);
  const TokenizedText other{"other", counting(900, 250)};
  EXPECT_EQ(choose_texts(model_, text, &other, {.window = 101}).test[0], 900);
}

constexpr SplitOptions kSplit{
    .window_tokens = 50, .selection_windows = 2, .test_windows = 3, .calibration_tokens = 60};

// Tokens that no two texts of other seeds share runs of.
TokenizedText text(const std::string& file, int64_t length, uint64_t seed) {
  const CounterRng random(seed);
  TokenizedText out{file, {}};
  for (int64_t i = 0; i < length; ++i) {
    out.tokens.push_back(static_cast<int32_t>(random.below(static_cast<uint64_t>(i), 1000)));
  }
  return out;
}

std::vector<int32_t> part(const TokenizedText& text, int64_t begin, int64_t size) {
  return {text.tokens.begin() + begin, text.tokens.begin() + begin + size};
}

std::string refusal(std::vector<TokenizedText> texts, const TokenizedText* test = nullptr,
                    const CalibrationInfo* made = nullptr) {
  try {
    split_texts(texts, test, made, kSplit);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "accepted";
}

void expect_in(const std::string& what, const std::string& message) {
  EXPECT_NE(message.find(what), std::string::npos) << message;
}

CalibrationInfo info_of(const TokenizedText& text, int64_t begin, int64_t size) {
  CalibrationInfo info;
  info.texts.push_back(
      {"x", begin, begin + size,
       hash_of_tokens(
           std::span(text.tokens).subspan(static_cast<size_t>(begin), static_cast<size_t>(size)))});
  return info;
}

TEST(SplitTexts, CutsOneTextIntoThree) {
  const std::vector<TokenizedText> texts = {text("a", 420, 1)};  // 8 windows, and 20 tokens
  const TuneTexts out = split_texts(texts, nullptr, nullptr, kSplit);
  EXPECT_EQ(out.test, part(texts[0], 250, 150));
  EXPECT_EQ(out.test_begin, 250);
  EXPECT_EQ(out.test_file, "a");
  EXPECT_EQ(out.selection, part(texts[0], 150, 100));
  ASSERT_EQ(out.calibration.size(), 1u);
  EXPECT_EQ(out.calibration[0].tokens, part(texts[0], 0, 150));
}

TEST(SplitTexts, TakesWindowsOfSeveralTextsAndATestOfItsOwn) {
  const std::vector<TokenizedText> texts = {text("a", 170, 1), text("b", 60, 2)};
  const TokenizedText test = text("c", 155, 3);
  const TuneTexts out = split_texts(texts, &test, nullptr, kSplit);
  EXPECT_EQ(out.test, part(test, 0, 150));
  EXPECT_EQ(out.test_begin, 0);
  std::vector<int32_t> selection = part(texts[0], 100, 50);
  const auto more = part(texts[1], 0, 50);
  selection.insert(selection.end(), more.begin(), more.end());
  EXPECT_EQ(out.selection, selection);
  ASSERT_EQ(out.calibration.size(), 1u);
  EXPECT_EQ(out.calibration[0].tokens, part(texts[0], 0, 100));
}

TEST(SplitTexts, LeavesOutWhatACalibrationWasMadeFrom) {
  const std::vector<TokenizedText> texts = {text("a", 420, 1)};
  const CalibrationInfo made = info_of(texts[0], 260, 60);  // of windows 5 and 6
  const TuneTexts out = split_texts(texts, nullptr, &made, kSplit);
  EXPECT_TRUE(out.calibration.empty());
  std::vector<int32_t> test = part(texts[0], 150, 100);
  const auto last = part(texts[0], 350, 50);
  test.insert(test.end(), last.begin(), last.end());
  EXPECT_EQ(out.test, test);
  EXPECT_EQ(out.selection, part(texts[0], 50, 100));
  const CalibrationInfo elsewhere = info_of(text("z", 420, 9), 260, 60);
  EXPECT_EQ(split_texts(texts, nullptr, &elsewhere, kSplit).test_begin, 250);
}

TEST(SplitTexts, SaysWhenATextIsTooShortToBeDisjoint) {
  const std::string message = refusal({text("a", 249, 1)});
  expect_in("too short to be disjoint: it has 4 whole windows of 50 tokens; 2 for selection and 3",
            message);
  expect_in("calibration sample of 60 tokens", refusal({text("a", 300, 1)}));
  EXPECT_EQ(refusal({text("a", 350, 1)}), "accepted");
  expect_in("the last text, b, which is too short",
            refusal({text("a", 400, 1), text("b", 140, 2)}));
  const TokenizedText test = text("c", 149, 3);
  expect_in("test text c has 149 tokens, 3 windows of 50 need 150",
            refusal({text("a", 400, 1)}, &test));
  const CalibrationInfo made = info_of(text("a", 400, 1), 40, 300);
  expect_in("that the calibration was not made from", refusal({text("a", 400, 1)}, nullptr, &made));
}

TEST(SplitTexts, RefusesTextsThatShareTokensWherever) {
  const TokenizedText a = text("a", 400, 1);
  // The test is a part of what is calibrated on, shifted.
  TokenizedText test = text("c", 0, 3);
  test.tokens = part(a, 17, 150);
  expect_in("of the test text is in the calibration text", refusal({a}, &test));
  test.tokens = part(a, 310, 90);
  const auto rest = text("d", 60, 4).tokens;
  test.tokens.insert(test.tokens.end(), rest.begin(), rest.end());
  expect_in("of the selection text is in the test text", refusal({a}, &test));
  const TokenizedText other = text("c", 150, 3);
  const CalibrationInfo made = info_of(other, 100, 50);
  expect_in("calibration was made from a part of the test text c", refusal({a}, &other, &made));
}

TEST(SplitTexts, RefusesTextThatRepeatsItself) {
  TokenizedText twice{"a", {}};
  const auto sentence = text("s", 70, 5).tokens;
  for (int i = 0; i < 8; ++i) {
    twice.tokens.insert(twice.tokens.end(), sentence.begin(), sentence.end());
  }
  expect_in("more than once", refusal({twice}));
  const TokenizedText constant{"a", std::vector<int32_t>(600, 7)};
  expect_in("more than once", refusal({constant}));
}

TEST(WasMadeFrom, KnowsTheSamplesOfACalibration) {
  const std::vector<TokenizedText> texts = {text("a", 400, 1)};
  CalibrateOptions options{.num_samples = 2, .seq_len = 51, .seed = 3};
  CalibrationInfo info;
  info.seq_len = 51;
  info.seed = 3;
  info.recipe = to_string(options.choices);
  const int64_t lengths[] = {400};
  for (const TextWindow& w : choose_windows(lengths, 50, 2, 3)) {
    info.texts.push_back(info_of(texts[0], w.begin, 50).texts[0]);
  }
  EXPECT_TRUE(was_made_from(info, texts, options, 1));
  EXPECT_FALSE(was_made_from(info, texts, options, 0));
  EXPECT_FALSE(was_made_from(info, std::vector{text("b", 400, 2)}, options, 1));
  options.num_samples = 3;
  EXPECT_FALSE(was_made_from(info, texts, options, 1));
}

}  // namespace
}  // namespace kvquant
