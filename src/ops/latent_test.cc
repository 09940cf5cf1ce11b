#include "ops/latent.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <stdexcept>
#include <vector>

#include "hwy/targets.h"
#include "ops/attend_test_cache.h"

namespace kvquant {
namespace {

using testing::TestRandom;

struct Matrices {
  Matrices(int64_t rank, int64_t head_dim, TestRandom& random) {
    map.rank = rank;
    map.width = latent_width(rank);
    map.head_dim = head_dim;
    for (int64_t i = 0; i < head_dim; ++i) mean.push_back(random.heavy_tailed());
    for (int64_t i = 0; i < rank * head_dim; ++i) encode.push_back(random.heavy_tailed());
    for (int64_t i = 0; i < rank * head_dim; ++i) decode.push_back(random.heavy_tailed());
    map.mean = mean.data();
    map.encode = encode.data();
    map.decode = decode.data();
  }
  LatentMap map;
  std::vector<float> mean, encode, decode;
};

std::vector<float> draw(int64_t size, TestRandom& random) {
  std::vector<float> out;
  for (int64_t i = 0; i < size; ++i) out.push_back(random.heavy_tailed());
  return out;
}

TEST(Latents, WidthIsAMultipleOf8) {
  EXPECT_EQ(latent_width(1), 8);
  EXPECT_EQ(latent_width(8), 8);
  EXPECT_EQ(latent_width(9), 16);
  EXPECT_EQ(latent_width(60), 64);
}

TEST(Latents, AreProductsWithTheCentredVectorByHand) {
  const float mean[8] = {1, 1, 0, 0, 0, 0, 0, 0};
  // Twice channel 0, and channel 1 less channel 7.
  const float encode[16] = {2, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, -1};
  const float decode[16] = {0.5, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 3};
  const LatentMap map{2, 8, 8, mean, encode, decode};
  const float row[8] = {4, 3, 9, 9, 9, 9, 9, 5};
  for (const Backend backend : {Backend::kReference, best_backend()}) {
    float z[8] = {7, 7, 7, 7, 7, 7, 7, 7};
    encode_latents(map, {row, 8, 1, z, 8}, backend);
    const float expected[8] = {6, -3, 0, 0, 0, 0, 0, 0};
    for (int r = 0; r < 8; ++r) EXPECT_EQ(z[r], expected[r]);
    float out[8] = {1, 1, 1, 1, 1, 1, 1, 1};
    expand_latents(map, z, /*weight=*/2, /*factor=*/0.5f, out, backend);
    EXPECT_FLOAT_EQ(out[0], 1 + 0.5f * (2 + 3));
    EXPECT_FLOAT_EQ(out[1], 1 + 0.5f * (2 - 3));
    EXPECT_FLOAT_EQ(out[2], 1);
    EXPECT_FLOAT_EQ(out[7], 1 + 0.5f * -9);
  }
}

TEST(Latents, EveryInstructionSetWritesTheBitsOfTheReference) {
  TestRandom random(3);
  for (const int64_t head_dim : {8, 16, 24, 64, 80, 128, 256}) {
    for (const int64_t rank : {int64_t{1}, head_dim / 2 + 3, head_dim - 1, head_dim}) {
      const Matrices matrices(rank, head_dim, random);
      const int64_t width = matrices.map.width, num_rows = 1 + random.below(9);
      const int64_t stride = head_dim + 3, latent_stride = width + 5;
      const auto rows = draw(num_rows * stride, random);
      std::vector<float> expected(static_cast<size_t>(num_rows * latent_stride), 77.0f);
      ref::encode_latents(matrices.map,
                          {rows.data(), stride, num_rows, expected.data(), latent_stride});
      for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
        hwy::SetSupportedTargetsForTest(target);
        std::vector<float> out(expected.size(), 77.0f);
        encode_latents(matrices.map, {rows.data(), stride, num_rows, out.data(), latent_stride},
                       Backend::kSimd);
        for (size_t i = 0; i < out.size(); ++i) {
          ASSERT_EQ(std::bit_cast<uint32_t>(out[i]), std::bit_cast<uint32_t>(expected[i]))
              << hwy::TargetName(target) << " head_dim " << head_dim << " rank " << rank << " at "
              << i;
        }
      }
      hwy::SetSupportedTargetsForTest(0);
    }
  }
}

TEST(Latents, ExpandAsTheReferenceDoes) {
  TestRandom random(4);
  for (const int64_t head_dim : {8, 16, 24, 64, 80, 128, 256}) {
    const int64_t rank = 1 + random.below(head_dim);
    const Matrices matrices(rank, head_dim, random);
    const auto latents = draw(matrices.map.width, random), before = draw(head_dim + 1, random);
    std::vector<float> expected = before;
    ref::expand_latents(matrices.map, latents.data(), 0.7f, 0.3f, expected.data());
    for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
      hwy::SetSupportedTargetsForTest(target);
      std::vector<float> out = before;
      expand_latents(matrices.map, latents.data(), 0.7f, 0.3f, out.data(), Backend::kSimd);
      for (size_t c = 0; c < out.size(); ++c) {
        ASSERT_NEAR(out[c], expected[c], 1e-4 * std::sqrt(static_cast<double>(rank)))
            << hwy::TargetName(target);
      }
      EXPECT_EQ(out.back(), before.back());  // nothing is written behind
    }
    hwy::SetSupportedTargetsForTest(0);
  }
}

TEST(Latents, RefuseSizesThatDontFit) {
  TestRandom random(5);
  Matrices matrices(12, 16, random);
  float row[16] = {}, out[32];
  const LatentRows job{row, 16, 1, out, 32};
  EXPECT_NO_THROW(encode_latents(matrices.map, job));
  for (const auto& [rank, width] : {std::pair(0, 8), {17, 24}, {12, 8}, {12, 24}}) {
    LatentMap bad = matrices.map;
    bad.rank = rank;
    bad.width = width;
    EXPECT_THROW(encode_latents(bad, job), std::invalid_argument);
    EXPECT_THROW(expand_latents(bad, out, 1, 1, row), std::invalid_argument);
  }
}

}  // namespace
}  // namespace kvquant
