#include "bench/filled_cache.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace kvquant {
namespace {

constexpr const char* kEmbedded = KVQUANT_SOURCE_DIR "/assets/ref5m";
constexpr const char* kSpecs[] = {"fp16", "nuq4-1%", "nuq3-1%,recent=0", "k=nuq4,v=fp16"};

Model load() { return Model::load(kEmbedded, {.precision = Precision::kF32}); }

std::vector<int32_t> tokens(int64_t count, const Model& model, unsigned seed) {
  std::mt19937 rng(seed);
  std::vector<int32_t> out(static_cast<size_t>(count));
  for (auto& token : out) {
    token = static_cast<int32_t>(rng() % static_cast<unsigned>(model.config().vocab_size));
  }
  return out;
}

std::vector<float> copy_of(std::span<const float> x) { return {x.begin(), x.end()}; }

void expect_near(std::span<const float> a, std::span<const float> b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) ASSERT_NEAR(a[i], b[i], 2e-3) << i;
}

TEST(FilledCache, StartsEveryRepetitionFromTheSameDepth) {
  Model model = load();
  for (const char* spec : kSpecs) {
    SCOPED_TRACE(spec);
    FilledCache cache(model, parse_spec(spec), 128, 1);
    cache.fill(tokens(200, model, 1));
    const int64_t bytes = cache.all_bytes();
    const auto prompt = tokens(130, model, 2), generated = tokens(5, model, 3);
    std::vector<float> first;
    int64_t first_bytes = 0, first_peak = 0;
    for (int repetition = 0; repetition < 3; ++repetition) {
      cache.start();
      cache.prefill(prompt);
      cache.decode(generated);
      if (repetition == 0) {
        first = copy_of(cache.logits());
        first_bytes = cache.cache_bytes();
        first_peak = cache.peak_cache_bytes();
      }
      EXPECT_EQ(copy_of(cache.logits()), first);
      EXPECT_EQ(cache.cache_bytes(), first_bytes);
      EXPECT_EQ(cache.peak_cache_bytes(), first_peak);
      EXPECT_GE(first_peak, first_bytes);
      cache.finish();
      EXPECT_EQ(cache.all_bytes(), bytes);
    }
    // What is shared with the parents is counted as if it weren't, and they aren't.
    FilledCache whole(model, parse_spec(spec), 128, 1);
    whole.start();
    whole.prefill(tokens(200, model, 1));
    whole.prefill(prompt);
    whole.decode(generated);
    EXPECT_EQ(first_bytes, whole.cache_bytes());
    EXPECT_NEAR(static_cast<double>(first_peak), static_cast<double>(whole.peak_cache_bytes()),
                0.02 * static_cast<double>(first_peak));
  }
}

TEST(FilledCache, GivesEverySequenceMemoryOfItsOwnAndWhatTheModelWrote) {
  Model model = load();
  const auto depth = tokens(400, model, 1), generated = tokens(3, model, 2);
  const auto size = static_cast<size_t>(model.config().vocab_size);
  for (const char* spec : kSpecs) {
    SCOPED_TRACE(spec);
    FilledCache none(model, parse_spec(spec), 128, 1), one(model, parse_spec(spec), 128, 1),
        three(model, parse_spec(spec), 128, 3);
    one.fill(depth);
    three.fill(depth);
    const int64_t constant = none.all_bytes();  // codebooks
    EXPECT_EQ(three.all_bytes() - constant, 3 * (one.all_bytes() - constant));
    for (FilledCache* cache : {&one, &three}) {
      cache->start();
      cache->decode(generated);
    }
    for (size_t i = 0; i < 3; ++i)
      expect_near(three.logits().subspan(i * size, size), one.logits());
  }
}

TEST(FilledCache, PrefillsSequencesSideBySideAsEachAlone) {
  Model model = load();
  const auto size = static_cast<size_t>(model.config().vocab_size);
  const auto prompt = tokens(50, model, 1);
  FilledCache alone(model, parse_spec("fp16"), 512, 1);
  alone.start();
  alone.prefill(prompt);
  for (const int64_t ubatch : {1, 49, 50, 64, 100, 512}) {
    SCOPED_TRACE(ubatch);
    FilledCache cache(model, parse_spec("fp16"), ubatch, 3);
    cache.start();
    cache.prefill(prompt);
    for (size_t i = 0; i < 3; ++i) {
      expect_near(cache.logits().subspan(i * size, size), alone.logits());
    }
  }
}

TEST(FilledCache, LeavesTheModelUnobserved) {
  Model model = load();
  FilledCache cache(model, parse_spec("fp16"), 64, 1);
  const auto depth = tokens(100, model, 1);
  EXPECT_THROW(cache.fill(depth, [] { throw 1; }), int);
  EXPECT_FALSE(model.transformer().is_observed());
}

}  // namespace
}  // namespace kvquant
