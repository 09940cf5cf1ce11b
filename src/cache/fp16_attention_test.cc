// The fp16 format equals attention over contiguous fp16 keys and values bit for bit.
#include <gtest/gtest.h>

#include <cmath>

#include "cache/kv_cache.h"
#include "cache/kv_cache_test_model.h"

namespace kvquant {
namespace {

using test::Row;

constexpr int64_t kHeadDim = 64, kGroup = 3, kKvHeads = 2;

// One head's keys after RoPE and values, as fp16 tiles one behind the other in one piece of memory.
class Contiguous {
 public:
  Contiguous(const std::vector<Row>& keys, const std::vector<Row>& values, int64_t head,
             const RopeTable& rope)
      : num_tokens_(static_cast<int64_t>(keys.size())) {
    const int64_t num_tiles = (num_tokens_ + kTileTokens - 1) / kTileTokens;
    memory_ = Buffer<Half>(2 * num_tiles * kTileSize);
    std::fill_n(memory_.data(), memory_.size(), Half{});
    for (int64_t i = 0; i < num_tiles; ++i) {
      key_tiles_.push_back(memory_.data() + i * kTileSize);
      value_tiles_.push_back(memory_.data() + (num_tiles + i) * kTileSize);
    }
    for (int64_t t = 0; t < num_tokens_; ++t) {
      Row key(keys[t].begin() + head * kHeadDim, keys[t].begin() + (head + 1) * kHeadDim);
      rope_row(key.data(), rope.cos(t), rope.sin(t), kHeadDim);
      Half* key_tile = memory_.data() + t / kTileTokens * kTileSize;
      Half* value_tile = key_tile + num_tiles * kTileSize;
      for (int64_t c = 0; c < kHeadDim; ++c) {
        key_tile[key_index(t % kTileTokens, c)] = to_half(key[c]);
        value_tile[value_index(t % kTileTokens, c, kHeadDim)] =
            to_half(values[t][head * kHeadDim + c]);
      }
    }
  }

  AttendRun run() const {
    return {.key_tiles = key_tiles_, .value_tiles = value_tiles_, .num_tokens = num_tokens_};
  }

 private:
  static constexpr int64_t kTileSize = kTileTokens * kHeadDim;
  int64_t num_tokens_;
  Buffer<Half> memory_;
  std::vector<const void*> key_tiles_, value_tiles_;
};

std::vector<float> attended(std::span<const AttendRun> runs, const std::vector<float>& queries,
                            int64_t first_position, Precision precision, ThreadPool& pool) {
  std::vector<float> out(queries.size(), NAN);
  const AttendJob job{.query = queries.data(),
                      .out = out.data(),
                      .query_stride = kGroup * kHeadDim,
                      .num_queries = static_cast<int64_t>(queries.size()) / (kGroup * kHeadDim),
                      .first_position = first_position,
                      .runs = runs};
  attend({kHeadDim, kGroup, 0.125f}, {&job, 1}, precision, pool);
  return out;
}

TEST(Fp16Cache, AttentionEqualsThatOverContiguousKeysAndValuesBitForBit) {
  ThreadPool pool(2, ThreadPool::Pin::kNo);
  const RopeTable rope(kHeadDim, 1000, 10000);
  std::mt19937 rng(9);
  for (const Precision precision : {Precision::kF32, Precision::kBF16}) {
    KvCache cache({1, kKvHeads, kHeadDim}, parse_spec("fp16,block=128"), CacheMode::kStrict, rope,
                  pool);
    const auto id = cache.add_sequence();
    std::vector<Row> keys, values;
    for (const int64_t num_new : {70, 1, 200, 64, 1}) {
      const auto first = static_cast<int64_t>(keys.size());
      const auto new_keys = test::random_rows(num_new, kKvHeads * kHeadDim, rng);
      const auto new_values = test::random_rows(num_new, kKvHeads * kHeadDim, rng);
      keys.insert(keys.end(), new_keys.begin(), new_keys.end());
      values.insert(values.end(), new_values.begin(), new_values.end());
      std::vector<float> flat_keys, flat_values;
      cache.append(0, id, test::as_chunk(new_keys, kKvHeads, flat_keys),
                   test::as_chunk(new_values, kKvHeads, flat_values));
      cache.prepare_view(0, id);
      std::vector<float> queries(static_cast<size_t>(num_new * kGroup * kHeadDim));
      std::normal_distribution<float> normal;
      for (float& x : queries) x = normal(rng);
      for (int64_t head = 0; head < kKvHeads; ++head) {
        const Contiguous contiguous(keys, values, head, rope);
        const AttendRun whole = contiguous.run();
        const auto expected = attended({&whole, 1}, queries, first, precision, pool);
        const auto out = attended(cache.view(0, id, head), queries, first, precision, pool);
        EXPECT_EQ(out, expected) << "chunk of " << num_new << ", head " << head;
      }
    }
  }
}

}  // namespace
}  // namespace kvquant
