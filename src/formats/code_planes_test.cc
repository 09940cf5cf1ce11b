#include "formats/code_planes.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <tuple>
#include <vector>

#include "formats/kv_block.h"

namespace kvquant {
namespace {

struct HandCase {
  KvSide side;
  int bits;
  int64_t token, channel;
  int code;
  int64_t byte;
  uint8_t expected;
};

// head_dim 16: keys have 8 rows, the pair is (c, c + 8); values one vector of 16 channels.
TEST(CodePlanes, BytesByHand) {
  const HandCase cases[] = {
      {KvSide::kKey, 4, 18, 9, 5, 64 + 10, 0x50},         // row 1, slot 1, lane 2, half 1
      {KvSide::kKey, 4, 63, 0, 15, 62 - 1, 0xF0},         // row 0, slot 3, lane 15, half 0
      {KvSide::kKey, 2, 18, 9, 3, 11, 0x0C},              // row 1: the high byte of u16[5]
      {KvSide::kKey, 2, 34, 2, 2, 64 + 8, 0x20},          // row 2: the low byte, slot 2
      {KvSide::kKey, 3, 18, 9, 5, 64 + 10, 0x28},         // row 1, slot 1: bits 3-5 of u16[1][5]
      {KvSide::kKey, 3, 18, 11, 6, 64 + 11, 0x60},        // row 3, slot 1: bits 12-14
      {KvSide::kKey, 3, 50, 11, 4, 128 + 11, 0x80},       // row 3, slot 3: bit 15 of u16[2][5]
      {KvSide::kKey, 3, 50, 7, 2, 192 + 64 + 9, 0x80},    // row 7, slot 3: bit 15 of u16[1][4]
      {KvSide::kKey, 8, 18, 9, 200, 128 + 11, 200},       // slot 1: the high byte of u16[0][5]
      {KvSide::kKey, 8, 50, 1, 7, 128 + 64 + 9, 7},       // slot 3
      {KvSide::kValue, 4, 18, 9, 5, 128 + 36, 0x50},      // row 2, slot 1, lane 9, half 0
      {KvSide::kValue, 2, 63, 15, 3, 3 * 64 + 63, 0xC0},  // row 7, slot 3, lane 15, half 1
      {KvSide::kValue, 8, 1, 3, 9, 2 * 7, 9},             // row 0, slot 0, lane 3, half 1
  };
  for (const HandCase& hand : cases) {
    std::vector<uint8_t> tile(code_tile_bytes(hand.bits, 16), 0);
    std::vector<uint8_t> planar(16 * 64, 0);
    planar[hand.channel * 64 + hand.token] = static_cast<uint8_t>(hand.code);
    add_codes(tile.data(), hand.side, hand.bits, 16, planar.data());
    EXPECT_EQ(tile[hand.byte], hand.expected) << hand.bits << " bits, byte " << hand.byte;
    EXPECT_EQ(std::count(tile.begin(), tile.end(), 0), static_cast<int64_t>(tile.size()) - 1);
  }
}

using Case = std::tuple<KvSide, int>;
class CodePlanesOf : public testing::TestWithParam<Case> {};

TEST_P(CodePlanesOf, CodesComeBackAlsoWhenFilledInPieces) {
  const auto [side, bits] = GetParam();
  for (const int64_t head_dim : {8, 16, 24, 80, 256}) {
    std::mt19937 rng(static_cast<unsigned>(head_dim));
    const int64_t num_bytes = code_tile_bytes(bits, head_dim);
    std::vector<uint8_t> codes(64 * head_dim), head(codes.size()), tile(num_bytes + 1, 0);
    tile.back() = 0xA5;  // guard
    for (auto& code : codes) code = static_cast<uint8_t>(rng() % (1u << bits));
    std::vector<uint8_t> tail = codes;
    for (int64_t c = 0; c < head_dim; ++c) {
      const auto split = static_cast<int64_t>(rng() % 65);
      std::copy_n(&codes[64 * c], split, &head[64 * c]);
      std::fill_n(&tail[64 * c], split, uint8_t{0});
    }
    add_codes(tile.data(), side, bits, head_dim, head.data());
    add_codes(tile.data(), side, bits, head_dim, tail.data());
    EXPECT_EQ(tile.back(), 0xA5);
    std::vector<uint8_t> back(codes.size());
    read_codes(tile.data(), side, bits, head_dim, back.data());
    EXPECT_EQ(back, codes) << "head_dim " << head_dim;
  }
}

TEST_P(CodePlanesOf, EveryCodeHasAPlaceOfItsOwn) {
  const auto [side, bits] = GetParam();
  for (const int64_t head_dim : {8, 24, 64}) {
    std::vector<uint8_t> tile(code_tile_bytes(bits, head_dim), 0);
    const int most = (1 << bits) - 1;
    for (int64_t c = 0; c < head_dim; ++c) {
      for (int64_t t = 0; t < 64; ++t) {
        const CodePlace place = code_place(side, head_dim, t, c);
        ASSERT_EQ(code_at(tile.data(), bits, place), 0);
        add_code(tile.data(), bits, place, most);
        ASSERT_EQ(code_at(tile.data(), bits, place), most);
      }
    }
    const CodePlace place = code_place(side, head_dim, 37, 5);
    std::vector<uint8_t> before = tile;
    clear_code(tile.data(), bits, place);
    EXPECT_EQ(code_at(tile.data(), bits, place), 0);
    add_code(tile.data(), bits, place, most);
    EXPECT_EQ(tile, before);
  }
}

INSTANTIATE_TEST_SUITE_P(All, CodePlanesOf,
                         testing::Combine(testing::Values(KvSide::kKey, KvSide::kValue),
                                          testing::Values(2, 3, 4, 8)));

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
  EXPECT_EQ(values.num_bytes, (values.counts + 4 * 3 * 2 + 63) / 64 * 64);
  const KvBlockLayout wide = kv_block_layout({KvSide::kKey, 2, true, 1, 256, 1});
  EXPECT_EQ(wide.num_bytes, (wide.counts + 2 + 63) / 64 * 64);
  EXPECT_EQ(kv_block_layout({KvSide::kKey, 4, false, 1, 24, 1}).code_tile, 4 * 8 * 32);  // padded
}

}  // namespace
}  // namespace kvquant
