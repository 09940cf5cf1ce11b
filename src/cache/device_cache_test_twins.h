// For tests: a KvCache and a DeviceCache, fed alike and compared.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "cache/device_cache.h"
#include "cache/device_cache_test_blocks.h"
#include "ops/cuda_numbers.h"

namespace kvquant::test {

inline constexpr KvShape kTwinShape{2, 2, 16};
inline constexpr int64_t kTwinGroup = 2, kTwinPositions = 1500, kTwinRowSize = 32;
inline constexpr int64_t kTwinWidth = 2 * kTwinRowSize;
// Both caches, fed alike.
class Twins {
 public:
  Twins(CudaDevice& device, ThreadPool& pool, const char* spec, CacheMode mode,
        int64_t num_sequences = 3, std::shared_ptr<const Calibration> calibration = nullptr)
      : device_(device),
        pool_(pool),
        rope_(kTwinShape.head_dim, kTwinPositions, 10000),
        host_(kTwinShape, parse_spec(spec), mode, rope_, pool, calibration),
        cache_(kTwinShape, parse_spec(spec), rope_, device, pool,
               {.mode = mode,
                .num_sequences = num_sequences,
                .max_tokens = kTwinPositions,
                .calibration = calibration}),
        rng_(11) {}

  int64_t add() {
    const auto id = cache_.add_sequence();
    host_ids_[id] = host_.add_sequence();
    return id;
  }
  // `id` of the device's has the tokens of `other`.
  void adopt(int64_t id, int64_t other) { host_ids_[id] = host_.fork(host_ids_[other]); }
  void drop(int64_t id) {
    cache_.drop(id);
    host_.drop(host_ids_[id]);
    host_ids_.erase(id);
  }
  int64_t fork(int64_t id) {
    const auto fork = cache_.fork(id);
    host_ids_[fork] = host_.fork(host_ids_[id]);
    return fork;
  }
  void truncate(int64_t id, int64_t length) {
    ASSERT_EQ(cache_.can_truncate(id, length), host_.can_truncate(host_ids_[id], length));
    if (!cache_.can_truncate(id, length)) {
      EXPECT_THROW(cache_.truncate(id, length), std::invalid_argument);
      return;
    }
    cache_.truncate(id, length);
    host_.truncate(host_ids_[id], length);
  }

  // Chunks of several sequences through all layers, attended in one call.
  void append(const std::vector<std::pair<int64_t, int64_t>>& chunks) {
    for (int64_t layer = 0; layer < kTwinShape.num_layers; ++layer) {
      std::vector<std::vector<float>> keys, values, queries, expected;
      std::vector<DeviceArray<float>> memory;
      std::vector<DeviceCache::Queries> asked;
      for (const auto& [id, count] : chunks) {
        keys.push_back(rows(count, kTwinRowSize));
        values.push_back(rows(count, kTwinRowSize));
        queries.push_back(rows(count, kTwinWidth));
        memory.emplace_back(device_, keys.back());
        memory.emplace_back(device_, values.back());
        memory.emplace_back(device_, queries.back());
        memory.emplace_back(device_, count * kTwinWidth);
        const auto* of = &memory[memory.size() - 4];
        cache_.append(layer, id, {of[0].data(), of[1].data(), kTwinRowSize, count});
        asked.push_back({id, of[2].data(), of[3].data(), kTwinWidth, count});
        const auto view3 = [n = count](const std::vector<float>& x) {
          return row_major<const float, 3>(x.data(),
                                           {n, kTwinShape.num_kv_heads, kTwinShape.head_dim});
        };
        host_.append(layer, host_ids_[id], view3(keys.back()), view3(values.back()));
        expected.push_back(attend_host(layer, id, queries.back(), count));
      }
      cache_.attend(layer, asked, shape(), Precision::kF32);
      for (size_t i = 0; i < chunks.size(); ++i) {
        const auto found = memory[4 * i + 3].read(std::ssize(expected[i]));
        for (size_t k = 0; k < found.size(); ++k) ASSERT_NEAR(found[k], expected[i][k], 2e-3);
        compare(layer, chunks[i].first);
        cache_.settle(layer, chunks[i].first);
      }
    }
    for (const auto& [id, count] : chunks) {
      host_.settle(host_ids_[id]);
      EXPECT_EQ(cache_.length(id), host_.length(host_ids_[id]));
      EXPECT_EQ(cache_.num_compressed_tokens(id), host_.num_compressed_tokens(host_ids_[id]));
    }
  }

  // Runs and, to the bit, what they point at.
  void compare(int64_t layer, int64_t id) {
    const Codec& key = host_.spec().key_of(static_cast<int>(layer));
    const Codec& value = host_.spec().value_of(static_cast<int>(layer));
    // Two types, or one compressed side: other runs of the same tokens; attention tells.
    const bool are_compressed = is_compressed(key) && is_compressed(value);
    if (!are_compressed && (key.quantizer != value.quantizer || has_latents(key))) return;
    const auto view = cache_.view(layer, id);
    host_.prepare_view(layer, host_ids_[id]);
    for (int64_t head = 0; head < kTwinShape.num_kv_heads; ++head) {
      const auto mine = view.of_head(head), other = host_.view(layer, host_ids_[id], head);
      ASSERT_EQ(mine.size(), other.size());
      for (size_t i = 0; i < mine.size(); ++i) compare_runs(mine[i], other[i]);
    }
  }

  DeviceCache& cache() { return cache_; }

 private:
  static AttendShape shape() { return {kTwinShape.head_dim, kTwinGroup, 0.25f}; }
  std::vector<float> rows(int64_t count, int64_t width) {
    std::normal_distribution<float> normal;
    std::vector<float> out(static_cast<size_t>(count * width));
    for (float& x : out) x = normal(rng_);
    for (size_t i = 0; i < out.size(); i += 37) out[i] *= 6;  // outliers
    return out;
  }

  std::vector<float> attend_host(int64_t layer, int64_t id, const std::vector<float>& query,
                                 int64_t count) {
    host_.prepare_view(layer, host_ids_[id]);
    std::vector<float> out(query.size());
    std::vector<AttendJob> jobs;
    const int64_t before = host_.length(host_ids_[id]);
    const bool is_last = layer + 1 == kTwinShape.num_layers;
    for (int64_t head = 0; head < kTwinShape.num_kv_heads; ++head) {
      jobs.push_back({.query = query.data() + head * kTwinRowSize,
                      .out = out.data() + head * kTwinRowSize,
                      .query_stride = kTwinWidth,
                      .num_queries = count,
                      .first_position = is_last ? before - count : before,
                      .runs = host_.view(layer, host_ids_[id], head)});
    }
    attend(shape(), jobs, Precision::kF32, pool_, Backend::kReference);
    return out;
  }

  template <class T>
  std::vector<T> read(const T* data, int64_t count) {
    std::vector<T> out(static_cast<size_t>(count));
    device_.copy_out(out.data(), data, count * static_cast<int64_t>(sizeof(T)));
    return out;
  }

  void compare_runs(const AttendRun& mine, const AttendRun& other) {
    ASSERT_EQ(mine.num_tokens, other.num_tokens);
    ASSERT_EQ(mine.first_position, other.first_position);
    ASSERT_TRUE(mine.min_lag == other.min_lag && mine.max_lag == other.max_lag);
    ASSERT_EQ(mine.is_rows(), other.is_rows());
    ASSERT_EQ(mine.is_coded(), other.is_coded());
    if (mine.is_rows()) {
      for (int64_t t = 0; t < mine.num_tokens; ++t) {
        compare_halves(mine.key_rows + t * kTwinRowSize, other.key_rows + t * kTwinRowSize);
        compare_halves(mine.value_rows + t * kTwinRowSize, other.value_rows + t * kTwinRowSize);
      }
    } else if (mine.is_coded()) {
      const bool are_turned = mine.key_latents() != nullptr;
      compare_codes(*mine.coded_keys, *other.coded_keys, mine.num_tokens, are_turned);
      compare_codes(*mine.coded_values, *other.coded_values, mine.num_tokens, false);
    } else {
      compare_tiles(mine, other);
    }
  }

  void compare_halves(const Half* mine, const Half* other) {
    const auto found = read(mine, kTwinShape.head_dim);
    for (int64_t c = 0; c < kTwinShape.head_dim; ++c) ASSERT_EQ(found[c], other[c]);
  }

  // Whole blocks, ranges of keys and lists of outliers.
  void compare_codes(const CodedSide& mine, const CodedSide& other, int64_t num_tokens,
                     bool are_turned) {
    compare_blocks(device_, mine, other, are_turned ? mine.layout.num_bytes / 100 : 0);
    if (are_turned) return;
    if (mine.scales != nullptr) {
      compare_halves(mine.scales, other.scales);
      compare_halves(mine.zeros, other.zeros);
    }
    ASSERT_TRUE(std::equal(mine.segment_starts.begin(), mine.segment_starts.end(),
                           other.segment_starts.begin(), other.segment_starts.end()));
    ASSERT_EQ(mine.pages.size(), other.pages.size());
    if (mine.pages.empty()) return;
    int64_t num_entries = 0;
    for (int64_t tile = 0; tile * kTileTokens < num_tokens; ++tile) {
      const std::byte* block = other.blocks[tile / mine.shape.num_tiles];
      const int64_t at = tile % mine.shape.num_tiles * mine.shape.num_kv_heads + mine.head;
      const auto first = reinterpret_cast<const uint32_t*>(block + mine.layout.starts)[at];
      const auto count = reinterpret_cast<const uint16_t*>(block + mine.layout.counts)[at];
      num_entries = std::max<int64_t>(num_entries, first + count);
    }
    for (int64_t i = 0; i < num_entries; ++i) {
      const auto page = read(mine.pages[i / kOutliersPerPage], 1);
      const OutlierEntry &a = page[0].entries[i % kOutliersPerPage],
                         &b = other.pages[i / kOutliersPerPage]->entries[i % kOutliersPerPage];
      ASSERT_EQ(a.place, b.place) << "outlier " << i;
      ASSERT_EQ(a.value, b.value) << "outlier " << i;
    }
  }

  // Values to the bit; keys but for what fused multiplications of the rotation make of them.
  void compare_tiles(const AttendRun& mine, const AttendRun& other) {
    ASSERT_EQ(mine.type, other.type);
    ASSERT_EQ(mine.key_tiles.size(), other.key_tiles.size());
    const int64_t bytes = element_bytes(mine.type);
    for (int64_t token = 0; token < mine.num_tokens; ++token) {
      const auto tile = static_cast<size_t>(token / kTileTokens);
      for (int64_t c = 0; c < kTwinShape.head_dim; ++c) {
        const int64_t key = key_index(token % kTileTokens, c);
        const int64_t value = value_index(token % kTileTokens, c, kTwinShape.head_dim);
        ASSERT_NEAR(element(mine.type, mine.key_tiles[tile], key, true),
                    element(mine.type, other.key_tiles[tile], key, false), 2e-2);
        const auto found =
            read(static_cast<const std::byte*>(mine.value_tiles[tile]) + value * bytes, bytes);
        const auto* expected =
            static_cast<const std::byte*>(other.value_tiles[tile]) + value * bytes;
        ASSERT_EQ(std::memcmp(found.data(), expected, static_cast<size_t>(bytes)), 0);
      }
    }
  }
  float element(DenseType type, const void* tile, int64_t at, bool on_device) {
    if (!on_device) return dense_number(tile, type, at);
    alignas(4) std::byte bytes[4] = {};
    const auto* from = static_cast<const std::byte*>(tile) + at * element_bytes(type);
    device_.copy_out(bytes, from, element_bytes(type));
    return dense_number(bytes, type, 0);
  }

  CudaDevice& device_;
  ThreadPool& pool_;
  RopeTable rope_;
  KvCache host_;
  DeviceCache cache_;
  std::map<int64_t, int64_t> host_ids_;
  std::mt19937 rng_;
};

}  // namespace kvquant::test
