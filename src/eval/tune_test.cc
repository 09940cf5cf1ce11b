#include "eval/tune.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "base/file.h"
#include "base/test_path.h"
#include "eval/perplexity.h"
#include "kvquant/error.h"
#include "model/calibrate.h"
#include "quant/compact_calibration.h"

namespace kvquant {
namespace {

CandidateScore candidate(const char* spec, double bits, double delta, double kl) {
  CandidateScore out;
  out.spec = parse_spec(spec);
  out.true_bits = bits;
  out.ppl_delta = delta;
  out.kl_mean = kl;
  return out;
}

TEST(SmallestWithin, IsTheSmallestThatKeepsTheBudget) {
  std::vector<CandidateScore> all = {candidate("int8", 8, 0.001, 0.001),
                                     candidate("nuq4", 4.1, 0.01, 0.015),
                                     candidate("nuq3", 3.1, 0.06, 0.08),
                                     candidate("nuq2", 2.1, 0.4, 0.3), candidate("fp16", 16, 0, 0)};
  EXPECT_EQ(smallest_within(all, 0.05), 1u);
  EXPECT_EQ(smallest_within(all, 0.01), 1u);  // as much as the budget is within it
  EXPECT_EQ(smallest_within(all, 0.009), 0u);
  EXPECT_EQ(smallest_within(all, 1), 3u);
  EXPECT_EQ(smallest_within(all, 0.0005), std::nullopt);  // fp16 compresses nothing
  all[1].is_dropped = true;
  EXPECT_EQ(smallest_within(all, 0.05), 0u);
  all.push_back(candidate("k=int8", 8, 0.001, 0.0005));  // as small, and better
  EXPECT_EQ(smallest_within(all, 0.05), 5u);
  EXPECT_EQ(smallest_within({}, 1), std::nullopt);
}

TEST(SmallestWithin, IsNotFooledByPerplexityThatFalls) {
  const CandidateScore foreign = candidate("nuq2", 2, -0.6, 0.4);
  EXPECT_NEAR(loss_of(foreign), std::expm1(0.4) / 2, 1e-12);
  EXPECT_EQ(loss_of(candidate("nuq4", 4, 0.03, 0.03)), 0.03);
  EXPECT_EQ(smallest_within({&foreign, 1}, 0.2), std::nullopt);
  EXPECT_EQ(smallest_within({&foreign, 1}, 0.25), 0u);
}

TEST(ParetoSet, HasNoneThatAnotherBeatsInBoth) {
  std::vector<CandidateScore> all = {
      candidate("int8", 8, 0, 0.001),  candidate("nuq4", 4.1, 0, 0.02),
      candidate("int4", 4.2, 0, 0.05),  // larger and worse than nuq4
      candidate("nuq3", 3.1, 0, 0.08), candidate("nuq2", 2.1, 0, 0.3),
      candidate("fp16", 16, 0, 0),     candidate("v=int8", 12, 0, 0.002)};
  EXPECT_EQ(pareto_set(all), (std::vector<size_t>{4, 3, 1, 0}));
  all[3].is_dropped = true;
  EXPECT_EQ(pareto_set(all), (std::vector<size_t>{4, 1, 0}));
}

TEST(CombineWindows, GivesTheMeanAndTheErrorOfAllTokens) {
  // Deltas 1, 3 and 2, 2, 8: mean 3.2, sum of squares 82 - 5 * 3.2^2 = 30.8.
  const WindowScore a{.tokens = 2,
                      .nll = 4,
                      .baseline_nll = 2,
                      .delta = 2,
                      .delta_sd = std::sqrt(2.0),
                      .kl = 0.1,
                      .top1 = 0.5,
                      .cache_bytes = 10,
                      .true_bits = 4};
  const WindowScore b{.tokens = 3,
                      .nll = 9,
                      .baseline_nll = 5,
                      .delta = 4,
                      .delta_sd = std::sqrt(12.0),
                      .kl = 0.2,
                      .top1 = 1,
                      .cache_bytes = 12,
                      .true_bits = 4.5};
  const WindowScore both[] = {a, b};
  const CandidateScore out = combine_windows(parse_spec("nuq4"), both);
  EXPECT_EQ(out.tokens, 5);
  EXPECT_EQ(out.windows, 2);
  EXPECT_NEAR(out.perplexity, std::exp(7.0), 1e-9);
  EXPECT_NEAR(out.baseline, std::exp(3.8), 1e-9);
  EXPECT_NEAR(out.ppl_delta, std::expm1(3.2), 1e-9);
  const double error = std::sqrt(30.8 / 4 / 5);
  EXPECT_NEAR(out.ppl_delta_low, std::expm1(3.2 - 1.96 * error), 1e-9);
  EXPECT_NEAR(out.ppl_delta_high, std::expm1(3.2 + 1.96 * error), 1e-9);
  EXPECT_NEAR(out.kl_mean, 0.16, 1e-12);
  EXPECT_NEAR(out.top1_agreement, 0.8, 1e-12);
  EXPECT_EQ(out.cache_bytes, 12);
  EXPECT_EQ(out.true_bits, 4.5);
}

class Tune : public testing::Test {
 protected:
  Tune()
      : model_(Model::load(KVQUANT_SOURCE_DIR "/assets/ref5m")),
        text_(model_.tokenizer().encode(read_text(KVQUANT_SOURCE_DIR "/assets/sample.txt"),
                                        Tokenizer::Special::kAsText, Tokenizer::Bos::kNever)) {
    const auto& data = model_.tokenizer().data();
    size_ = options_.window - (data.add_bos && data.bos >= 0 ? 1 : 0);
  }
  std::span<const int32_t> windows(int64_t first, int64_t count) const {
    return std::span(text_).subspan(static_cast<size_t>(first * size_),
                                    static_cast<size_t>(count * size_));
  }
  static std::vector<CacheSpec> specs(std::initializer_list<const char*> texts) {
    std::vector<CacheSpec> out;
    for (const char* text : texts) out.push_back(parse_spec(text));
    return out;
  }

  Model model_;
  std::vector<int32_t> text_;
  TuneOptions options_{.target_ppl_delta = 0.05, .window = 128, .ubatch = 64, .specs_at_once = 2};
  int64_t size_;
};

TEST_F(Tune, ScoresAreThoseOfThePerplexityOfTheWholeText) {
  TuneLog log;
  const auto all = specs({"int8", "nuq4-1%", "fp16"});
  options_.target_ppl_delta = 1e9;
  const auto scores = score_candidates(engine_runtime(model_), windows(0, 3), all, options_, log);
  const auto whole = evaluate_perplexity(model_, windows(0, 3), all, {.window = 128, .ubatch = 64});
  for (size_t i = 0; i < all.size(); ++i) {
    EXPECT_EQ(scores[i].tokens, whole[i].tokens);
    EXPECT_NEAR(scores[i].perplexity, whole[i].perplexity, 1e-9 * whole[i].perplexity);
    EXPECT_NEAR(scores[i].ppl_delta, whole[i].ppl_delta_rel, 1e-12);
    EXPECT_NEAR(scores[i].kl_mean, whole[i].kl_mean, 1e-12);
    EXPECT_EQ(scores[i].true_bits, whole[i].true_bits);
    const double error = whole[i].nll_delta_sd / std::sqrt(static_cast<double>(whole[i].tokens));
    EXPECT_NEAR(scores[i].ppl_delta_high, std::expm1(whole[i].nll_delta_mean + 1.96 * error), 1e-9);
  }
  EXPECT_EQ(scores[2].ppl_delta, 0);
  EXPECT_EQ(scores[2].ppl_delta_high, 0);
}

TEST_F(Tune, DropsWhatIsClearlyAboveTheBudgetAndNothingElse) {
  TuneLog log;
  options_.target_ppl_delta = 0.02;
  const auto scores = score_candidates(engine_runtime(model_), windows(0, 3),
                                       specs({"int8", "nuq2", "nuq4-1%"}), options_, log);
  EXPECT_FALSE(scores[0].is_dropped);
  EXPECT_EQ(scores[0].windows, 3);
  EXPECT_TRUE(scores[1].is_dropped);
  EXPECT_LT(scores[1].windows, 3);
  EXPECT_GT(loss_of(scores[1]), 0.08);  // its perplexity falls on this text
  EXPECT_LT(scores[1].ppl_delta, 0);
  EXPECT_FALSE(scores[2].is_dropped);
}

TEST_F(Tune, GoesOnWhereItWasStopped) {
  const std::string path = test::test_path("log");
  std::filesystem::remove(path);
  const auto all = specs({"int8", "nuq4", "nuq3", "nuq4-1%"});
  TuneLog in_memory;
  const TuneResult expected =
      tune(engine_runtime(model_), {windows(0, 2), windows(4, 2)}, all, options_, in_memory);
  struct Stopped {};
  int64_t calls = 0;
  try {
    TuneLog log(path);
    tune(engine_runtime(model_), {windows(0, 2), windows(4, 2)}, all, options_, log,
         {[&](int64_t, int64_t) {
           if (++calls == 9) throw Stopped{};  // in the second pair of specs
         }});
    FAIL();
  } catch (const Stopped&) {
  }
  const std::string half = read_text(path);
  EXPECT_EQ(std::count(half.begin(), half.end(), '\n'), 2);
  write_file_atomic(path, half + "{\"run\":\"unfini");  // killed while writing
  TuneLog log(path);
  EXPECT_EQ(log.num_read(), 2);
  const TuneResult result =
      tune(engine_runtime(model_), {windows(0, 2), windows(4, 2)}, all, options_, log);
  const std::string whole = read_text(path);
  EXPECT_EQ(whole.substr(0, half.size()), half);
  ASSERT_EQ(result.measured.size(), expected.measured.size());
  EXPECT_EQ(result.winner, expected.winner);
  for (size_t i = 0; i < result.measured.size(); ++i) {
    EXPECT_EQ(result.measured[i].perplexity, expected.measured[i].perplexity);
  }
  // Nothing is run a third time; another text is.
  TuneLog again(path);
  tune(engine_runtime(model_), {windows(0, 2), windows(4, 2)}, all, options_, again);
  EXPECT_EQ(read_text(path), whole);
  tune(engine_runtime(model_), {windows(1, 2), windows(4, 2)}, all, options_, again);
  EXPECT_GT(read_text(path).size(), whole.size());
  std::filesystem::remove(path);
}

TEST_F(Tune, MeasuresTheParetoSetAndChoosesTheSmallestOfIt) {
  TuneLog log;
  options_.target_ppl_delta = 0.2;
  const TuneResult result = tune(engine_runtime(model_), {windows(0, 2), windows(4, 2)},
                                 specs({"int8", "v=int8", "nuq4-1%", "nuq2"}), options_, log);
  ASSERT_TRUE(result.winner);
  const CandidateScore& winner = result.measured[*result.winner];
  EXPECT_LE(loss_of(winner), 0.2);
  for (const CandidateScore& c : result.candidates) {
    if (c.spec.text != winner.spec.text && c.true_bits < winner.true_bits) {
      EXPECT_TRUE(c.is_dropped || loss_of(c) > 0.2 || result.num_refused > 0);
    }
    EXPECT_TRUE(c.spec.text != "v=int8" || result.measured.back().spec.text != "v=int8");
  }
}

TEST_F(Tune, HasNoWinnerWhereNothingIsWithinTheBudget) {
  TuneLog log;
  options_.target_ppl_delta = 0.01;
  const TuneResult result = tune(engine_runtime(model_), {windows(0, 1), windows(4, 1)},
                                 specs({"nuq2", "fp16"}), options_, log);
  EXPECT_EQ(result.winner, std::nullopt);
  EXPECT_TRUE(result.measured.empty());
}

TEST_F(Tune, MeasuresWhatACompactCalibrationGivesToTheBit) {
  Calibration whole = calibrate(model_, std::vector<TokenizedText>{{"a", text_}},
                                {.num_samples = 1, .seq_len = 128});
  round_calibration(whole);
  const auto all = specs({"k=nuq3-1%,v=had+nuq4", "k=int8,v=pca48+int4", "v=pcaw48+int8"});
  model_.set_calibration(whole);
  const auto expected =
      evaluate_perplexity(model_, windows(2, 1), all, {.window = 128, .ubatch = 64});
  const std::string path = test::test_path("compact");
  for (size_t i = 0; i < all.size(); ++i) {
    save_calibration(compact_calibration(whole, all[i]), path);
    model_.set_calibration(load_calibration(path));
    const auto result = evaluate_perplexity(model_, windows(2, 1), std::span(all).subspan(i, 1),
                                            {.window = 128, .ubatch = 64});
    EXPECT_EQ(result[0].perplexity, expected[i].perplexity) << all[i].text;
    EXPECT_EQ(result[0].kl_max, expected[i].kl_max) << all[i].text;
    EXPECT_EQ(result[0].cache_bytes, expected[i].cache_bytes) << all[i].text;
  }
  std::filesystem::remove(path);
}

TEST_F(Tune, AnotherRuntimeIsAskedWindowByWindow) {
  // int8 loses nothing, nuq2 a lot, and everything beside them half of the budget.
  int64_t calls = 0;
  const auto score = [&](std::span<const int32_t> text, std::span<const CacheSpec> which,
                         const TuneOptions&, const Progress&) {
    EXPECT_EQ(text.size(), 126u);
    ++calls;
    std::vector<WindowScore> out;
    for (const CacheSpec& spec : which) {
      const double loss = spec.text == "int8" ? 0 : spec.text == "nuq2" ? 1 : 0.02;
      const double bits = spec.text == "int8" ? 8 : spec.text == "nuq2" ? 2 : 4;
      out.push_back({.tokens = 125,
                     .nll = 2 + loss,
                     .baseline_nll = 2,
                     .delta = loss,
                     .kl = loss,
                     .top1 = 1,
                     .cache_bytes = 100,
                     .true_bits = bits});
    }
    return out;
  };
  const TuneRuntime other{.fingerprint = "f", .num_bos = 2, .score_window = score};
  TuneLog log;
  options_.specs_at_once = 8;
  const TuneResult result = tune(other, {std::span(text_).first(252), std::span(text_).last(126)},
                                 specs({"int8", "nuq4", "nuq2"}), options_, log);
  EXPECT_EQ(calls, 3);
  EXPECT_TRUE(result.candidates[2].is_dropped);
  EXPECT_EQ(result.candidates[2].windows, 1);
  ASSERT_TRUE(result.winner);
  EXPECT_EQ(result.measured[*result.winner].spec.text, "nuq4");
  EXPECT_NEAR(result.measured[*result.winner].ppl_delta, std::expm1(0.02), 1e-12);

  TuneRuntime forgetful = other;
  forgetful.score_window = [](auto, auto, const auto&, const auto&) {
    return std::vector<WindowScore>{};
  };
  TuneLog empty;
  EXPECT_THROW(
      score_candidates(forgetful, std::span(text_).first(126), specs({"int8"}), options_, empty),
      std::invalid_argument);
}

TEST_F(Tune, RefusesBadOptions) {
  TuneLog log;
  for (const double budget : {-0.1, std::nan("")}) {
    options_.target_ppl_delta = budget;
    EXPECT_THROW(tune(engine_runtime(model_), {windows(0, 1), windows(4, 1)}, specs({"int8"}),
                      options_, log),
                 std::invalid_argument);
  }
  options_.target_ppl_delta = 0.1;
  EXPECT_THROW(score_candidates(engine_runtime(model_), std::span(text_).first(100),
                                specs({"int8"}), options_, log),
               std::invalid_argument);
}

TEST(TuneLog, RefusesLinesOfAnotherKindByNumber) {
  const std::string path = test::test_path("bad");
  for (const char* line : {"{}", "{\"run\":1}", "x", "[]",
                           R"({"run":"a","spec":"b","window":0,"tokens":0,"nll":1,"baseline_nll":1,
"delta":0,"delta_sd":0,"kl":0,"top1":0,"cache_bytes":1,"true_bits":1})"}) {
    write_file_atomic(path, std::string(line) + "\n");
    try {
      TuneLog log(path);
      FAIL() << line;
    } catch (const FormatError& error) {
      EXPECT_NE(std::string(error.what()).find(path + ":1"), std::string::npos) << error.what();
    }
  }
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace kvquant
