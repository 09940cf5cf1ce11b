#include "formats/code_bands.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "formats/code_bands_inl.h"
#include "formats/kv_block.h"
#include "formats/nuq_codebook.h"

namespace kvquant {
namespace {

TEST(CodeBands, BytesByHand) {
  const CodeBands bands{{16, 16, 16}};
  EXPECT_EQ(band_tile_bytes(bands), 1792);
  std::vector<uint8_t> tile(1792, 0);
  // Of (token 18, channel 9 of its band): row 2, slot 1, lane 9, half 0, word 18.
  tile[2 * 128 + 2 * 18 + 1] = 200;       // 8 bits: slot 1 is the high byte of u16[0][18]
  tile[1024 + 2 * 64 + 2 * 18] = 5 << 4;  // 4 bits: bits 4-7 of u16[18] of row 2
  tile[1536 + 64 + 2 * 18] = 3 << 2;      // 2 bits: rows 2 and 3 at 64, bits 2-3
  EXPECT_EQ(band_code_at(tile.data(), bands, 18, 9), 200);
  EXPECT_EQ(band_code_at(tile.data(), bands, 18, 25), 5 * 17);
  EXPECT_EQ(band_code_at(tile.data(), bands, 18, 41), 3 * 85);
  EXPECT_EQ(band_code_at(tile.data(), bands, 18, 40), 0);
}

TEST(CodeBands, LieOneBehindTheOther) {
  std::vector<CodeBand> found;
  for_each_band(CodeBands{{32, 0, 24}}, [&](const CodeBand& band) { found.push_back(band); });
  ASSERT_EQ(found.size(), 2u);
  EXPECT_EQ(found[0].bits, 8);
  EXPECT_EQ(found[0].first_channel, 0);
  EXPECT_EQ(found[1].bits, 2);
  EXPECT_EQ(found[1].first_channel, 32);
  EXPECT_EQ(found[1].num_channels, 24);
  EXPECT_EQ(found[1].offset, 8 * 8 * 32);
  EXPECT_FALSE(CodeBands{}.is_banded());
  EXPECT_EQ(band_tile_bytes({}), 0);
}

TEST(CodeBands, MakeBlocksOfTheirSize) {
  KvBlockShape shape{KvSide::kValue, 8, false, 3, 40, 2, true};
  shape.bands = {{16, 0, 24}};
  const KvBlockLayout layout = kv_block_layout(shape);
  EXPECT_EQ(layout.code_tile, 8 * 8 * 16 + 8 * 2 * 32);
  EXPECT_EQ(layout.scales, 2 * 3 * layout.code_tile);
  EXPECT_EQ(layout.zeros - layout.scales, 2 * 3 * 64 * 2);  // per token and head
}

TEST(CodeBands, WidenToCodesThatMeanTheSame) {
  std::mt19937 rng(7);
  for (const CodeBands bands :
       {CodeBands{{16, 16, 16}}, CodeBands{{0, 48, 8}}, CodeBands{{64, 0, 0}},
        CodeBands{{16, 32, 208}}, CodeBands{{0, 0, 8}}, CodeBands{{0, 24, 0}}}) {
    std::vector<uint8_t> tile(static_cast<size_t>(band_tile_bytes(bands)));
    for (uint8_t& byte : tile) byte = static_cast<uint8_t>(rng());
    const int64_t dim = bands.num_channels();
    std::vector<uint8_t> wide(static_cast<size_t>(code_tile_bytes(8, dim)) + 1);
    wide.back() = 0xA5;
    widen_codes(tile.data(), bands, wide.data());
    EXPECT_EQ(wide.back(), 0xA5);
    for_each_band(bands, [&](const CodeBand& band) {
      const NuqCodebook narrow = make_uniform_codebook(band.bits), bytes = make_uniform_codebook(8);
      for (int64_t t = 0; t < kTileTokens; ++t) {
        for (int64_t c = 0; c < band.num_channels; ++c) {
          const int64_t channel = band.first_channel + c;
          const int code = code_at(wide.data(), 8, code_place(KvSide::kValue, dim, t, channel));
          ASSERT_EQ(code, band_code_at(tile.data(), bands, t, channel)) << t << " " << channel;
          const int stored = code_at(tile.data() + band.offset, band.bits,
                                     code_place(KvSide::kValue, band.num_channels, t, c));
          ASSERT_NEAR(level_of(bytes, code), level_of(narrow, stored), 1e-6);
        }
      }
    });
  }
}

}  // namespace
}  // namespace kvquant
