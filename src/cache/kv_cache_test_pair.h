// For tests: a KvCache and its model of plain vectors, changed alike and compared.
#pragma once

#include <gtest/gtest.h>

#include <map>
#include <set>
#include <stdexcept>
#include <vector>

#include "cache/kv_cache.h"
#include "cache/kv_cache_test_memory.h"
#include "cache/kv_cache_test_model.h"
#include "cache/kv_cache_test_specs.h"
#include "quant/key_basis.h"

namespace kvquant::test {

inline constexpr int64_t kPositions = 2000;

// The sequences of a KvCache and their models.
class Pair {
 public:
  Pair(const KvShape& shape, const char* spec, CacheMode mode)
      : shape_(shape),
        spec_(with_windows(parse_spec(spec), mode)),
        mode_(mode),
        rope_(shape.head_dim, kPositions, 10000),
        pool_(2, ThreadPool::Pin::kNo),
        cache_(shape, parse_spec(spec), mode, rope_, pool_),
        empty_bytes_(cache_.memory_bytes()) {}

  KvCache& cache() { return cache_; }

  KvCache::SequenceId add() {
    const auto id = cache_.add_sequence();
    for (int layer = 0; layer < shape_.num_layers; ++layer) {
      ModelLayer model;
      model.key = {.codec = spec_.key_of(layer), .is_key = true, .head_dim = shape_.head_dim};
      model.value = {.codec = spec_.value_of(layer), .is_key = false, .head_dim = shape_.head_dim};
      const BasisShape basis{shape_.num_kv_heads, shape_.head_dim};
      if (has_latents(model.value.codec)) {
        model.value.basis = make_value_basis(model.value.codec, basis, nullptr);
      }
      if (has_latents(model.key.codec)) {
        model.key.basis = make_key_basis(model.key.codec, basis, nullptr);
        model.key.rope = &rope_;
      }
      model.sink = *spec_.sink;
      model.recent = *spec_.recent;
      model.mode = mode_;
      models_[id].push_back({model, {shape_, spec_.block, model}});
    }
    return id;
  }

  void drop(KvCache::SequenceId id) {
    cache_.drop(id);
    models_.erase(id);
  }

  KvCache::SequenceId fork(KvCache::SequenceId id) {
    const auto fork = cache_.fork(id);
    settle_model(id);
    models_[fork] = models_[id];
    EXPECT_EQ(cache_.length(fork), cache_.length(id));
    return fork;
  }

  void settle(KvCache::SequenceId id) {
    cache_.settle(id);
    settle_model(id);
  }

  // Where that isn't allowed, it must be refused.
  void truncate(KvCache::SequenceId id, int64_t length) {
    settle(id);
    bool allowed = true;
    for (const Layer& layer : models_[id]) allowed = allowed && layer.model.can_truncate(length);
    ASSERT_EQ(cache_.can_truncate(id, length), allowed);
    if (!allowed) {
      ASSERT_THROW(cache_.truncate(id, length), std::invalid_argument);
      return;
    }
    cache_.truncate(id, length);
    for (Layer& layer : models_[id]) {
      layer.memory.truncated(length, layer.model.length());
      layer.model.truncate(length);
    }
    ASSERT_EQ(cache_.length(id), length);
  }

  // Settles all sequences, then compares what they hold together.
  void check_memory() {
    std::set<Piece> pieces;
    int64_t bytes = empty_bytes_;
    for (auto& [id, layers] : models_) {
      settle(id);
      for (const Layer& layer : layers) bytes += layer.memory.collect(pieces);
    }
    for (const Piece& piece : pieces) bytes += *piece;
    ASSERT_EQ(cache_.memory_bytes(), bytes);
  }

  // One chunk through all layers; the view of every layer is compared.
  void append_and_check(KvCache::SequenceId id, int64_t num_new) {
    for (int64_t layer = 0; layer < shape_.num_layers; ++layer) {
      const int64_t row_size = shape_.num_kv_heads * shape_.head_dim;
      const auto keys = random_rows(num_new, row_size, rng_);
      const auto values = random_rows(num_new, row_size, rng_);
      std::vector<float> flat_keys, flat_values;
      Layer& fed = models_[id][layer];
      fed.settle();
      const int64_t before = fed.model.length();
      cache_.append(layer, id, as_chunk(keys, shape_.num_kv_heads, flat_keys),
                    as_chunk(values, shape_.num_kv_heads, flat_values));
      fed.model.append(keys, values);
      fed.memory.appended(fed.model, before);
      cache_.prepare_view(layer, id);
      for (int64_t head = 0; head < shape_.num_kv_heads; ++head) {
        check_view(fed.model, cache_.view(layer, id, head), head);
      }
    }
    ASSERT_EQ(cache_.length(id), models_[id][0].model.length());
  }

 private:
  struct Layer {
    ModelLayer model;
    ModelMemory memory;
    void settle() {
      model.settle();
      memory.settled(model);
    }
  };

  void settle_model(KvCache::SequenceId id) {
    for (Layer& layer : models_[id]) layer.settle();
  }

  // Every query of the last chunk sees every earlier token of its sliding window once, in the form
  // the model says.
  void check_view(const ModelLayer& model, std::span<const AttendRun> runs, int64_t head) {
    std::vector<int64_t> seen(model.length() * model.last_chunk, 0);
    for (const AttendRun& run : runs) {
      const bool has_codes = run.is_coded() || run.is_half_coded();
      ASSERT_TRUE(!has_codes || run.coded_values != nullptr || run.key_latents() != nullptr);
      const auto num_tiles = [&](bool has_no_tiles, int64_t offset) {
        return has_no_tiles || run.is_rows() ? 0 : (offset + run.num_tokens + 63) / 64;
      };
      ASSERT_EQ(std::ssize(run.key_tiles), num_tiles(run.is_coded(), run.key_offset));
      ASSERT_EQ(std::ssize(run.value_tiles),
                num_tiles(run.coded_values != nullptr, run.value_offset));
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
        const int64_t lag = model.length() - model.last_chunk + q - token;
        const bool sees = lag >= 0 && (shape_.sliding_window == 0 || lag < shape_.sliding_window);
        ASSERT_EQ(seen[token * model.last_chunk + q], sees ? 1 : 0)
            << "query " << q << " token " << token << " of " << model.length();
      }
    }
  }

  void check_token(const ModelLayer& model, const AttendRun& run, int64_t token, int64_t head,
                   bool exact) {
    const int64_t head_dim = shape_.head_dim, t = token - run.first_position;
    const Row keys = key_in_run(run, t, head_dim);
    const Row values = value_in_run(run, t, head_dim);
    const auto expected = [&](const ModelSide& side) {
      const bool stored = exact || !is_compressed(side.codec);
      const Row& row = stored ? side.rows[token] : side.decoded[token];
      return Row(row.begin() + head * head_dim, row.begin() + (head + 1) * head_dim);
    };
    if (run.latents() != nullptr) {  // expanded by other sums
      const Row near = expected(model.value);
      for (int64_t c = 0; c < head_dim; ++c) ASSERT_NEAR(values[c], near[c], 1e-4) << token;
    } else {
      ASSERT_EQ(values, expected(model.value)) << "token " << token << " exact " << exact;
    }
    Row key = expected(model.key);
    if (run.key_latents() != nullptr) {  // rotated before they were coded
      for (int64_t c = 0; c < head_dim; ++c) ASSERT_NEAR(keys[c], key[c], 1e-4) << token;
      return;
    }
    rope_row(key.data(), rope_.cos(token), rope_.sin(token), head_dim);
    if (!is_compressed(model.key.codec)) {  // rounded after the rotation, to the bit
      for (float& x : key) x = round_as_stored(model.key.codec, x);
      ASSERT_EQ(keys, key) << "token " << token;
      return;
    }
    for (int64_t c = 0; c < head_dim; ++c) {
      ASSERT_NEAR(keys[c], key[c], 1e-4) << "token " << token << " channel " << c;
    }
  }

  void check_unused_are_zero(const AttendRun& run) {
    for (int64_t t = run.num_tokens; t % 64 != 0; ++t) {
      for (const float x : key_in_run(run, t, shape_.head_dim)) ASSERT_EQ(x, 0);
      for (const float x : value_in_run(run, t, shape_.head_dim)) ASSERT_EQ(x, 0);
    }
  }

  KvShape shape_;
  CacheSpec spec_;
  CacheMode mode_;
  RopeTable rope_;
  ThreadPool pool_;
  KvCache cache_;
  int64_t empty_bytes_;  // codebooks
  std::map<KvCache::SequenceId, std::vector<Layer>> models_;
  std::mt19937 rng_{11};
};

}  // namespace kvquant::test
