// The memory that a device cache sets aside for forks holds them.
#include <gtest/gtest.h>

#include <string>

#include "cache/device_cache.h"
#include "kvquant/error.h"
#include "ops/cuda_device_test.h"

namespace kvquant {
namespace {

constexpr KvShape kShape{2, 2, 64};
constexpr int64_t kRowSize = 128, kPositions = 1120, kForkTokens = 120;

class DeviceForks : public testing::OnEachDevice {
 protected:
  void append(DeviceCache& cache, DeviceCache::SequenceId id, int64_t count) {
    for (int64_t layer = 0; layer < kShape.num_layers; ++layer) {
      const DeviceArray<float> keys(device(), testing::random_floats(count * kRowSize, ++seed_));
      const DeviceArray<float> values(device(), testing::random_floats(count * kRowSize, ++seed_));
      cache.append(layer, id, {keys.data(), values.data(), kRowSize, count});
      cache.settle(layer, id);
    }
  }

  // A context whose beginnings are kept, and forks that go on behind it: all that eval has at once.
  void read_and_fork(DeviceCache& cache) {
    const auto id = cache.add_sequence();
    for (int64_t length = 100; length <= 1000; length += 100) {
      append(cache, id, 100);
      if (length == 300 || length == 700) cache.fork(id);
    }
    for (int i = 0; i < 2; ++i) {
      const auto fork = cache.fork(id);
      append(cache, fork, kForkTokens - 2);
      append(cache, fork, 1);
      append(cache, fork, 1);
    }
  }

  RopeTable rope_{kShape.head_dim, 2048, 10000};
  unsigned seed_ = 0;
};
INSTANTIATE_TEST_SUITE_P(Devices, DeviceForks, ::testing::ValuesIn(cuda_backends()),
                         testing::device_test_name);

TEST_P(DeviceForks, FitIntoWhatIsSetAsideForThemAndTheirSequence) {
  for (const char* spec :
       {"fp16", "nuq4", "nuq3-1%,block=64", "nuq2-5%,sink=3,recent=10,block=64", "int8,block=512",
        "k=fp16,v=nuq4-1%", "k=int4,v=had+int4,layers=0:fp16"}) {
    for (const CacheMode mode : {CacheMode::kAsServed, CacheMode::kStrict}) {
      SCOPED_TRACE(std::string(spec) + (mode == CacheMode::kStrict ? ", strict" : ", as served"));
      DeviceCacheOptions options{
          .mode = mode, .max_tokens = kPositions, .num_forks = 4, .fork_tokens = kForkTokens};
      DeviceCache cache(kShape, parse_spec(spec), rope_, device(), pool_, options);
      EXPECT_NO_THROW(read_and_fork(cache));
    }
  }
}

TEST_P(DeviceForks, TakeLessThanSequencesOfTheirLength) {
  DeviceCacheOptions options{.max_tokens = kPositions, .num_forks = 4, .fork_tokens = kForkTokens};
  const DeviceCache forks(kShape, parse_spec("nuq3-1%"), rope_, device(), pool_, options);
  options.num_sequences = 5, options.num_forks = 0;
  const DeviceCache sequences(kShape, parse_spec("nuq3-1%"), rope_, device(), pool_, options);
  options.num_sequences = 1;
  DeviceCache alone(kShape, parse_spec("fp16"), rope_, device(), pool_, options);
  EXPECT_LT(forks.memory_bytes(), sequences.memory_bytes());
  EXPECT_THROW(read_and_fork(alone), OutOfMemory) << "nothing was set aside for forks";
}

TEST_P(DeviceForks, CountsBelowZeroAreRefused) {
  EXPECT_THROW(DeviceCache(kShape, parse_spec("fp16"), rope_, device(), pool_, {.num_forks = -1}),
               std::invalid_argument);
}

}  // namespace
}  // namespace kvquant
