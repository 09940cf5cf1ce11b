// What the views of a KvCache hand to attention: codes and exact rows as they lie, without scratch.
#include "cache/cache_view.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "cache/kv_cache.h"
#include "cache/kv_cache_test_model.h"
#include "cache/nuq_side.h"
#include "ops/attend.h"

namespace kvquant {
namespace {

using test::Row;

constexpr int64_t kLayers = 2, kHeads = 2, kGroup = 3;

struct Fixture {
  Fixture(const char* spec, CacheMode mode, int64_t dim = 16)
      : head_dim(dim),
        rope(dim, 4000, 10000),
        cache({kLayers, kHeads, dim}, parse_spec(spec), mode, rope, pool),
        id(cache.add_sequence()) {}

  // The same random chunk for every layer, whose view is prepared at once.
  void append(int64_t num_new) {
    const auto keys = test::random_rows(num_new, kHeads * head_dim, rng);
    const auto values = test::random_rows(num_new, kHeads * head_dim, rng);
    std::vector<float> flat_keys, flat_values;
    for (int64_t layer = 0; layer < kLayers; ++layer) {
      cache.append(layer, id, test::as_chunk(keys, kHeads, flat_keys),
                   test::as_chunk(values, kHeads, flat_values));
      cache.prepare_view(layer, id);
    }
  }

  int64_t head_dim;
  RopeTable rope;
  ThreadPool pool{2, ThreadPool::Pin::kNo};
  KvCache cache;
  KvCache::SequenceId id;
  std::mt19937 rng{31};
};

std::vector<float> attended(std::span<const AttendRun> runs, const std::vector<float>& queries,
                            int64_t first_position, int64_t head_dim, ThreadPool& pool) {
  std::vector<float> out(queries.size());
  const int64_t stride = kGroup * head_dim;
  const AttendJob job{.query = queries.data(),
                      .out = out.data(),
                      .query_stride = stride,
                      .num_queries = static_cast<int64_t>(queries.size()) / stride,
                      .first_position = first_position,
                      .runs = runs};
  attend({head_dim, kGroup, 1 / std::sqrt(static_cast<float>(head_dim))}, {&job, 1},
         Precision::kF32, pool);
  return out;
}

// The same runs with scores of coded keys as they are.
class UnbiasedRuns {
 public:
  explicit UnbiasedRuns(std::span<const AttendRun> runs) : runs_(runs.begin(), runs.end()) {
    keys_.reserve(runs_.size());
    for (AttendRun& run : runs_) {
      if (!run.is_coded()) continue;
      EXPECT_EQ(run.coded_keys->logit_bias, kLogitBias);
      EXPECT_EQ(run.coded_values->logit_bias, 0);
      keys_.push_back(*run.coded_keys);
      keys_.back().logit_bias = 0;
      run.coded_keys = &keys_.back();
    }
  }
  std::span<const AttendRun> runs() const { return runs_; }

 private:
  std::vector<AttendRun> runs_;
  std::vector<CodedSide> keys_;
};

class CodedView : public testing::TestWithParam<CacheMode> {};

TEST_P(CodedView, GivesTheAttentionOfItsDecodedTiles) {
  for (const char* spec : {"nuq4", "nuq3-1%,block=64", "nuq2-2%,sink=3,recent=10", "int8",
                           "k=nuq4-1%,v=had+nuq3-1%,sink=70,recent=65", "int4"}) {
    for (const int64_t head_dim : {16, 64, 80}) {
      if (head_dim == 80 && std::string(spec).find("had") != std::string::npos) continue;
      SCOPED_TRACE(testing::Message() << spec << ", head_dim " << head_dim);
      Fixture f(spec, GetParam(), head_dim);
      f.append(1000);
      for (const int64_t num_new : {1, 70, 1}) {
        const int64_t first = f.cache.length(f.id);
        f.append(num_new);
        std::normal_distribution<float> normal;
        std::vector<float> queries(static_cast<size_t>(num_new * kGroup * head_dim));
        for (float& x : queries) x = normal(f.rng);
        for (int64_t head = 0; head < kHeads; ++head) {
          const auto runs = f.cache.view(kLayers - 1, f.id, head);
          ASSERT_TRUE(std::any_of(runs.begin(), runs.end(),
                                  [](const AttendRun& run) { return run.is_coded(); }));
          const UnbiasedRuns unbiased(runs);
          const auto coded = attended(unbiased.runs(), queries, first, head_dim, f.pool);
          const test::DecodedRuns decoded(runs, head_dim);
          const auto expected = attended(decoded.runs(), queries, first, head_dim, f.pool);
          double error = 0, size = 0;
          for (size_t i = 0; i < coded.size(); ++i) {
            error += std::pow(double{coded[i]} - expected[i], 2);
            size += std::pow(double{expected[i]}, 2);
          }
          EXPECT_LE(std::sqrt(error / size), 1e-5);
        }
      }
    }
  }
}

TEST_P(CodedView, NeedsNoScratch) {
  for (const char* spec : {"nuq4-1%", "int8,recent=100"}) {
    Fixture f(spec, GetParam());
    for (int i = 0; i < 8; ++i) {
      f.append(64);
      EXPECT_EQ(f.cache.scratch_bytes(), 0) << spec;
    }
  }
}

TEST_P(CodedView, ShowsExactTokensAsRowsThatFollowEachOther) {
  Fixture f("nuq4-1%,sink=4,recent=70", GetParam());
  f.append(300);
  for (const int64_t num_new : {1, 20, 1}) {
    f.append(num_new);
    const auto runs = f.cache.view(1, f.id, 1);
    EXPECT_TRUE(runs[0].is_rows());  // sinks
    EXPECT_TRUE(runs[1].is_coded());
    ASSERT_EQ(runs.size(), 4u);
    EXPECT_TRUE(runs[2].is_rows());
    EXPECT_TRUE(runs[3].is_rows());
    EXPECT_EQ(runs[3].num_tokens, num_new);  // not in the window yet
    EXPECT_EQ(runs[2].first_position + runs[2].num_tokens, runs[3].first_position);
    EXPECT_EQ(runs[3].first_position + num_new, f.cache.length(f.id));
    EXPECT_EQ(f.cache.view(1, f.id, 0)[2].key_rows + f.head_dim, runs[2].key_rows);
  }
}

TEST_P(CodedView, ShowsTheBlocksThemselves) {
  Fixture f("nuq4-1%,block=64,sink=0,recent=0", GetParam());
  f.append(300);
  f.append(1);
  const auto runs = f.cache.view(1, f.id, 1);
  ASSERT_TRUE(runs[0].is_coded());
  EXPECT_EQ(runs[0].rope, &f.rope);
  EXPECT_EQ(runs[0].coded_keys->head, 1);
  EXPECT_EQ(runs[0].coded_keys->shape.side, KvSide::kKey);
  EXPECT_EQ(runs[0].coded_values->shape.side, KvSide::kValue);
  const std::byte* first = runs[0].coded_keys->blocks[0];
  f.append(64);
  EXPECT_EQ(f.cache.view(1, f.id, 1)[0].coded_keys->blocks[0], first);
}

TEST(ExpandedLayers, AreThoseWithTwoKindsOfSides) {
  const auto count = [](const char* spec) { return num_expanded_layers(parse_spec(spec), 4); };
  EXPECT_EQ(count("fp16"), 0);
  EXPECT_EQ(count("nuq4-1%"), 0);
  EXPECT_EQ(count("k=int8,v=had+nuq2"), 0);
  EXPECT_EQ(count("k=fp16,v=bf16"), 4);
  EXPECT_EQ(count("v=nuq4"), 0);
  EXPECT_EQ(count("k=nuq4"), 4);
  EXPECT_EQ(count("nuq3,layers=0-1:fp16"), 0);
  EXPECT_EQ(count("nuq3,layers=0-1:v=fp16"), 2);
}

TEST_P(CodedView, IsOfLayersThatCompressBothSides) {
  Fixture f("nuq4,layers=1:k=fp16", GetParam());
  EXPECT_TRUE(f.cache.reads_codes(0));
  EXPECT_FALSE(f.cache.reads_codes(1));
  EXPECT_THROW(f.cache.reads_codes(2), std::invalid_argument);
  EXPECT_FALSE(Fixture("fp16", GetParam()).cache.reads_codes(0));
  f.append(200);
  f.append(1);
  for (const AttendRun& run : f.cache.view(1, f.id, 0)) EXPECT_FALSE(run.is_coded());
}

INSTANTIATE_TEST_SUITE_P(Modes, CodedView,
                         testing::Values(CacheMode::kStrict, CacheMode::kAsServed),
                         [](const auto& info) {
                           return info.param == CacheMode::kStrict ? "Strict" : "AsServed";
                         });

}  // namespace
}  // namespace kvquant
