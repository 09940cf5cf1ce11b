#include "base/walsh_hadamard.h"

#include <gtest/gtest.h>

#include <bit>
#include <vector>

namespace kvquant {
namespace {

TEST(WalshHadamard, IsTheMatrixOfSigns) {
  for (const int64_t size : {1, 2, 4, 16, 256}) {
    for (const int64_t column : {int64_t{0}, size / 2, size - 1}) {
      std::vector<float> x(static_cast<size_t>(size));
      x[static_cast<size_t>(column)] = 1;
      walsh_hadamard(x.data(), 1, size);
      for (int64_t i = 0; i < size; ++i) {
        const int sign = std::popcount(static_cast<uint64_t>(i & column)) % 2 == 0 ? 1 : -1;
        EXPECT_FLOAT_EQ(x[static_cast<size_t>(i)],
                        static_cast<float>(sign / std::sqrt(static_cast<double>(size))));
      }
    }
  }
}

TEST(WalshHadamard, TouchesOnlyItsStride) {
  std::vector<float> x = {1, 7, 3, 8};
  walsh_hadamard(x.data(), 2, 2);
  EXPECT_FLOAT_EQ(x[0], 4 / std::sqrt(2.0f));
  EXPECT_FLOAT_EQ(x[2], -2 / std::sqrt(2.0f));
  EXPECT_EQ(x[1], 7);
  EXPECT_EQ(x[3], 8);
}

}  // namespace
}  // namespace kvquant
