// What attention reads through the views of a KvCache, against the model of plain vectors.
#include "cache/kv_cache.h"

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <cmath>
#include <cstdlib>
#include <map>

#include "cache/kv_cache_test_model.h"
#include "kvquant/error.h"

namespace kvquant {
namespace {

using test::Row;

constexpr int64_t kPositions = 2000;

// A KvCache and its model, fed alike.
class Pair {
 public:
  Pair(const KvShape& shape, const char* spec, CacheMode mode)
      : shape_(shape),
        spec_(with_windows(parse_spec(spec), mode)),
        mode_(mode),
        rope_(shape.head_dim, kPositions, 10000),
        pool_(2, ThreadPool::Pin::kNo),
        cache_(shape, parse_spec(spec), mode, rope_, pool_) {}

  KvCache& cache() { return cache_; }

  KvCache::SequenceId add() {
    const auto id = cache_.add_sequence();
    for (int layer = 0; layer < shape_.num_layers; ++layer) {
      test::ModelLayer model;
      model.key = {.codec = spec_.key_of(layer), .is_key = true, .head_dim = shape_.head_dim};
      model.value = {.codec = spec_.value_of(layer), .is_key = false, .head_dim = shape_.head_dim};
      model.sink = *spec_.sink;
      model.recent = *spec_.recent;
      model.mode = mode_;
      models_[id].push_back(model);
    }
    return id;
  }

  void drop(KvCache::SequenceId id) {
    cache_.drop(id);
    models_.erase(id);
  }

  // One chunk through all layers; the view of every layer is compared.
  void append_and_check(KvCache::SequenceId id, int64_t num_new) {
    for (int64_t layer = 0; layer < shape_.num_layers; ++layer) {
      const int64_t row_size = shape_.num_kv_heads * shape_.head_dim;
      const auto keys = test::random_rows(num_new, row_size, rng_);
      const auto values = test::random_rows(num_new, row_size, rng_);
      std::vector<float> flat_keys, flat_values;
      cache_.append(layer, id, test::as_chunk(keys, shape_.num_kv_heads, flat_keys),
                    test::as_chunk(values, shape_.num_kv_heads, flat_values));
      models_[id][layer].append(keys, values);
      cache_.prepare_view(layer, id);
      for (int64_t head = 0; head < shape_.num_kv_heads; ++head) {
        check_view(models_[id][layer], cache_.view(layer, id, head), head);
      }
    }
    ASSERT_EQ(cache_.length(id), models_[id][0].length());
  }

 private:
  // Every query of the last chunk sees every earlier token once, in the form the model says.
  void check_view(const test::ModelLayer& model, std::span<const AttendRun> runs, int64_t head) {
    std::vector<int64_t> seen(model.length() * model.last_chunk, 0);
    for (const AttendRun& run : runs) {
      ASSERT_EQ(run.is_coded(), run.coded_values != nullptr);
      const int64_t num_tiles = run.is_coded() ? 0 : (run.num_tokens + 63) / 64;
      ASSERT_EQ(static_cast<int64_t>(run.key_tiles.size()), num_tiles);
      ASSERT_EQ(run.key_tiles.size(), run.value_tiles.size());
      for (int64_t t = 0; t < run.num_tokens; ++t) {
        const int64_t token = run.first_position + t;
        bool checked[2] = {};  // contents once per form
        for (int64_t q = 0; q < model.last_chunk; ++q) {
          const int64_t query = model.length() - model.last_chunk + q, lag = query - token;
          if (lag < 0 || lag < run.min_lag || lag >= run.max_lag) continue;
          ++seen[token * model.last_chunk + q];
          const bool exact = model.sees_exactly(query, token);
          if (checked[exact ? 1 : 0]) continue;
          checked[exact ? 1 : 0] = true;
          ASSERT_NO_FATAL_FAILURE(check_token(model, run, token, head, exact));
        }
      }
      check_unused_are_zero(run);
    }
    for (int64_t token = 0; token < model.length(); ++token) {
      for (int64_t q = 0; q < model.last_chunk; ++q) {
        const bool causal = token <= model.length() - model.last_chunk + q;
        ASSERT_EQ(seen[token * model.last_chunk + q], causal ? 1 : 0)
            << "query " << q << " token " << token << " of " << model.length();
      }
    }
  }

  void check_token(const test::ModelLayer& model, const AttendRun& run, int64_t token, int64_t head,
                   bool exact) {
    const int64_t head_dim = shape_.head_dim, t = token - run.first_position;
    const Row keys = test::key_in_run(run, t, head_dim);
    const Row values = test::value_in_run(run, t, head_dim);
    const auto expected = [&](const test::ModelSide& side) {
      const bool stored = exact || !is_compressed(side.codec);
      const Row& row = stored ? side.rows[token] : side.decoded[token];
      return Row(row.begin() + head * head_dim, row.begin() + (head + 1) * head_dim);
    };
    ASSERT_EQ(values, expected(model.value)) << "token " << token << " exact " << exact;
    Row key = expected(model.key);
    rope_row(key.data(), rope_.cos(token), rope_.sin(token), head_dim);
    if (!is_compressed(model.key.codec)) {  // rounded after the rotation, to the bit
      for (float& x : key) x = test::round_as_stored(model.key.codec, x);
      ASSERT_EQ(keys, key) << "token " << token;
      return;
    }
    for (int64_t c = 0; c < head_dim; ++c) {
      ASSERT_NEAR(keys[c], key[c], 1e-4) << "token " << token << " channel " << c;
    }
  }

  void check_unused_are_zero(const AttendRun& run) {
    for (int64_t t = run.num_tokens; t % 64 != 0; ++t) {
      for (const float x : test::key_in_run(run, t, shape_.head_dim)) ASSERT_EQ(x, 0);
      for (const float x : test::value_in_run(run, t, shape_.head_dim)) ASSERT_EQ(x, 0);
    }
  }

  KvShape shape_;
  CacheSpec spec_;
  CacheMode mode_;
  RopeTable rope_;
  ThreadPool pool_;
  KvCache cache_;
  std::map<KvCache::SequenceId, std::vector<test::ModelLayer>> models_;
  std::mt19937 rng_{11};
};

constexpr const char* kSpecs[] = {
    "fp16",
    "bf16,block=64",
    "fp32",
    "k=fp32,v=nuq3-1%",
    "k=fp16,v=bf16",
    "nuq4",
    "nuq3-1%,block=64",
    "nuq2-5%,sink=3,recent=10,block=64",
    "k=nuq4-0.5%,v=fp16,block=64",
    "k=bf16,v=nuq3-2%,sink=1,recent=0,block=128",
    "nuq4-1%,layers=1:fp16,sink=70,recent=65",
    "nuq3,layers=0:k=nuq2-3%,recent=1,sink=0,block=64",
    "int8,block=64",
    "int4,sink=2,recent=30",
    "k=nuq4-1%,v=had+nuq4-2%,block=64",
    "k=int8,v=had+int4,layers=1:v=had+int8",
};

class KvCacheViews : public testing::TestWithParam<CacheMode> {};

TEST_P(KvCacheViews, ShowEveryTokenOnceInTheRightForm) {
  for (const char* spec : kSpecs) {
    SCOPED_TRACE(spec);
    Pair pair({2, 2, 16}, spec, GetParam());
    const auto id = pair.add();
    for (const int64_t num_new : {1, 2, 63, 64, 1, 200, 1, 1, 129}) {
      ASSERT_NO_FATAL_FAILURE(pair.append_and_check(id, num_new));
    }
  }
}

TEST_P(KvCacheViews, HoldForWideAndNarrowHeads) {
  for (const int64_t head_dim : {8, 64, 80, 256}) {
    Pair pair({1, 3, head_dim}, "nuq3-5%,recent=5", GetParam());
    const auto id = pair.add();
    for (const int64_t num_new : {150, 1, 70}) {
      ASSERT_NO_FATAL_FAILURE(pair.append_and_check(id, num_new));
    }
  }
}

TEST_P(KvCacheViews, HoldForWideAndNarrowRotatedHeads) {
  for (const int64_t head_dim : {8, 64, 256}) {
    Pair pair({1, 3, head_dim}, "k=int4,v=had+nuq3-5%,recent=5", GetParam());
    const auto id = pair.add();
    for (const int64_t num_new : {150, 1, 70}) {
      ASSERT_NO_FATAL_FAILURE(pair.append_and_check(id, num_new));
    }
  }
}

TEST_P(KvCacheViews, HoldUnderRandomOperations) {
  setenv("RC_PARAMS", "seed=42 max_success=25", /*overwrite=*/1);
  const CacheMode mode = GetParam();
  EXPECT_TRUE(rc::check([mode] {
    Pair pair({2, 2, 8},
              *rc::gen::elementOf(std::vector<const char*>(std::begin(kSpecs), std::end(kSpecs))),
              mode);
    std::vector<KvCache::SequenceId> ids;
    const int num_steps = *rc::gen::inRange(1, 12);
    for (int step = 0; step < num_steps; ++step) {
      if (ids.empty() || *rc::gen::inRange(0, 5) == 0) ids.push_back(pair.add());
      const auto at = *rc::gen::inRange<size_t>(0, ids.size());
      if (*rc::gen::inRange(0, 8) == 0) {
        pair.drop(ids[at]);
        ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(at));
      } else {
        pair.append_and_check(ids[at], *rc::gen::element(1, 1, 5, 64, 100, 150));
      }
      RC_ASSERT(!testing::Test::HasFailure());
    }
  }));
}

INSTANTIATE_TEST_SUITE_P(Modes, KvCacheViews,
                         testing::Values(CacheMode::kStrict, CacheMode::kAsServed),
                         [](const auto& info) {
                           return info.param == CacheMode::kStrict ? "Strict" : "AsServed";
                         });

}  // namespace
}  // namespace kvquant
