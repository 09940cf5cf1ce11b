#include "ops/cuda_sampling.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "ops/cuda_device_test.h"

namespace kvquant {
namespace {

class CudaSampling : public testing::OnEachDevice {};
INSTANTIATE_TEST_SUITE_P(Devices, CudaSampling, ::testing::ValuesIn(cuda_backends()),
                         testing::device_test_name);

std::vector<int32_t> best_by_hand(const std::vector<float>& x, int64_t count) {
  std::vector<int32_t> ids(x.size());
  std::iota(ids.begin(), ids.end(), 0);
  std::stable_sort(ids.begin(), ids.end(), [&](int32_t a, int32_t b) { return x[a] > x[b]; });
  ids.resize(static_cast<size_t>(count), -1);
  return ids;
}

TEST_P(CudaSampling, TheBestAreThoseOfASort) {
  for (const int64_t width : {1, 7, 130, 1000, 5003}) {
    for (const int64_t count : {1, 5, 40}) {
      for (const int64_t segment : {int64_t{64}, int64_t{900}, width}) {
        auto x = testing::random_floats(width, static_cast<unsigned>(width + count));
        for (float& value : x) value = std::round(value * 2);  // ties
        const DeviceArray<float> row(device(), x);
        const int64_t num_segments = (width + segment - 1) / segment;
        const DeviceArray<float> values(device(), num_segments * count), best(device(), count);
        const DeviceArray<int32_t> ids(device(), num_segments * count), best_ids(device(), count);
        device().run(
            CudaBest{row.data(), nullptr, width, segment, count, values.data(), ids.data()});
        device().run(CudaBest{values.data(), ids.data(), num_segments * count, num_segments * count,
                              count, best.data(), best_ids.data()});
        const auto found = best_ids.read(count);
        const auto numbers = best.read(count);
        ASSERT_EQ(found, best_by_hand(x, count)) << width << " " << count << " " << segment;
        for (size_t i = 0; i < found.size() && found[i] >= 0; ++i) {
          ASSERT_EQ(numbers[i], x[static_cast<size_t>(found[i])]);
        }
      }
    }
  }
}

TEST_P(CudaSampling, PenaltiesMakeTokensLessLikely) {
  const std::vector<float> logits{2, -2, 0, 3, -1};
  const std::vector<int32_t> ids{3, 1, 2};
  const DeviceArray<float> row(device(), logits);
  const DeviceArray<int32_t> named(device(), ids);
  device().run(CudaPenalise{row.data(), named.data(), 3, 1.5f});
  EXPECT_EQ(row.read(5), (std::vector<float>{2, -3, 0, 2, -1}));
}

}  // namespace
}  // namespace kvquant
