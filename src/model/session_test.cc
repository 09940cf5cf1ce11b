#include "model/session.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <string>

#include "kvquant/error.h"

namespace kvquant {
namespace {

constexpr const char* kEmbedded = KVQUANT_SOURCE_DIR "/assets/ref5m";

std::vector<int32_t> tokens_of(const Model& model, size_t count) {
  std::string text;
  while (text.size() < 8 * count) text += "The old man went down to the harbour, and saw the sea. ";
  auto tokens = model.tokenizer().encode(text);
  tokens.resize(count);
  return tokens;
}

std::vector<float> logits_after(Model& model, const std::string& spec,
                                std::span<const int32_t> tokens, int64_t ubatch) {
  Session session(model, {.spec = parse_spec(spec), .ubatch = ubatch});
  const auto logits = session.feed(tokens);
  return {logits.begin(), logits.end()};
}

double max_difference(const std::vector<float>& a, const std::vector<float>& b) {
  double max = 0;
  for (size_t i = 0; i < a.size(); ++i) max = std::max(max, std::fabs(double{a[i]} - b[i]));
  return max;
}

TEST(Session, TheSizeOfChunksDoesNotMatterForFp16) {
  Model model = Model::load(kEmbedded, {.precision = Precision::kF32});
  const auto tokens = tokens_of(model, 150);
  const auto whole = logits_after(model, "fp16", tokens, 512);
  for (const int64_t ubatch : {1, 7, 64, 149}) {
    EXPECT_LT(max_difference(whole, logits_after(model, "fp16", tokens, ubatch)), 2e-3) << ubatch;
  }
}

TEST(Session, LogitsAreTheSameAtAnyNumberOfThreads) {
  for (const Precision precision : {Precision::kF32, Precision::kBF16}) {
    for (const char* spec : {"fp16", "nuq3-1%"}) {
      Model one = Model::load(kEmbedded, {.num_threads = 1, .precision = precision});
      Model three = Model::load(kEmbedded, {.num_threads = 3, .precision = precision});
      const auto tokens = tokens_of(one, 200);
      EXPECT_EQ(logits_after(one, spec, tokens, 64), logits_after(three, spec, tokens, 64)) << spec;
    }
  }
}

TEST(Session, TruncatingForgetsWhatCameAfter) {
  Model model = Model::load(kEmbedded);
  const auto tokens = tokens_of(model, 300);
  for (const char* spec : {"fp16", "nuq4-1%"}) {
    Session session(model, {.spec = parse_spec(spec)});
    session.feed(std::span(tokens).first(250));
    const auto first = session.feed(std::span(tokens).subspan(250, 5));  // no tile gets full
    const std::vector<float> expected(first.begin(), first.end());
    session.truncate(250);
    EXPECT_EQ(session.length(), 250);
    const auto again = session.feed(std::span(tokens).subspan(250, 5));
    EXPECT_EQ(expected, std::vector<float>(again.begin(), again.end())) << spec;
  }
}

TEST(Session, CompressionStaysCloseAndCloserWithMoreBits) {
  Model model = Model::load(kEmbedded);
  const auto tokens = tokens_of(model, 400);
  const auto exact = logits_after(model, "fp16", tokens, 128);
  const double error4 = max_difference(exact, logits_after(model, "nuq4-1%", tokens, 128));
  const double error2 = max_difference(exact, logits_after(model, "nuq2", tokens, 128));
  EXPECT_GT(error4, 0);
  EXPECT_LT(error4, error2);
}

TEST(Session, APromptThatDoesNotFitIsRefusedWhole) {
  Model model = Model::load(kEmbedded);
  const auto tokens = tokens_of(model, 20);
  Session session(model, {.spec = parse_spec("fp16"), .context = 16});
  EXPECT_THROW(session.feed(tokens), std::invalid_argument);
  EXPECT_EQ(session.length(), 0);
  session.feed(std::span(tokens).first(16));
  EXPECT_THROW(session.feed({}), std::invalid_argument);
  EXPECT_THROW(Session(model, {.spec = parse_spec("fp16"), .context = 4096}),
               std::invalid_argument);
}

// The tokenizer of this model has fewer tokens than the model has logits.
TEST(Session, ScoresAreTheLikelihoodsOfTokensFedOneByOne) {
  Model model = Model::load(kEmbedded, {.precision = Precision::kF32});
  const auto tokens = tokens_of(model, 80);
  std::vector<double> expected;  // by the definition of softmax, in double
  Session one_by_one(model, {.spec = parse_spec("fp16")});
  for (size_t i = 0; i + 1 < tokens.size(); ++i) {
    const auto logits = one_by_one.feed(std::span(tokens).subspan(i, 1));
    double sum = 0;
    for (const float logit : logits) sum += std::exp(double{logit});
    expected.push_back(logits[static_cast<size_t>(tokens[i + 1])] - std::log(sum));
  }
  for (const int64_t ubatch : {7, 40, 79, 80, 512}) {
    Session session(model, {.spec = parse_spec("fp16"), .ubatch = ubatch});
    const auto scores = session.score(tokens);
    ASSERT_EQ(scores.size(), expected.size());
    for (size_t i = 0; i < scores.size(); ++i) {
      EXPECT_NEAR(scores[i], expected[i], 2e-3) << "ubatch " << ubatch << ", token " << i;
    }
    EXPECT_EQ(session.length(), std::ssize(tokens));
  }
}

TEST(Session, ScoresContinueWhatWasFed) {
  Model model = Model::load(kEmbedded, {.precision = Precision::kF32});
  const auto tokens = tokens_of(model, 60);
  Session whole(model, {.spec = parse_spec("fp16")}), parts(model, {.spec = parse_spec("fp16")});
  const auto all = whole.score(tokens);
  parts.feed(std::span(tokens).first(20));
  const auto rest = parts.score(std::span(tokens).subspan(20));
  ASSERT_EQ(rest.size(), 39u);  // its first token has no score
  for (size_t i = 0; i < rest.size(); ++i) EXPECT_NEAR(rest[i], all[20 + i], 2e-3) << i;
  EXPECT_TRUE(parts.score(std::span(tokens).first(1)).empty());
  EXPECT_THROW(parts.score({}), std::invalid_argument);
}

TEST(Generate, OnlyTokensThatHaveTextAreSampled) {
  Model model = Model::load(KVQUANT_SOURCE_DIR "/tests/golden/tiny_tied");
  ASSERT_LT(model.tokenizer().vocab_size(), model.config().vocab_size);
  Session session(model, {.spec = parse_spec("fp16")});
  const GenerateOptions options{
      .max_tokens = 400, .sampler = {.temperature = 100, .top_k = 0, .top_p = 1, .min_p = 0}};
  const auto out = generate(session, std::vector<int32_t>{1, 2, 3}, options);
  EXPECT_LT(*std::max_element(out.tokens.begin(), out.tokens.end()),
            model.tokenizer().vocab_size());
}

TEST(Generate, NothingIsGeneratedWhenNothingIsAskedFor) {
  Model model = Model::load(kEmbedded);
  Session session(model, {.spec = parse_spec("fp16")});
  const auto out = generate(session, tokens_of(model, 5), {.max_tokens = 0});
  EXPECT_TRUE(out.tokens.empty());
  EXPECT_EQ(out.stop, StopReason::kMaxTokens);
  EXPECT_EQ(session.length(), 5);
}

TEST(Generate, StopsWhereItIsTold) {
  Model model = Model::load(kEmbedded);
  const auto tokens = tokens_of(model, 10);
  const auto run = [&](GenerateOptions options, int64_t context) {
    Session session(model, {.spec = parse_spec("fp16"), .context = context});
    return generate(session, tokens, options);
  };
  const auto five = run({.max_tokens = 5}, 0);
  EXPECT_EQ(five.tokens.size(), 5u);
  EXPECT_EQ(five.stop, StopReason::kMaxTokens);
  const auto stopped = run({.max_tokens = 5, .stop_tokens = {five.tokens[2]}}, 0);
  EXPECT_EQ(stopped.stop, StopReason::kStopToken);
  EXPECT_LE(stopped.tokens.size(), 2u);
  const auto full = run({.max_tokens = 100}, 12);
  EXPECT_EQ(full.stop, StopReason::kContextFull);
  EXPECT_EQ(full.tokens.size(), 3u);  // positions 10 and 11, and one more that is not read
}

std::vector<float> fed(Session& session, std::span<const int32_t> tokens) {
  const auto logits = session.feed(tokens);
  return {logits.begin(), logits.end()};
}

TEST(Session, WhatIsLoadedGoesOnWithTheSameLogits) {
  const std::string path = testing::TempDir() + "kvquant_session_cache";
  Model model = Model::load(kEmbedded);
  const auto tokens = tokens_of(model, 400);
  for (const CacheMode mode : {CacheMode::kStrict, CacheMode::kAsServed}) {
    for (const char* spec : {"fp16", "nuq4-1%", "k=nuq4-1%,v=had+nuq4,sink=4,recent=64"}) {
      SCOPED_TRACE(spec);
      const SessionOptions options{.spec = parse_spec(spec), .mode = mode};
      Session session(model, options), later(model, options);
      session.feed(std::span(tokens).first(300));
      session.save(path, "test");
      later.feed(std::span(tokens).first(7));  // is replaced
      later.load(path);
      ASSERT_EQ(later.length(), 300);
      EXPECT_TRUE(std::equal(tokens.begin(), tokens.begin() + 300, later.tokens().begin()));
      const auto rest = std::span(tokens).subspan(300);
      EXPECT_EQ(fed(session, rest), fed(later, rest));
      GenerateOptions generation{.max_tokens = 20};
      generation.sampler.temperature = 1;
      const auto one = rest.first(1);
      EXPECT_EQ(generate(session, one, generation).tokens, generate(later, one, generation).tokens);
      EXPECT_EQ(fed(session, one), fed(later, one));
    }
  }
  std::filesystem::remove(path);
}

TEST(Session, ACacheThatDoesNotFitLeavesTheSessionAsItWas) {
  const std::string path = testing::TempDir() + "kvquant_session_refused";
  Model model = Model::load(kEmbedded);
  const auto tokens = tokens_of(model, 200);
  Session session(model, {.spec = parse_spec("nuq4")});
  session.feed(tokens);
  session.save(path, "test");
  Session small(model, {.spec = parse_spec("nuq4"), .context = 100});
  Session other(model, {.spec = parse_spec("nuq3")});
  for (Session* refused : {&small, &other}) {
    refused->feed(std::span(tokens).first(3));
    EXPECT_THROW(refused->load(path), FormatError);
    EXPECT_EQ(refused->length(), 3);
    EXPECT_NO_THROW(refused->feed(std::span(tokens).first(1)));
  }
  std::filesystem::remove(path);
}

TEST(Session, AShiftForgetsTheMiddle) {
  Model model = Model::load(kEmbedded);
  const auto tokens = tokens_of(model, 300);
  Session exact(model, {.spec = parse_spec("fp16")});
  exact.feed(tokens);
  const auto read_again = exact.shift(20, 100);
  EXPECT_EQ(read_again.num_forgotten, 100);
  EXPECT_EQ(read_again.num_read_again, 200);
  EXPECT_FALSE(read_again.moved_tiles);
  // Keys that are latents hold their positions, as fp16 keys do.
  Session latents(model, {.spec = parse_spec("k=lnns+int8,v=int8")});
  latents.feed(tokens);
  const auto read_too = latents.shift(20, 100);
  EXPECT_EQ(read_too.num_read_again, 200);
  EXPECT_FALSE(read_too.moved_tiles);
  auto kept = tokens;
  kept.erase(kept.begin() + 20, kept.begin() + 120);
  EXPECT_TRUE(std::equal(kept.begin(), kept.end(), exact.tokens().begin(), exact.tokens().end()));

  // 4 sinks and 3 tiles are compressed: the first tile stays, the second goes.
  Session coded(model, {.spec = parse_spec("nuq4-1%")});
  coded.feed(tokens);
  const auto moved = coded.shift(20, 60);
  EXPECT_TRUE(moved.moved_tiles);
  EXPECT_EQ(moved.num_forgotten, 64);
  EXPECT_EQ(moved.num_read_again, 4 + 300 - 196);
  kept = tokens;
  kept.erase(kept.begin() + 68, kept.begin() + 132);
  EXPECT_TRUE(std::equal(kept.begin(), kept.end(), coded.tokens().begin(), coded.tokens().end()));
  EXPECT_EQ(coded.length(), 236);
  coded.feed(std::span(tokens).first(10));
  EXPECT_EQ(coded.length(), 246);
  EXPECT_THROW(coded.shift(200, 46), std::invalid_argument);
  EXPECT_THROW(coded.shift(-1, 5), std::invalid_argument);
}

}  // namespace
}  // namespace kvquant
