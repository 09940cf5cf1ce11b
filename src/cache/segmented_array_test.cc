#include "cache/segmented_array.h"

#include <gtest/gtest.h>

#include <vector>

namespace kvquant {
namespace {

TEST(SegmentedArray, KeepsElementsAndTheirAddresses) {
  SegmentedArray<int64_t> array;
  EXPECT_EQ(array.size(), 0);
  EXPECT_EQ(array.num_bytes(), 0);
  std::vector<const int64_t*> addresses;
  for (int64_t i = 0; i < 5000; ++i) {
    array.push_back(3 * i);
    addresses.push_back(&array.back());
  }
  EXPECT_EQ(array.size(), 5000);
  for (int64_t i = 0; i < 5000; ++i) {
    ASSERT_EQ(array[i], 3 * i);
    ASSERT_EQ(&array[i], addresses[static_cast<size_t>(i)]);
  }
}

TEST(SegmentedArray, SegmentsDouble) {
  SegmentedArray<int32_t> array;
  const auto capacity_at = [&](int64_t size) {
    while (array.size() < size) array.push_back(0);
    return array.num_bytes() / 4;
  };
  EXPECT_EQ(capacity_at(1), 16);
  EXPECT_EQ(capacity_at(16), 16);
  EXPECT_EQ(capacity_at(17), 16 + 32);
  EXPECT_EQ(capacity_at(48), 48);
  EXPECT_EQ(capacity_at(49), 16 + 32 + 64);
}

}  // namespace
}  // namespace kvquant
