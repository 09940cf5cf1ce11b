#include "eval/tune_candidates.h"

#include <gtest/gtest.h>

namespace kvquant {
namespace {

std::vector<std::string> texts(const CandidateOptions& options, int64_t head_dim = 64) {
  std::vector<std::string> out;
  for (const CacheSpec& spec : tune_candidates(options, 4, head_dim)) out.push_back(spec.text);
  return out;
}

TEST(TuneCandidates, DefaultRanksAreThePublishedGrid) {
  EXPECT_EQ(default_rank_grid(128), (std::vector<int64_t>{128, 116, 107, 96, 85, 80, 64}));
  EXPECT_EQ(default_rank_grid(64), (std::vector<int64_t>{64, 58, 53, 48, 43, 40, 32}));
  EXPECT_EQ(default_rank_grid(1), (std::vector<int64_t>{1}));
  EXPECT_EQ(texts({}).size(), 21u);
}

TEST(TuneCandidates, AreRanksTimesBitsAndWhatElseIsNamed) {
  EXPECT_EQ(
      texts({.ranks = {48, 32}, .bits = {16, 4}, .codecs = {"had+nuq4"}, .specs = {"nuq3-1%"}}),
      (std::vector<std::string>{"v=pca48", "v=pca48+int4", "v=pca32", "v=pca32+int4", "v=had+nuq4",
                                "nuq3-1%"}));
  EXPECT_EQ(texts({.target = PresetTarget::kBoth,
                   .bits = {},
                   .codecs = {"int8", "nuq4-1%/had+nuq4"},
                   .sink = 4,
                   .recent = 0}),
            (std::vector<std::string>{"k=int8,v=int8,sink=4,recent=0",
                                      "k=nuq4-1%,v=had+nuq4,sink=4,recent=0"}));
  EXPECT_EQ(texts({.target = PresetTarget::kKeys, .bits = {}, .codecs = {"nuq4"}}),
            (std::vector<std::string>{"k=nuq4"}));
  EXPECT_EQ(texts({.target = PresetTarget::kKeys, .ranks = {48}, .bits = {16, 8}}),
            (std::vector<std::string>{"k=pca48", "k=pca48+int8"}));
  EXPECT_EQ(texts({.target = PresetTarget::kBoth, .ranks = {48}, .bits = {4}}),
            (std::vector<std::string>{"k=pca48+int4,v=pca48+int4"}));
  // The same twice is one.
  EXPECT_EQ(texts({.bits = {}, .codecs = {"int8", "int8"}, .specs = {"k=fp16,v=int8"}}).size(), 1u);
}

TEST(TuneCandidates, RefuseWhatTheModelOrTheGrammarHasNot) {
  const auto refused = [](const CandidateOptions& options) {
    EXPECT_THROW(texts(options), std::invalid_argument);
  };
  refused({.ranks = {0}});
  refused({.ranks = {65}});
  refused({.ranks = {32}, .bits = {3}});
  refused({.bits = {}});
  refused({.bits = {}, .codecs = {"nuq9"}});
  refused({.bits = {}, .codecs = {"nuq4/nuq4"}});  // the target is values
  refused({.target = PresetTarget::kKeys, .bits = {}, .codecs = {"had+nuq4"}});
}

}  // namespace
}  // namespace kvquant
