#include "cache/half_rows.h"

#include <gtest/gtest.h>

#include <vector>

namespace kvquant {
namespace {

constexpr int64_t kRowSize = 3;

TEST(HalfRows, AreTheSameWhereverTheyAreCut) {
  constexpr int64_t kRows = 5;
  std::vector<Half> numbers;
  for (int i = 0; i < kRows * kRowSize; ++i) numbers.push_back(to_half(static_cast<float>(i)));
  const std::span all(numbers);
  for (int64_t cut = 0; cut <= kRows; ++cut) {
    const HalfRows rows{all.first(cut * kRowSize), all.subspan(cut * kRowSize), kRowSize};
    ASSERT_EQ(rows.num_rows(), kRows);
    for (int64_t from = 0; from <= kRows; ++from) {
      const HalfRows head = rows.head(from), tail = rows.behind(from);
      ASSERT_EQ(head.num_rows(), from);
      ASSERT_EQ(tail.num_rows(), kRows - from);
      for (int64_t i = 0; i < kRows; ++i) {
        const auto row = i < from ? head.row(i) : tail.row(i - from);
        ASSERT_EQ(row.size(), size_t{kRowSize});
        EXPECT_EQ(row.data(), &numbers[i * kRowSize]) << cut << " " << from;
      }
    }
    float block[2 * 2];
    rows.widen_block(/*first_row=*/2, /*count=*/2, /*column=*/1, /*width=*/2, block);
    EXPECT_EQ(std::vector<float>(block, block + 4), (std::vector<float>{7, 8, 10, 11})) << cut;
  }
}

}  // namespace
}  // namespace kvquant
