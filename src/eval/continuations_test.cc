#include "eval/continuations.h"

#include <gtest/gtest.h>

#include <cmath>
#include <stdexcept>
#include <string>

#include "model/session.h"

namespace kvquant {
namespace {

constexpr const char* kEmbedded = KVQUANT_SOURCE_DIR "/assets/ref5m";

class Continuations : public testing::Test {
 protected:
  std::vector<int32_t> tokens(const std::string& text, Tokenizer::Bos bos) {
    return model_.tokenizer().encode(text, Tokenizer::Special::kAsText, bos);
  }
  void add(const std::string& context, const std::string& continuation) {
    contexts_.push_back(tokens(context, Tokenizer::Bos::kAsConfigured));
    tokens_.push_back(tokens(continuation, Tokenizer::Bos::kNever));
  }
  std::vector<ChoiceLikelihood> score(const std::string& spec, int64_t ubatch = 512) {
    std::vector<Continuation> requests;
    for (size_t i = 0; i < contexts_.size(); ++i) requests.push_back({contexts_[i], tokens_[i]});
    return score_continuations(
        model_, requests, {.spec = parse_spec(spec), .mode = CacheMode::kStrict, .ubatch = ubatch});
  }

  Model model_ = Model::load(kEmbedded, {.precision = Precision::kF32});
  std::vector<std::vector<int32_t>> contexts_, tokens_;
};

TEST_F(Continuations, AreScoredAsASessionScoresTheWholeText) {
  add("Once upon a time there was a little girl", " named Lily who went to the park.");
  add("", " The dog ran home.");  // behind BOS alone
  add("Once upon a time there was a little girl", " stone stone.");
  add("Once upon a time", " there was");
  for (const int64_t ubatch : {512, 3}) {
    const auto out = score("fp16", ubatch);
    ASSERT_EQ(out.size(), 4u);
    for (size_t i = 0; i < out.size(); ++i) {
      std::vector<int32_t> all = contexts_[i];
      all.insert(all.end(), tokens_[i].begin(), tokens_[i].end());
      Session session(model_, {.spec = parse_spec("fp16"), .mode = CacheMode::kStrict});
      const auto scores = session.score(all);
      double expected = 0;
      for (size_t t = contexts_[i].size() - 1; t < scores.size(); ++t) expected += scores[t];
      EXPECT_NEAR(out[i].log_likelihood, expected, 5e-3) << i << " " << ubatch;
      EXPECT_EQ(out[i].compressed_tokens, 0) << i;
    }
  }
}

TEST_F(Continuations, AreThoseOfTheProgramsOwnTasks) {
  EvalSample sample{.task = "t", .metric = EvalMetric::kLastWord};
  for (const char* choice : {" park.", " big red ball and went home.", " tree", " the"}) {
    add("The dog ran to the park and saw", "");  // below: in another company, the same bits
    tokens_.back() = tokens(choice, Tokenizer::Bos::kNever);
    add("The dog ran to the", choice);
  }
  sample.context = contexts_[0];
  sample.context.pop_back();
  EvalQuestion question{.tokens = {contexts_[0].back()}};
  for (size_t i = 0; i < tokens_.size(); i += 2) question.choices.push_back({tokens_[i]});
  for (int64_t right = 0; right < 4; ++right) {
    question.right_choice = right;
    sample.questions.push_back(question);
  }
  for (const char* spec : {"fp16", "nuq3-1%"}) {
    const auto out = score(spec);
    EXPECT_EQ(out[0].compressed_tokens > 0, std::string(spec) != "fp16");
    run_samples(model_, {&sample, 1}, {{0}}, {.spec = parse_spec(spec), .mode = CacheMode::kStrict},
                [&](size_t, const SampleResult& result) {
                  for (size_t i = 0; i < 4; ++i) {
                    EXPECT_EQ(out[2 * i].log_likelihood, -result.extra.at("nll")[i]) << spec;
                    EXPECT_EQ(out[2 * i].is_greedy, result.scores[i] == 1) << spec;
                  }
                });
  }
}

TEST_F(Continuations, AreGreedyWhenTheModelWouldSaySo) {
  add("Once upon a time", " there");
  Session session(model_, {.spec = parse_spec("fp16"), .mode = CacheMode::kStrict});
  tokens_[0] = generate(session, contexts_[0], {.max_tokens = 5}).tokens;
  contexts_.push_back(contexts_[0]);
  tokens_.push_back(tokens_[0]);
  tokens_[1].back() = tokens_[1].back() == 7 ? 8 : 7;
  const auto out = score("fp16");
  EXPECT_TRUE(out[0].is_greedy);
  EXPECT_FALSE(out[1].is_greedy);
}

TEST_F(Continuations, RefuseWhatCannotBeScored) {
  EXPECT_TRUE(score("fp16").empty());
  add("Once", " upon");
  EXPECT_THROW(score("pca96"), std::invalid_argument);
  EXPECT_THROW(score("fp16", 0), std::invalid_argument);
  tokens_[0] = {static_cast<int32_t>(model_.config().vocab_size)};
  EXPECT_THROW(score("fp16"), std::invalid_argument);
  tokens_[0].assign(static_cast<size_t>(model_.config().max_context), 5);
  EXPECT_THROW(score("fp16"), std::invalid_argument);
  tokens_[0].clear();
  EXPECT_THROW(score("fp16"), std::invalid_argument);
}

}  // namespace
}  // namespace kvquant
