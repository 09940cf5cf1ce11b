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

TEST(CodecTable, MarginalBitsOfLatentsArePerValueBeforeTheTransform) {
  const auto bits = [](const char* codec, int64_t head_dim) {
    return marginal_value_bits(parse_spec(codec).key, head_dim, 3);
  };
  EXPECT_DOUBLE_EQ(bits("pca48", 64), 16 * 48.0 / 64);
  EXPECT_DOUBLE_EQ(bits("pca41", 64), 16 * 48.0 / 64);  // padded to 48 components
  EXPECT_DOUBLE_EQ(bits("pca64", 64), 16);
  EXPECT_DOUBLE_EQ(bits("pca48+int8", 64), (8 * 48 + 32) / 64.0);   // scale and zero of a head
  EXPECT_DOUBLE_EQ(bits("pcaw40+int4", 64), (4 * 48 + 32) / 64.0);  // codes come in 16 channels
  EXPECT_DOUBLE_EQ(bits("pca48+wf2.5", 64), (2.5 * 48 + 32) / 64.0);
  EXPECT_DOUBLE_EQ(bits("lnns+int8", 64), (8 * 64 + 32) / 64.0);
  EXPECT_DOUBLE_EQ(bits("pca32+had+nuq3-1%", 64),
                   (3 * 32 + 32 + 2 * 32) / 64.0 + 48.0 / (64 * 64));  // one on either end of 32
  for (const char* codec : {"pca41", "pca48+int8", "pca32+had+nuq3-1%", "lnns+int4"}) {
    EXPECT_DOUBLE_EQ(marginal_key_bits(parse_spec(codec).key, 64), bits(codec, 64)) << codec;
  }
  EXPECT_DOUBLE_EQ(marginal_key_bits(parse_spec("pcaw48").key, 64), 0);  // values only
}

TEST(CodecTable, LatentsKeepTheirRankAndSomethingBetweenOutliers) {
  const auto rank = [](const char* codec) { return latent_rank(parse_spec(codec).key, 64); };
  EXPECT_EQ(rank("pca12+int8"), 12);
  EXPECT_EQ(rank("pcaw12+had+int8"), 12);
  EXPECT_EQ(rank("lnns"), 63);
  EXPECT_EQ(rank("had+int8"), 64);
  EXPECT_TRUE(has_latents(parse_spec("lnns+int8").key));
  EXPECT_FALSE(has_latents(parse_spec("had+int8").key));
  EXPECT_EQ(num_latent_outliers(48, 1), 1);
  EXPECT_EQ(num_latent_outliers(2, 1), 0);
  EXPECT_EQ(num_latent_outliers(3, 5), 1);
}

TEST(CodecTable, ListsBuiltAndPlannedCodecs) {
  int num_built = 0;
  for (const CodecRow& row : codec_table(64, 3)) {
    EXPECT_EQ(to_string(parse_spec(row.codec).key).rfind(row.codec, 0), 0u);
    EXPECT_EQ(row.value_bits > 0, row.built) << row.codec;
    num_built += row.built ? 1 : 0;
  }
  EXPECT_EQ(num_built, 19);
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
