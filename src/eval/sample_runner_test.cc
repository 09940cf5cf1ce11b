#include "eval/sample_runner.h"

#include <gtest/gtest.h>

#include "eval/eval_tasks.h"
#include "model/session.h"

namespace kvquant {
namespace {

constexpr const char* kEmbedded = KVQUANT_SOURCE_DIR "/assets/ref5m";

Model load(int num_threads) {
  return Model::load(kEmbedded, {.num_threads = num_threads, .precision = Precision::kF32});
}

// Contexts of two lengths that begin alike, one of several questions, and different ones.
std::vector<EvalSample> some_samples(const Model& model) {
  EvalTaskOptions options{
      .max_context = 2048,
      .context_lengths = {200, 260},
      .num_samples = 2,
      .haystack = "The dog ran to the park. It was a sunny day. Lily sat down."};
  auto samples = make_eval_samples("passkey", model.tokenizer(), options);
  options.context_lengths = {260};
  options.num_trials = 1;
  const auto needles = make_eval_samples("needle", model.tokenizer(), options);
  samples.insert(samples.end(), needles.begin(), needles.end());
  for (size_t i = 0; i < 2; ++i) {  // all questions about one context
    samples[0].questions.push_back(samples[i + 1].questions[0]);
  }
  for (EvalSample& sample : samples) sample.max_new_tokens = 5;
  return samples;
}

std::vector<std::vector<std::string>> answers_of(Model& model,
                                                 const std::vector<EvalSample>& samples,
                                                 const SampleBatches& batches,
                                                 const SampleRunOptions& options) {
  std::vector<std::vector<std::string>> answers(samples.size());
  run_samples(model, samples, batches, options,
              [&](size_t i, SampleResult result) { answers[i] = std::move(result.answers); });
  return answers;
}

// What a session says: the same, written down in another way.
std::string session_answer(Model& model, const EvalSample& sample, size_t question,
                           const SampleRunOptions& options) {
  Session session(model, {.spec = options.spec, .mode = options.mode, .ubatch = options.ubatch});
  session.feed(sample.context);
  const Generation generation = generate(session, sample.questions[question].tokens,
                                         {.max_tokens = sample.max_new_tokens,
                                          .sampler = {.temperature = 0},
                                          .stop_tokens = model.checkpoint().eos_token_ids()});
  std::string text;
  for (size_t n = 1; n <= generation.tokens.size(); ++n) {
    text = model.tokenizer().decode(std::span(generation.tokens).first(n));
    const size_t word = text.find_first_not_of(" \t\r\n");
    if (word != std::string::npos && text.find('\n', word) != std::string::npos) break;
  }
  return text;
}

TEST(SampleRunner, AnswersAsASessionDoes) {
  Model model = load(2);
  const auto samples = some_samples(model);
  for (const char* spec : {"fp16", "nuq3-1%", "nuq2-1%,recent=0"}) {
    const SampleRunOptions options{.spec = parse_spec(spec), .ubatch = 64};
    const auto answers = answers_of(model, samples, make_batches(samples, 1), options);
    for (size_t i = 0; i < samples.size(); ++i) {
      ASSERT_EQ(answers[i].size(), samples[i].questions.size());
      for (size_t q = 0; q < samples[i].questions.size(); ++q) {
        EXPECT_EQ(answers[i][q], session_answer(model, samples[i], q, options))
            << spec << " " << i << " " << q;
      }
    }
  }
}

TEST(SampleRunner, AnswersTheSameInAnyCompany) {
  Model model = load(2);
  const auto samples = some_samples(model);
  for (const CacheMode mode : {CacheMode::kStrict, CacheMode::kAsServed}) {
    SampleRunOptions options{.spec = parse_spec("nuq3-1%"), .mode = mode, .ubatch = 64};
    const auto expected = answers_of(model, samples, make_batches(samples, 1), options);
    for (size_t i = 0; i < samples.size(); ++i) {
      EXPECT_EQ(answers_of(model, samples, {{i}}, options)[i], expected[i]) << i;
    }
    for (const int64_t batch_size : {2, 100}) {
      options.batch_size = batch_size;
      EXPECT_EQ(answers_of(model, samples, make_batches(samples, batch_size), options), expected)
          << batch_size;
    }
  }
}

TEST(SampleRunner, AnswersTheSameAtAnyThreadCount) {
  std::vector<std::vector<std::string>> expected;
  for (const int num_threads : {1, 2, 3}) {
    Model model =
        Model::load(kEmbedded, {.num_threads = num_threads, .precision = default_precision()});
    const auto samples = some_samples(model);
    const auto answers = answers_of(model, samples, make_batches(samples, 1),
                                    {.spec = parse_spec("nuq4-1%"), .ubatch = 64});
    if (expected.empty()) expected = answers;
    EXPECT_EQ(answers, expected) << num_threads;
  }
}

TEST(SampleRunner, TellsProgressAndWhatWasReadCompressed) {
  Model model = load(2);
  const auto samples = some_samples(model);
  int64_t total = 0, last = 0, compressed = 0;
  for (const auto& sample : samples) total += num_tokens(sample);
  run_samples(
      model, samples, make_batches(samples, 1), {.spec = parse_spec("nuq3-1%"), .ubatch = 64},
      [&](size_t, const SampleResult& result) { compressed += result.compressed_tokens; },
      [&](int64_t done, int64_t of) {
        EXPECT_EQ(of, total);
        EXPECT_GE(done, last);
        last = done;
      });
  EXPECT_EQ(last, total);
  EXPECT_GT(compressed, 0);
}

TEST(SampleRunner, RefusesSamplesThatDontFit) {
  Model model = load(1);
  const SampleRunOptions options{.spec = parse_spec("fp16")};
  const auto run = [&](const EvalSample& sample) {
    run_samples(model, {&sample, 1}, {{0}}, options, [](size_t, const SampleResult&) {});
  };
  EvalSample sample{.task = "t", .context = {5}, .questions = {{{6}, {"x"}}}, .max_new_tokens = 1};
  run(sample);
  EvalSample bad = sample;
  bad.context.resize(2047, 5);
  EXPECT_THROW(run(bad), std::invalid_argument);
  bad = sample;
  bad.context.clear();
  EXPECT_THROW(run(bad), std::invalid_argument);
  bad = sample;
  bad.questions[0].tokens.clear();
  EXPECT_THROW(run(bad), std::invalid_argument);
  EXPECT_THROW(make_batches({&sample, 1}, 0), std::invalid_argument);
}

TEST(MakeBatches, PutContextsThatBeginAlikeBehindEachOther) {
  const std::vector<std::vector<int32_t>> contexts = {{1, 2, 9}, {7}, {1, 2, 3}, {1, 2, 3}, {1}};
  std::vector<EvalSample> samples;
  for (const auto& context : contexts) samples.push_back({.context = context});
  EXPECT_EQ(make_batches(samples, 2), (SampleBatches{{4, 2}, {3, 0}, {1}}));
  EXPECT_TRUE(make_batches({}, 2).empty());
}

}  // namespace
}  // namespace kvquant
