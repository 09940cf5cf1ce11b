#include "eval/choice_scoring.h"

#include <gtest/gtest.h>

#include <cmath>

#include "eval/perplexity.h"
#include "eval/sample_runner.h"

namespace kvquant {
namespace {

constexpr const char* kEmbedded = KVQUANT_SOURCE_DIR "/assets/ref5m";

EvalSample choices_after(const Model& model, const std::string& context,
                         const std::vector<std::string>& choices) {
  EvalSample out{.task = "t", .metric = EvalMetric::kChoice};
  out.context = model.tokenizer().encode(context);
  EvalQuestion question{{out.context.back()}};
  out.context.pop_back();
  for (const auto& choice : choices) {
    question.choices.push_back(
        {model.tokenizer().encode(choice, Tokenizer::Special::kAsText, Tokenizer::Bos::kNever),
         std::ssize(choice) - 1});
  }
  out.questions.push_back(question);
  return out;
}

// The likelihood that perplexity finds, written down in another way.
double text_nll(Model& model, const std::vector<int32_t>& tokens, const std::string& spec,
                int64_t ubatch) {
  const CacheSpec specs[] = {parse_spec(spec)};
  const auto window = static_cast<int64_t>(tokens.size());
  const auto result = evaluate_perplexity(model, std::span(tokens).subspan(1), specs,
                                          {.window = window, .ubatch = ubatch});
  return std::log(result[0].perplexity) * static_cast<double>(result[0].tokens);
}

TEST(ChoiceScoring, AgreesWithPerplexity) {
  Model model = Model::load(kEmbedded, {.precision = Precision::kF32});
  ASSERT_TRUE(model.tokenizer().data().add_bos);  // perplexity adds it, too
  const auto sample = choices_after(model, "Once upon a time there was a little girl",
                                    {" named Lily who went to the park.", " stone stone."});
  auto before = sample.context;
  before.push_back(sample.questions[0].tokens[0]);
  const auto runner = make_runner(model, {.spec = parse_spec("fp16"), .mode = CacheMode::kStrict});
  const auto context = runner->add_sequence();
  const ForwardChunk chunk{context, sample.context};
  runner->forward({&chunk, 1});
  for (const int64_t ubatch : {512, 3}) {
    const auto out = score_choices(model, *runner, context, sample.questions[0], ubatch);
    ASSERT_EQ(out.size(), 2u);
    for (size_t i = 0; i < 2; ++i) {
      auto all = before;
      const auto& choice = sample.questions[0].choices[i].tokens;
      all.insert(all.end(), choice.begin(), choice.end());
      const double expected =
          text_nll(model, before, "fp16", 512) - text_nll(model, all, "fp16", 512);
      EXPECT_NEAR(out[i].log_likelihood, expected, 5e-3) << i << " " << ubatch;
    }
  }
}

TEST(ChoiceScoring, TellsTheMostLikelyChoiceAndPerCharacter) {
  EvalSample sample{.task = "t", .metric = EvalMetric::kChoice};
  sample.questions.push_back({{1}, {"x"}, {{{1}, 2}, {{1, 2}, 10}, {{1}, 2}}, 1});
  SampleResult result{.answers = {""}, .scores = {0}};
  keep_choice_scores(sample, 0, {{-4, true}, {-5, true}, {-4, true}}, result);
  EXPECT_EQ(result.answers[0], "0");  // the first of equals
  EXPECT_EQ(result.scores[0], 0);
  EXPECT_EQ(result.extra.at("acc_norm"), std::vector<double>{1});  // -0.5 per character
  EXPECT_EQ(result.extra.at("nll"), std::vector<double>{5});
  sample.metric = EvalMetric::kLastWord;
  sample.questions[0] = {{1}, {"x"}, {{{1, 2}, 3}}, 0};
  SampleResult word{.answers = {""}, .scores = {0}};
  keep_choice_scores(sample, 0, {{-1, true}}, word);
  EXPECT_EQ(word.scores[0], 1);
  EXPECT_FALSE(word.extra.contains("acc_norm"));
}

TEST(ChoiceScoring, IsTheSameAtAnyBatchSizeAndStrict) {
  Model model = Model::load(kEmbedded, {.precision = Precision::kF32});
  std::vector<EvalSample> samples;
  for (const char* context : {"The dog ran to the", "The dog ran to the park and", "Lily sat"}) {
    samples.push_back(choices_after(model, context, {" park.", " big red ball.", " tree"}));
  }
  samples.push_back(
      {.task = "a", .context = {5, 6}, .questions = {{{7}, {"x"}}}, .max_new_tokens = 2});
  std::vector<SampleResult> expected;
  for (const int64_t batch_size : {1, 2, 9}) {
    const auto batches = make_batches(samples, batch_size);
    EXPECT_EQ(batches[0], std::vector<size_t>{3});  // kinds don't mix
    std::vector<SampleResult> results(samples.size());
    run_samples(model, samples, batches,
                {.spec = parse_spec("nuq3"), .mode = CacheMode::kStrict, .batch_size = batch_size},
                [&](size_t i, SampleResult result) { results[i] = std::move(result); });
    if (expected.empty()) expected = results;
    for (size_t i = 0; i < samples.size(); ++i) {
      EXPECT_EQ(results[i].extra, expected[i].extra) << i;
      EXPECT_EQ(results[i].answers, expected[i].answers) << i;
    }
  }
  EXPECT_GT(expected[0].compressed_tokens, 0);
}

}  // namespace
}  // namespace kvquant
