#include "formats/code_planes.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

#include "formats/kv_block.h"

namespace kvquant {
namespace {

TEST(CodePlanes, BytesByHand) {
  std::vector<uint8_t> codes(64, 0);
  codes[0] = 1;
  codes[32] = 2;
  codes[63] = 15;
  std::vector<uint8_t> four(code_tile_bytes(4, 8), 0);
  add_code_row(four.data(), 4, 8, /*channel=*/1, codes.data());
  EXPECT_EQ(four[32], 0x21);
  EXPECT_EQ(four[32 + 31], 0xF0);
  EXPECT_EQ(std::count(four.begin(), four.end(), 0), 256 - 2);

  codes = std::vector<uint8_t>(64, 0);
  codes[0] = 1;
  codes[16] = 2;
  codes[32] = 3;
  codes[63] = 3;
  std::vector<uint8_t> two(code_tile_bytes(2, 8), 0);
  add_code_row(two.data(), 2, 8, 1, codes.data());
  EXPECT_EQ(two[16], 0x39);  // 3 << 4 | 2 << 2 | 1
  EXPECT_EQ(two[16 + 15], 0xC0);

  codes[9] = 4;
  codes[63] = 7;
  std::vector<uint8_t> three(code_tile_bytes(3, 8), 0);
  add_code_row(three.data(), 3, 8, 1, codes.data());
  EXPECT_EQ(three[16], 0x39);
  EXPECT_EQ(three[16 + 15], 0xC0);
  EXPECT_EQ(three[8 * 16 + 8 + 1], 0x02);  // token 9: bit 1 of byte 1
  EXPECT_EQ(three[8 * 16 + 8 + 7], 0x80);

  codes[63] = 255;
  std::vector<uint8_t> eight(code_tile_bytes(8, 8), 0);
  add_code_row(eight.data(), 8, 8, 1, codes.data());
  EXPECT_EQ(eight[64 + 16], 2);
  EXPECT_EQ(eight[64 + 63], 255);
}

class CodePlanesOfBits : public testing::TestWithParam<int> {};

TEST_P(CodePlanesOfBits, RowsComeBackAlsoWhenFilledInPieces) {
  const int bits = GetParam();
  for (const int64_t head_dim : {8, 16, 80, 256}) {
    std::mt19937 rng(static_cast<unsigned>(head_dim));
    const int64_t num_bytes = code_tile_bytes(bits, head_dim);
    std::vector<uint8_t> codes(64 * head_dim), tile(num_bytes + 1, 0);
    tile.back() = 0xA5;  // guard
    for (auto& code : codes) code = static_cast<uint8_t>(rng() % (1u << bits));
    for (int64_t c = 0; c < head_dim; ++c) {
      const auto split = static_cast<int64_t>(rng() % 65);
      uint8_t head[64] = {}, tail[64] = {};
      std::copy_n(&codes[64 * c], split, head);
      std::copy(&codes[64 * c] + split, &codes[64 * c] + 64, tail + split);
      add_code_row(tile.data(), bits, head_dim, c, head);
      add_code_row(tile.data(), bits, head_dim, c, tail);
    }
    EXPECT_EQ(tile.back(), 0xA5);
    for (int64_t c = 0; c < head_dim; ++c) {
      uint8_t back[64];
      read_code_row(tile.data(), bits, head_dim, c, back);
      EXPECT_TRUE(std::equal(back, back + 64, &codes[64 * c])) << "channel " << c;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(AllBits, CodePlanesOfBits, testing::Values(2, 3, 4, 8));

TEST(KvBlock, LayoutByHand) {
  const KvBlockLayout keys = kv_block_layout({KvSide::kKey, 4, false, 3, 64, 4});
  EXPECT_EQ(keys.code_tile, 2048);
  EXPECT_EQ(keys.num_bytes, 4 * 3 * 2048);
  const KvBlockLayout values = kv_block_layout({KvSide::kValue, 3, true, 3, 64, 4});
  EXPECT_EQ(values.code_tile, 1536);
  EXPECT_EQ(values.scales, 4 * 3 * 1536);
  EXPECT_EQ(values.zeros, values.scales + 4 * 128);
  EXPECT_EQ(values.starts, values.zeros + 4 * 128);
  EXPECT_EQ(values.counts, values.starts + 4 * 3 * 4);
  EXPECT_EQ(values.num_bytes, (values.counts + 4 * 3 * 64 + 63) / 64 * 64);
  const KvBlockLayout wide = kv_block_layout({KvSide::kKey, 2, true, 1, 256, 1});
  EXPECT_EQ(wide.num_bytes, (wide.counts + 128 + 63) / 64 * 64);  // u16 counts
}

}  // namespace
}  // namespace kvquant
