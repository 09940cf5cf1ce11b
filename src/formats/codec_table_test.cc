#include "formats/codec_table.h"

#include <gtest/gtest.h>

namespace kvquant {
namespace {

TEST(CodecTable, MarginalBitsAreTheBitsOfABlock) {
  const Codec plain = parse_spec("nuq3").key;
  EXPECT_DOUBLE_EQ(marginal_key_bits(plain, 64), 3);
  EXPECT_DOUBLE_EQ(marginal_key_bits(plain, 24), 4);  // padded to 32 channels
  EXPECT_DOUBLE_EQ(marginal_value_bits(plain, 64, 3), 3 + 32.0 / 192);
  const Codec sparse = parse_spec("nuq3-1%").key;
  EXPECT_DOUBLE_EQ(marginal_key_bits(sparse, 64), 3 + 0.32 + 48.0 / (64 * 64));
  EXPECT_DOUBLE_EQ(marginal_value_bits(sparse, 64, 3),
                   3 + 32.0 / 192 + 2.0 / 192 * 32 + 48.0 / (64 * 64));  // one on either end of 192
  const Codec rotated = parse_spec("had+int8").key;
  EXPECT_DOUBLE_EQ(marginal_key_bits(rotated, 64), 0);  // values only
  EXPECT_DOUBLE_EQ(marginal_value_bits(rotated, 64, 3), 8 + 32.0 / 192);
}

TEST(CodecTable, ListsBuiltAndPlannedCodecs) {
  int num_built = 0;
  for (const CodecRow& row : codec_table(64, 3)) {
    EXPECT_EQ(to_string(parse_spec(row.codec).key).rfind(row.codec, 0), 0u);
    EXPECT_EQ(row.value_bits > 0, row.built) << row.codec;
    num_built += row.built ? 1 : 0;
  }
  EXPECT_EQ(num_built, 13);
}

TEST(CodecTable, OutlierCountsRoundUpExactly) {
  EXPECT_EQ(num_value_outliers(192, 0), 0);
  EXPECT_EQ(num_value_outliers(192, 1), 1);
  EXPECT_EQ(num_value_outliers(200, 1), 1);
  EXPECT_EQ(num_value_outliers(201, 1), 2);
  EXPECT_EQ(num_value_outliers(1000, 0.6), 3);
  EXPECT_EQ(num_value_outliers(8, 0.000001), 1);
}

}  // namespace
}  // namespace kvquant
