#include "eval/allocate.h"

#include <gtest/gtest.h>

namespace kvquant {
namespace {

Codec codec(const char* name) { return parse_spec(name).key; }

// Two layers of 100 values a side. The first layer's keys and the second's values mind most.
SensitivityTable small_table() {
  SensitivityTable table{.num_layers = 2, .num_values = 400, .tokens = 1, .rows = {}};
  const auto add = [&](int64_t layer, KvSide side, double kl2, double kl4) {
    table.rows.push_back({layer, side, codec("nuq2"), kl2, 25});
    table.rows.push_back({layer, side, codec("nuq4"), kl4, 50});
  };
  add(0, KvSide::kKey, 0.4, 0.01);
  add(0, KvSide::kValue, 0.1, 0.005);
  add(1, KvSide::kKey, 0.2, 0.01);
  add(1, KvSide::kValue, 0.3, 0.01);
  return table;
}

TEST(Allocate, BitsGoWhereTheySaveMost) {
  const Allocation half = allocate_bits(small_table(), 3);
  EXPECT_EQ(half.keys, (std::vector<Codec>{codec("nuq4"), codec("nuq2")}));
  EXPECT_EQ(half.values, (std::vector<Codec>{codec("nuq2"), codec("nuq4")}));
  EXPECT_EQ(half.bytes, 150);
  EXPECT_DOUBLE_EQ(half.bits, 3);
  EXPECT_NEAR(half.kl_sum, 0.01 + 0.1 + 0.2 + 0.01, 1e-12);
  EXPECT_NEAR(half.kl_lower_bound, half.kl_sum, 1e-9);
}

TEST(Allocate, ABudgetAboveTheLargestIsNoMore) {
  EXPECT_DOUBLE_EQ(allocate_bits(small_table(), 100).bits, 4);
  EXPECT_DOUBLE_EQ(allocate_bits(small_table(), 2).bits, 2);
}

TEST(Allocate, ABudgetThatCannotBeMetIsRefused) {
  EXPECT_THROW(allocate_bits(small_table(), 1.99), std::invalid_argument);
  EXPECT_THROW(allocate_bits(small_table(), -1), std::invalid_argument);
  SensitivityTable table = small_table();
  table.num_layers = 3;
  EXPECT_THROW(allocate_bits(table, 4), std::invalid_argument);
}

TEST(Allocate, MoreBitsNeverCostMore) {
  double before = 1e9;
  for (double bits = 2; bits <= 4; bits += 0.1) {
    const Allocation out = allocate_bits(small_table(), bits);
    EXPECT_LE(out.bits, bits + 1e-9);
    EXPECT_LE(out.kl_sum, before);
    before = out.kl_sum;
  }
}

TEST(Allocate, RivalsAreTheBestUniformOnesAndTheNextLarger) {
  const auto all = uniform_allocations(small_table());
  ASSERT_EQ(all.size(), 4u);
  EXPECT_DOUBLE_EQ(all[0].bits, 2);
  EXPECT_DOUBLE_EQ(all[3].bits, 4);
  const auto rivals = uniform_rivals(small_table(), 3, 1);  // k=nuq4,v=nuq2: 0.42; the other: 0.615
  ASSERT_EQ(rivals.size(), 1u);
  EXPECT_EQ(rivals[0].keys[1], codec("nuq4"));
  EXPECT_EQ(uniform_rivals(small_table(), 3.6, 9).size(), 4u);
  // A codec that a layer lacks makes no uniform spec.
  SensitivityTable table = small_table();
  table.rows.push_back({0, KvSide::kKey, codec("int8"), 0, 100});
  EXPECT_EQ(uniform_allocations(table).size(), 4u);
}

}  // namespace
}  // namespace kvquant
