#include "eval/disjoint_windows.h"

#include <gtest/gtest.h>

#include <numeric>

#include "model/calibration_source.h"

namespace kvquant {
namespace {

std::vector<int32_t> counting(int32_t first, size_t count) {
  std::vector<int32_t> out(count);
  std::iota(out.begin(), out.end(), first);
  return out;
}

using Ranges = std::vector<TextRange>;

TEST(DisjointWindows, SkipWhatIsUsed) {
  const Ranges used = {{15, 16}, {30, 41}};
  EXPECT_EQ(pick_windows(65, 10, 9, used, PickWindows::kFirst),
            (Ranges{{0, 10}, {20, 30}, {50, 60}}));
  EXPECT_EQ(pick_windows(65, 10, 2, used, PickWindows::kFirst), (Ranges{{0, 10}, {20, 30}}));
  EXPECT_EQ(pick_windows(65, 10, 9, used, PickWindows::kSpread).size(), 3u);
  EXPECT_TRUE(pick_windows(9, 10, 1, {}, PickWindows::kFirst).empty());
}

TEST(DisjointWindows, SpreadOverTheText) {
  EXPECT_EQ(pick_windows(100, 10, 2, {}, PickWindows::kSpread), (Ranges{{0, 10}, {50, 60}}));
}

TEST(DisjointWindows, SamplesOfACalibrationAreFoundByTheirTokens) {
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

TEST(DisjointWindows, ACommonRunIsFoundWhereverItLies) {
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
  const NamedTokens text{"text", counting(0, 1100)};
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
  const NamedTokens text{"text", counting(0, 250)};
  EXPECT_THROW(choose_texts(model_, text, nullptr, {.window = 101}), std::invalid_argument);
  EXPECT_THROW(choose_texts(model_, text, &text, {.window = 101}), std::invalid_argument);
  const NamedTokens other{"other", counting(900, 250)};
  EXPECT_EQ(choose_texts(model_, text, &other, {.window = 101}).test[0], 900);
}

}  // namespace
}  // namespace kvquant
