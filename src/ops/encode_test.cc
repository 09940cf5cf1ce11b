#include "ops/encode.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <stdexcept>
#include <vector>

#include "base/half.h"
#include "formats/dense_tile.h"
#include "ops/decode.h"

namespace kvquant {
namespace {

NuqCodebook test_codebook(int bits) {
  std::vector<float> levels;
  const int count = 1 << bits;
  for (int i = 0; i < count; ++i) {
    const float x = -1 + 2 * static_cast<float>(i) / static_cast<float>(count - 1);
    levels.push_back(x * (0.6f + 0.4f * std::abs(x)));
  }
  return make_codebook(levels);
}

struct TileData {
  TileData(int64_t head_dim, ScaleAxis axis, unsigned seed)
      : planar(64 * head_dim),
        scales(axis == ScaleAxis::kToken ? 64 : head_dim),
        zeros(scales.size()) {
    std::mt19937 rng(seed);
    std::student_t_distribution<float> heavy_tailed(3);
    for (float& x : planar) x = round_to_half(heavy_tailed(rng));
    for (float& s : scales) s = round_to_half(std::abs(heavy_tailed(rng)));
    for (float& z : zeros) z = round_to_half(heavy_tailed(rng));
    scales[1] = 0;
    scales[2] = 0x1p-24f;  // the smallest fp16
  }
  std::vector<float> planar, scales, zeros;
};

TEST(EncodeReference, CodesByHand) {
  const NuqCodebook book = make_codebook(std::vector<float>{-1, -0.5f, 0.5f, 1});
  std::vector<float> planar(8 * 64, 0.0f), scales(8, 2.0f), zeros(8, 1.0f);
  planar[0] = 1;        // y = 0: a tie of levels 1 and 2 goes to the lower
  planar[1] = 1.0001f;  // level 2
  planar[17] = 2.5f;    // y = 0.75, a tie again: level 2
  planar[63] = 100;     // clamped to level 3
  planar[33] = -100;    // level 0
  std::vector<uint8_t> codes(code_tile_bytes(2, 8), 0);
  ref::encode_tile({.codebook = &book,
                    .planar = planar.data(),
                    .scales = scales.data(),
                    .zeros = zeros.data(),
                    .head_dim = 8,
                    .num_tokens = 64,
                    .codes = codes.data()});
  // All other values are 0: y = -0.5, level 1.
  EXPECT_EQ(codes[0], 0b01'01'01'01);
  EXPECT_EQ(codes[1], 0b01'00'10'10);  // tokens 1, 17, 33, 49 from the low bits
  EXPECT_EQ(codes[15], 0b11'01'01'01);
}

TEST(Encode, WritesTheReferenceBytesAlsoInPieces) {
  for (const int bits : {2, 3, 4}) {
    for (const int64_t head_dim : {8, 16, 64, 80, 128, 256}) {
      for (const ScaleAxis axis : {ScaleAxis::kChannel, ScaleAxis::kToken}) {
        const NuqCodebook book = test_codebook(bits);
        const TileData data(head_dim, axis, static_cast<unsigned>(head_dim + bits));
        std::vector<uint8_t> expected(code_tile_bytes(bits, head_dim), 0), actual(expected);
        EncodeJob job{.codebook = &book,
                      .planar = data.planar.data(),
                      .scales = data.scales.data(),
                      .zeros = data.zeros.data(),
                      .axis = axis,
                      .head_dim = head_dim,
                      .num_tokens = 64,
                      .codes = expected.data()};
        encode_tile(job, Backend::kReference);
        job.codes = actual.data();
        int64_t piece = 1;
        for (int64_t first = 0; first < 64; first += piece, piece = 2 * piece + 1) {
          job.first_token = first;
          job.num_tokens = std::min<int64_t>(piece, 64 - first);
          encode_tile(job, Backend::kSimd);
        }
        EXPECT_EQ(actual, expected) << bits << " bits, head_dim " << head_dim;
      }
    }
  }
}

TEST(Encode, RefusesTokensOutsideTheTile) {
  const NuqCodebook book = test_codebook(2);
  EXPECT_THROW(encode_tile({.codebook = &book, .first_token = 60, .num_tokens = 5}),
               std::invalid_argument);
}

TEST(Decode, EqualsTheReferenceBitForBitWithOutliers) {
  for (const int bits : {2, 3, 4}) {
    for (const int64_t head_dim : {8, 16, 64, 80, 128, 256}) {
      for (const ScaleAxis axis : {ScaleAxis::kChannel, ScaleAxis::kToken}) {
        const NuqCodebook book = test_codebook(bits);
        const TileData data(head_dim, axis, static_cast<unsigned>(head_dim));
        std::mt19937 rng(7);
        std::vector<uint8_t> codes(code_tile_bytes(bits, head_dim));
        for (auto& byte : codes) byte = static_cast<uint8_t>(rng());
        std::vector<uint8_t> counts(128, 0);
        counts[head_dim > 255 ? 6 : 3] = 2;  // token 3
        OutlierPage page{};
        page.channel[127] = 1;
        page.value[127] = to_half(42.0f);
        OutlierPage next{};
        next.channel[0] = 5;
        next.value[0] = to_half(-7.0f);
        const OutlierPage* pages[] = {&page, &next};
        const DecodeJob job{.codebook = &book,
                            .codes = codes.data(),
                            .scales = data.scales.data(),
                            .zeros = data.zeros.data(),
                            .axis = axis,
                            .head_dim = head_dim,
                            .num_tokens = 61,
                            .outliers = {counts.data(), 127, pages}};
        std::vector<float> expected(64 * head_dim, -1.0f), actual(64 * head_dim, -2.0f);
        decode_tile(job, expected.data(), Backend::kReference);
        decode_tile(job, actual.data(), Backend::kSimd);
        EXPECT_EQ(actual, expected);
        EXPECT_EQ(actual[64 * 1 + 3], 42.0f);
        EXPECT_EQ(actual[64 * 5 + 3], -7.0f);
        EXPECT_EQ(actual[61], 0.0f);  // not in use
      }
    }
  }
}

TEST(Decode, KeyTilesAreRotatedAsByRope) {
  for (const int64_t head_dim : {8, 64, 80}) {
    const RopeTable table(head_dim, 70, 10000);
    const TileData data(head_dim, ScaleAxis::kChannel, 3);
    std::vector<float> cos(32 * head_dim), sin(32 * head_dim);
    fill_rope_tile(table, /*first_position=*/5, cos.data(), sin.data());
    for (const Backend backend : {Backend::kReference, Backend::kSimd}) {
      std::vector<float> tile(64 * head_dim), row(head_dim);
      rotate_to_key_tile(data.planar.data(), cos.data(), sin.data(), head_dim, tile.data(),
                         backend);
      for (int64_t t = 0; t < 64; ++t) {
        for (int64_t c = 0; c < head_dim; ++c) row[c] = data.planar[64 * c + t];
        rope_row(row.data(), table.cos(5 + t), table.sin(5 + t), head_dim);
        for (int64_t c = 0; c < head_dim; ++c) {
          const float partner = data.planar[64 * ((c + head_dim / 2) % head_dim) + t];
          const float size = std::abs(data.planar[64 * c + t]) + std::abs(partner);
          EXPECT_NEAR(tile[key_index(t, c)], row[c], 2e-7f * size);
        }
      }
    }
  }
}

TEST(Decode, ValueTilesHoldTokenPairs) {
  for (const int64_t head_dim : {8, 64, 80}) {
    const TileData data(head_dim, ScaleAxis::kToken, 4);
    std::vector<float> tile(64 * head_dim);
    planar_to_value_tile(data.planar.data(), head_dim, tile.data());
    for (int64_t t = 0; t < 64; ++t) {
      for (int64_t c = 0; c < head_dim; ++c) {
        EXPECT_EQ(tile[value_index(t, c, head_dim)], data.planar[64 * c + t]);
      }
    }
  }
}

TEST(Decode, PositionsPastTheTableDoNotRotate) {
  const RopeTable table(8, 3, 10000);
  std::vector<float> cos(4 * 64), sin(4 * 64);
  fill_rope_tile(table, 0, cos.data(), sin.data());
  EXPECT_EQ(cos[3], 1.0f);
  EXPECT_EQ(sin[64 + 63], 0.0f);
  EXPECT_EQ(sin[2], table.sin(2)[0]);
}

}  // namespace
}  // namespace kvquant
