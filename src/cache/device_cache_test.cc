// A cache in the memory of a device against KvCache: the same bytes, the same runs, the same
// attention. Emulated by the CPU and, where there is one, on a GPU.
#include "cache/device_cache.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <map>
#include <random>

#include "kvquant/error.h"
#include "ops/cuda_device_test.h"

namespace kvquant {
namespace {

constexpr KvShape kShape{2, 2, 16};
constexpr int64_t kGroup = 2, kPositions = 1500, kRowSize = 32, kWidth = 2 * kRowSize;
constexpr const char* kSpecs[] = {
    "fp16",
    "bf16,block=64",
    "fp32,block=128",
    "nuq4",
    "nuq3-1%,block=64",
    "nuq2-5%,sink=3,recent=10,block=64",
    "int8,block=64",
    "int4,sink=2,recent=30",
    "nuq4-1%,layers=1:fp16,sink=70,recent=65",
    "nuq3,layers=0:k=nuq2-3%,recent=1,sink=0,block=128",
};

// Both caches, fed alike.
class Twins {
 public:
  Twins(CudaDevice& device, ThreadPool& pool, const char* spec, CacheMode mode,
        int64_t num_sequences = 3)
      : device_(device),
        pool_(pool),
        rope_(kShape.head_dim, kPositions, 10000),
        host_(kShape, parse_spec(spec), mode, rope_, pool),
        cache_(kShape, parse_spec(spec), rope_, device, pool,
               {.mode = mode, .num_sequences = num_sequences, .max_tokens = kPositions}),
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
    for (int64_t layer = 0; layer < kShape.num_layers; ++layer) {
      std::vector<std::vector<float>> keys, values, queries, expected;
      std::vector<DeviceArray<float>> memory;
      std::vector<DeviceCache::Queries> asked;
      for (const auto& [id, count] : chunks) {
        keys.push_back(rows(count, kRowSize));
        values.push_back(rows(count, kRowSize));
        queries.push_back(rows(count, kWidth));
        memory.emplace_back(device_, keys.back());
        memory.emplace_back(device_, values.back());
        memory.emplace_back(device_, queries.back());
        memory.emplace_back(device_, count * kWidth);
        const auto* of = &memory[memory.size() - 4];
        cache_.append(layer, id, {of[0].data(), of[1].data(), kRowSize, count});
        asked.push_back({id, of[2].data(), of[3].data(), kWidth, count});
        const auto view3 = [&](const std::vector<float>& x) {
          return row_major<const float, 3>(x.data(), {count, kShape.num_kv_heads, kShape.head_dim});
        };
        host_.append(layer, host_ids_[id], view3(keys.back()), view3(values.back()));
        expected.push_back(attend_host(layer, id, queries.back(), count));
      }
      cache_.attend(layer, asked, shape(), Precision::kF32);
      for (size_t i = 0; i < chunks.size(); ++i) {
        const auto found = memory[4 * i + 3].read(std::ssize(expected[i]));
        for (size_t k = 0; k < found.size(); ++k) {
          ASSERT_NEAR(found[k], expected[i][k], 2e-3) << "layer " << layer << ", number " << k;
        }
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
    const auto view = cache_.view(layer, id);
    host_.prepare_view(layer, host_ids_[id]);
    for (int64_t head = 0; head < kShape.num_kv_heads; ++head) {
      const auto mine = view.of_head(head), other = host_.view(layer, host_ids_[id], head);
      ASSERT_EQ(mine.size(), other.size());
      for (size_t i = 0; i < mine.size(); ++i) compare_runs(mine[i], other[i]);
    }
  }

  DeviceCache& cache() { return cache_; }
  KvCache& host() { return host_; }
  int64_t host_id(int64_t id) { return host_ids_[id]; }

 private:
  static AttendShape shape() { return {kShape.head_dim, kGroup, 0.25f}; }

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
    const bool is_last = layer + 1 == kShape.num_layers;
    for (int64_t head = 0; head < kShape.num_kv_heads; ++head) {
      jobs.push_back({.query = query.data() + head * kRowSize,
                      .out = out.data() + head * kRowSize,
                      .query_stride = kWidth,
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
    ASSERT_EQ(mine.min_lag, other.min_lag);
    ASSERT_EQ(mine.max_lag, other.max_lag);
    ASSERT_EQ(mine.is_rows(), other.is_rows());
    ASSERT_EQ(mine.is_coded(), other.is_coded());
    if (mine.is_rows()) {
      for (int64_t t = 0; t < mine.num_tokens; ++t) {
        compare_halves(mine.key_rows + t * kRowSize, other.key_rows + t * kRowSize);
        compare_halves(mine.value_rows + t * kRowSize, other.value_rows + t * kRowSize);
      }
    } else if (mine.is_coded()) {
      compare_codes(*mine.coded_keys, *other.coded_keys, mine.num_tokens);
      compare_codes(*mine.coded_values, *other.coded_values, mine.num_tokens);
    } else {
      compare_tiles(mine, other);
    }
  }

  void compare_halves(const Half* mine, const Half* other) {
    const auto found = read(mine, kShape.head_dim);
    for (int64_t c = 0; c < kShape.head_dim; ++c) ASSERT_EQ(found[c], other[c]);
  }

  // Whole blocks, ranges of keys and lists of outliers.
  void compare_codes(const CodedSide& mine, const CodedSide& other, int64_t num_tokens) {
    ASSERT_EQ(mine.blocks.size(), other.blocks.size());
    const auto size = static_cast<size_t>(mine.layout.num_bytes);
    for (size_t i = 0; i < mine.blocks.size(); ++i) {
      const auto block = read(mine.blocks[i], mine.layout.num_bytes);
      ASSERT_EQ(std::memcmp(block.data(), other.blocks[i], size), 0) << "block " << i;
    }
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
      for (int64_t c = 0; c < kShape.head_dim; ++c) {
        const int64_t key = key_index(token % kTileTokens, c);
        const int64_t value = value_index(token % kTileTokens, c, kShape.head_dim);
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
    std::byte bytes[4] = {};
    const auto* from = static_cast<const std::byte*>(tile) + at * element_bytes(type);
    if (on_device) {
      device_.copy_out(bytes, from, element_bytes(type));
    } else {
      std::memcpy(bytes, from, static_cast<size_t>(element_bytes(type)));
    }
    Half half{};
    BFloat16 bf16{};
    float f32 = 0;
    std::memcpy(&half, bytes, 2);
    std::memcpy(&bf16, bytes, 2);
    std::memcpy(&f32, bytes, 4);
    if (type == DenseType::kF32) return f32;
    return type == DenseType::kF16 ? to_float(half) : to_float(bf16);
  }

  CudaDevice& device_;
  ThreadPool& pool_;
  RopeTable rope_;
  KvCache host_;
  DeviceCache cache_;
  std::map<int64_t, int64_t> host_ids_;
  std::mt19937 rng_;
};

class DeviceCaches : public testing::OnEachDevice {};
INSTANTIATE_TEST_SUITE_P(Devices, DeviceCaches, ::testing::ValuesIn(cuda_backends()),
                         testing::device_test_name);

TEST_P(DeviceCaches, HoldTheBytesOfKvCacheChunkByChunk) {
  for (const char* spec : kSpecs) {
    for (const CacheMode mode : {CacheMode::kAsServed, CacheMode::kStrict}) {
      SCOPED_TRACE(std::string(spec) + (mode == CacheMode::kStrict ? ", strict" : ", as served"));
      Twins twins(device(), pool_, spec, mode);
      const auto id = twins.add();
      for (const int64_t count : {1, 5, 62, 65, 130, 3}) {
        twins.append({{id, count}});
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(DeviceCaches, AttendRaggedBatchesInOneCall) {
  for (const char* spec : {"fp16", "nuq3-1%,block=64", "int8"}) {
    SCOPED_TRACE(spec);
    Twins twins(device(), pool_, spec, CacheMode::kAsServed);
    const auto a = twins.add(), b = twins.add(), c = twins.add();
    twins.append({{a, 200}, {b, 1}});
    twins.append({{c, 300}, {a, 1}, {b, 140}});
    twins.append({{a, 1}, {b, 1}, {c, 1}});
    if (HasFatalFailure()) return;
  }
}

TEST_P(DeviceCaches, FollowKvCacheThroughRandomOperations) {
  std::mt19937 rng(5);
  const auto below = [&](int64_t end) {
    return static_cast<int64_t>(rng() % static_cast<uint64_t>(end));
  };
  for (const char* spec : {"fp16,block=64", "nuq3-1%,block=64,sink=3,recent=20", "nuq4"}) {
    SCOPED_TRACE(spec);
    Twins twins(device(), pool_, spec, CacheMode::kAsServed);
    std::vector<int64_t> ids{twins.add()};
    for (int step = 0; step < 15; ++step) {
      const int64_t id = ids[static_cast<size_t>(below(std::ssize(ids)))];
      const int64_t length = twins.cache().length(id), action = below(10);
      if (action == 0 && ids.size() < 3) {
        ids.push_back(step % 2 == 0 ? twins.add() : twins.fork(id));
      } else if (action == 1 && ids.size() > 1) {
        twins.drop(id);
        std::erase(ids, id);
      } else if (action < 5) {
        twins.truncate(id, std::max<int64_t>(0, length - below(100)));
      } else if (length < 1200) {
        twins.append({{id, 1 + (below(3) == 0 ? below(200) : below(4))}});
      }
      if (HasFatalFailure()) return;
    }
    for (const int64_t id : ids) twins.drop(id);
  }
}

TEST_P(DeviceCaches, ForksShareWhatNobodyWritesAndGoOnAlone) {
  for (const char* spec : kSpecs) {
    for (const CacheMode mode : {CacheMode::kAsServed, CacheMode::kStrict}) {
      SCOPED_TRACE(std::string(spec) + (mode == CacheMode::kStrict ? ", strict" : ", as served"));
      Twins twins(device(), pool_, spec, mode);
      DeviceCache& cache = twins.cache();
      const auto a = twins.add();
      const int64_t empty = cache.held_bytes();
      twins.append({{a, 2}});
      const auto b = twins.fork(a);
      twins.append({{a, 220}, {b, 75}});
      const int64_t held = cache.held_bytes();
      const auto c = twins.fork(a);
      EXPECT_EQ(cache.held_bytes(), held) << "a fork alone takes nothing";
      const int64_t both[] = {a, c};
      EXPECT_EQ(cache.held_bytes(both) - empty, 2 * (cache.held_bytes({both, 1}) - empty));
      twins.append({{c, 70}, {a, 130}});
      twins.append({{a, 1}, {b, 1}, {c, 1}});
      if (HasFatalFailure()) return;
      twins.drop(a);
      twins.append({{c, 65}});
      for (const auto id : {b, c}) twins.drop(id);
      EXPECT_EQ(cache.held_bytes(), empty);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(DeviceCaches, CopiesShareNothing) {
  for (const char* spec : {"fp16", "nuq3-1%,block=64"}) {
    SCOPED_TRACE(spec);
    Twins twins(device(), pool_, spec, CacheMode::kAsServed);
    DeviceCache& cache = twins.cache();
    const auto a = twins.add();
    const int64_t empty = cache.held_bytes();
    twins.append({{a, 300}});
    const int64_t held = cache.held_bytes();
    const auto b = cache.copy(a);
    EXPECT_EQ(cache.held_bytes() - held, held - empty);
    twins.adopt(b, a);
    twins.drop(a);
    EXPECT_EQ(cache.held_bytes(), held);
    twins.append({{b, 100}});
    if (HasFatalFailure()) return;
  }
}

TEST_P(DeviceCaches, FitKeysAnewWhereTheyDrift) {
  RopeTable rope(kShape.head_dim, kPositions, 10000);
  const auto spec = parse_spec("nuq4-1%,block=64");
  KvCache host(kShape, spec, CacheMode::kAsServed, rope, pool_);
  DeviceCache cache(kShape, spec, rope, device(), pool_,
                    {.max_tokens = 1500, .pool_bytes = 1 << 20});
  const auto id = cache.add_sequence(), host_id = host.add_sequence();
  for (int chunk = 0; chunk < 3; ++chunk) {
    for (int64_t layer = 0; layer < kShape.num_layers; ++layer) {
      auto x = testing::random_floats(400 * kRowSize, static_cast<unsigned>(chunk + 10 * layer));
      for (float& value : x) value += 9.0f * static_cast<float>(chunk);
      const auto view = row_major<const float, 3>(x.data(), {400, 2, 16});
      host.append(layer, host_id, view, view);
      DeviceArray<float> rows(device(), x);
      cache.append(layer, id, {rows.data(), rows.data(), kRowSize, 400});
      cache.settle(layer, id);
    }
    host.settle(host_id);
  }
  for (int64_t layer = 0; layer < kShape.num_layers; ++layer) {  // a token that reads them
    const std::vector<float> x(kRowSize);
    const auto one = row_major<const float, 3>(x.data(), {1, 2, 16});
    host.append(layer, host_id, one, one);
    DeviceArray<float> rows(device(), x);
    cache.append(layer, id, {rows.data(), rows.data(), kRowSize, 1});
    if (layer == 0) cache.settle(layer, id);
  }
  host.prepare_view(1, host_id);
  const auto view = cache.view(1, id);
  const CodedSide &mine = *view.of_head(1)[1].coded_keys,
                  &other = *host.view(1, host_id, 1)[1].coded_keys;
  ASSERT_GE(other.segment_starts.size(), 1u) << "the test drifts too little";
  ASSERT_TRUE(std::equal(mine.segment_starts.begin(), mine.segment_starts.end(),
                         other.segment_starts.begin(), other.segment_starts.end()));
  const int64_t size = std::ssize(other.segment_starts) * other.segment_stride + kShape.head_dim;
  std::vector<Half> scales(static_cast<size_t>(size));
  device().copy_out(scales.data(), mine.scales, size * 2);
  for (int64_t i = 0; i < size; ++i) ASSERT_EQ(scales[i], other.scales[i]) << i;
}

TEST_P(DeviceCaches, AllocateEverythingAtOnceAndCountAllOfIt) {
  const int64_t before = device().allocated_bytes();
  Twins twins(device(), pool_, "nuq3-1%,block=64", CacheMode::kAsServed);
  const auto id = twins.add();
  const int64_t empty = twins.cache().held_bytes();
  twins.append({{id, 140}});
  for (int i = 0; i < 66; ++i) twins.append({{id, 1}});  // scratch of steps and of a tile is there
  EXPECT_EQ(device().allocated_bytes() - before, twins.cache().memory_bytes());
  const int64_t allocated = twins.cache().memory_bytes();
  for (int i = 0; i < 70; ++i) {
    twins.append({{id, 1}});
    if (HasFatalFailure()) return;
  }
  EXPECT_EQ(twins.cache().memory_bytes(), allocated) << "tokens allocate";
  EXPECT_GT(twins.cache().held_bytes(), empty);
  twins.drop(id);
  EXPECT_EQ(twins.cache().held_bytes(), empty);
}

TEST_P(DeviceCaches, OutOfMemoryIsAnErrorAndOtherSequencesGoOn) {
  RopeTable rope(kShape.head_dim, kPositions, 10000);
  const auto spec = parse_spec("nuq3-1%,block=64");
  DeviceCache cache(kShape, spec, rope, device(), pool_,
                    {.max_tokens = 1500, .pool_bytes = 100000});
  const auto x = testing::random_floats(400 * kRowSize, 1);
  DeviceArray<float> rows(device(), x);
  const auto append = [&](int64_t id, int64_t count) {
    for (int64_t layer = 0; layer < kShape.num_layers; ++layer) {
      cache.append(layer, id, {rows.data(), rows.data(), kRowSize, count});
      cache.settle(layer, id);
    }
  };
  const auto small = cache.add_sequence(), big = cache.add_sequence();
  append(small, 100);
  const int64_t held = cache.held_bytes();
  EXPECT_THROW(
      {
        for (int i = 0; i < 3; ++i) append(big, 400);
      },
      OutOfMemory);
  EXPECT_THROW(append(big, 1), std::invalid_argument) << "it can only be dropped";
  cache.drop(big);
  EXPECT_EQ(cache.held_bytes(), held);
  append(small, 1);
  EXPECT_EQ(cache.length(small), 101);
}

TEST_P(DeviceCaches, RefuseWhatIsNotBuiltAndWhatIsOutOfStep) {
  RopeTable rope(kShape.head_dim, kPositions, 10000);
  for (const char* spec :
       {"k=nuq4,v=fp16", "k=nuq4,v=had+nuq4", "k=fp16,v=lnns", "k=fp16,v=bf16"}) {
    EXPECT_THROW(DeviceCache(kShape, parse_spec(spec), rope, device(), pool_, {}),
                 std::invalid_argument)
        << spec;
  }
  DeviceCache cache(kShape, parse_spec("nuq4"), rope, device(), pool_,
                    {.max_tokens = 100, .chunk_tokens = 50});
  const auto id = cache.add_sequence();
  DeviceArray<float> rows(device(), testing::random_floats(200 * kRowSize, 1));
  const auto chunk = [&](int64_t count) {
    return DeviceChunk{rows.data(), rows.data(), kRowSize, count};
  };
  EXPECT_THROW(cache.append(1, id, chunk(1)), std::invalid_argument);
  EXPECT_THROW(cache.append(0, id, chunk(0)), std::invalid_argument);
  EXPECT_THROW(cache.append(0, id, chunk(51)), std::invalid_argument);
  EXPECT_THROW(cache.append(0, id + 1, chunk(1)), std::invalid_argument);
  cache.append(0, id, chunk(50));
  EXPECT_THROW(cache.append(0, id, chunk(1)), std::invalid_argument) << "not settled";
  cache.settle(0, id);
  EXPECT_THROW(cache.truncate(id, 0), std::invalid_argument) << "between layers";
}

}  // namespace
}  // namespace kvquant
