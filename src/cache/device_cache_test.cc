// A cache in the memory of a device against KvCache: the same bytes, the same runs, the same
// attention. Emulated by the CPU and, where there is one, on a GPU.
#include "cache/device_cache.h"

#include <gtest/gtest.h>

#include <random>

#include "cache/device_cache_test_twins.h"
#include "kvquant/error.h"
#include "ops/cuda_device_test.h"
#include "quant/calibration_test_data.h"

namespace kvquant {
namespace {

constexpr const KvShape& kShape = test::kTwinShape;
constexpr int64_t kPositions = test::kTwinPositions, kRowSize = test::kTwinRowSize;
using test::Twins;
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
    "k=nuq4-1%,v=had+nuq3-2%,block=64",
    "k=nuq3-1%,v=fp16,block=64",
    "k=nuq4,v=bf16,sink=3,recent=10,block=64",
    "k=fp16,v=nuq4-1%,sink=5,block=64",
    "k=fp32,v=had+int4,sink=0,recent=70,block=64",
    "k=fp16,v=bf16,block=64",
    "k=bf16,v=fp32",
};
// Of calibrated caches: latents of values as codes, fp16 numbers and codes of several widths.
constexpr const char* kLatentSpecs[] = {
    "k=nuq3-1%,v=pca13,block=64",           "k=nuq4,v=pcaw9+int4,sink=3,recent=10,block=64",
    "k=int8,v=pca12+nuq3-2%,block=64",      "k=nuq4-1%,v=pca8+had+nuq2-5%,block=128",
    "k=nuq4-1%,v=pca16+wf4,block=64",       "k=fp16,v=pcaw13+wf2.5,sink=0,recent=1",
    "k=bf16,v=pca5,layers=1:nuq4,block=64", "nuq4-1%,v=pca7+int8,block=64",
};

// Latents of keys beside values of all kinds.
constexpr const char* kLatentKeySpecs[] = {
    "k=pca13,v=nuq4,block=64",          "k=pca9+int4,v=pca12+int8,sink=3,recent=10,block=64",
    "k=pca12+nuq3-2%,v=fp16,block=64",  "k=pca8+had+nuq2-5%,v=had+nuq3-1%,block=128",
    "k=pca16+wf4,v=bf16,block=64",      "k=pca5,v=pca7,sink=0,recent=1",
    "k=lnns+int8,v=fp32,layers=1:nuq4",
};

// Fitted to random numbers of their shape: bases of full rank.
std::shared_ptr<const Calibration> twin_calibration() {
  constexpr CalibrationShape kShape{2, 4, 2, 16};
  auto calibration = std::make_shared<Calibration>();
  calibration->info.shape = kShape;
  ThreadPool pool(1, ThreadPool::Pin::kNo);
  for (unsigned layer = 0; layer < 2; ++layer) {
    const TestLayer data(kShape, 1, 400, 5 + layer);
    calibration->layers.push_back(fit_layer(data.views, {.rank = 16}, pool));
  }
  return calibration;
}

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

TEST_P(DeviceCaches, HoldTheLatentsOfKvCacheChunkByChunk) {
  const auto calibration = twin_calibration();
  std::vector<const char*> specs(std::begin(kLatentSpecs), std::end(kLatentSpecs));
  specs.insert(specs.end(), std::begin(kLatentKeySpecs), std::end(kLatentKeySpecs));
  for (const char* spec : specs) {
    for (const CacheMode mode : {CacheMode::kAsServed, CacheMode::kStrict}) {
      SCOPED_TRACE(std::string(spec) + (mode == CacheMode::kStrict ? ", strict" : ", as served"));
      Twins twins(device(), pool_, spec, mode, 3, calibration);
      const auto a = twins.add();
      twins.append({{a, 70}});
      const auto b = twins.fork(a);
      for (const int64_t count : {1, 130, 3}) {
        twins.append({{a, count}, {b, 65}});
        if (HasFatalFailure()) return;
      }
      twins.drop(a);
      twins.append({{b, 1}});
      if (HasFatalFailure()) return;
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
  for (const char* spec : {"fp16", "nuq3-1%,block=64", "nuq2-5%,sink=3,recent=10,block=64",
                           "k=nuq3-1%,v=fp16,block=64", "k=fp16,v=nuq4-1%,sink=5,block=64"}) {
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

TEST_P(DeviceCaches, CodeASideTheSameWhateverTheOtherIs) {
  RopeTable rope(kShape.head_dim, kPositions, 10000);
  const auto x = testing::random_floats(300 * kRowSize, 3);
  DeviceArray<float> rows(device(), x);
  const auto blocks_of = [&](const char* spec, bool of_keys) {
    DeviceCache cache(kShape, parse_spec(spec), rope, device(), pool_, {.max_tokens = 400});
    const auto id = cache.add_sequence();
    for (int64_t layer = 0; layer < kShape.num_layers; ++layer) {
      cache.append(layer, id, {rows.data(), rows.data(), kRowSize, 300});
      cache.settle(layer, id);
    }
    const auto view = cache.view(0, id);
    const AttendRun& run = view.of_head(0)[1];
    const CodedSide& side = of_keys ? *run.coded_keys : *run.coded_values;
    std::vector<std::byte> bytes(static_cast<size_t>(side.layout.num_bytes));
    device().copy_out(bytes.data(), side.blocks[0], side.layout.num_bytes);
    return bytes;
  };
  EXPECT_EQ(blocks_of("k=nuq3-1%,v=fp16", true), blocks_of("nuq3-1%", true));
  EXPECT_EQ(blocks_of("k=bf16,v=nuq3-1%", false), blocks_of("nuq3-1%", false));
  EXPECT_NE(blocks_of("v=had+nuq3-1%,k=fp16", false), blocks_of("nuq3-1%", false));
}

TEST_P(DeviceCaches, SetLessAsideForAForkThanForASequence) {
  RopeTable rope(kShape.head_dim, kPositions, 10000);
  constexpr int64_t kFilled = 1000, kMost = 1500;
  for (const char* text : {"fp16", "nuq4-1%,block=64"}) {
    SCOPED_TRACE(text);
    const auto spec = parse_spec(text);
    const DeviceCache two(kShape, spec, rope, device(), pool_,
                          {.num_sequences = 2, .max_tokens = kMost});
    DeviceCache cache(kShape, spec, rope, device(), pool_, {.max_tokens = kMost, .num_forks = 1});
    EXPECT_LT(cache.memory_bytes(), two.memory_bytes());
    const auto append = [&](DeviceCache::SequenceId id, int64_t num_tokens) {
      const auto x = testing::random_floats(num_tokens * kRowSize, 7);
      const DeviceArray<float> rows(device(), x);
      for (int64_t layer = 0; layer < kShape.num_layers; ++layer) {
        cache.append(layer, id, {rows.data(), rows.data(), kRowSize, num_tokens});
        cache.settle(layer, id);
      }
    };
    const auto id = cache.add_sequence();
    for (int64_t n = 0; n < kFilled; n += 250) append(id, 250);
    for (int repetition = 0; repetition < 2; ++repetition) {
      const auto fork = cache.fork(id);
      for (int64_t n = kFilled; n < kMost; n += 250) append(fork, 250);
      cache.drop(fork);
    }
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

// Tiles of both are encoded together, behind the last layer.
TEST_P(DeviceCaches, OutOfMemoryBreaksOnlyTheSequencesThatNeededIt) {
  RopeTable rope(kShape.head_dim, kPositions, 10000);
  DeviceCache cache(kShape, parse_spec("nuq3-1%,block=64"), rope, device(), pool_,
                    {.max_tokens = 1500, .pool_bytes = 100000});
  const int64_t empty = cache.held_bytes();
  const auto x = testing::random_floats(200 * kRowSize, 1);
  DeviceArray<float> rows(device(), x);
  const auto append = [&](const std::vector<int64_t>& ids, int64_t count) {
    for (int64_t layer = 0; layer < kShape.num_layers; ++layer) {
      for (const auto id : ids)
        cache.append(layer, id, {rows.data(), rows.data(), kRowSize, count});
      for (const auto id : ids) cache.settle(layer, id);
    }
  };
  std::vector<int64_t> ids{cache.add_sequence(), cache.add_sequence()};
  append({ids[0]}, 70);
  EXPECT_THROW(
      {
        for (int i = 0; i < 6; ++i) append(ids, 200);
      },
      OutOfMemory);
  int num_broken = 0;
  for (const auto id : ids) {
    try {
      append({id}, 1);
    } catch (const std::invalid_argument&) {
      ++num_broken;
    } catch (const OutOfMemory&) {
    }
    cache.drop(id);
  }
  EXPECT_GE(num_broken, 1);
  EXPECT_EQ(cache.held_bytes(), empty);
  const auto fresh = cache.add_sequence();
  append({fresh}, 200);
  EXPECT_EQ(cache.length(fresh), 200);
}

TEST_P(DeviceCaches, RefuseWhatIsNotCalibratedAndWhatIsOutOfStep) {
  RopeTable rope(kShape.head_dim, kPositions, 10000);
  EXPECT_THROW(DeviceCache(kShape, parse_spec("k=pca12,v=fp16"), rope, device(), pool_, {}),
               std::invalid_argument);
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
