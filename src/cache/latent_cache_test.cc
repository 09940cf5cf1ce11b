// A KvCache whose values are latents of a calibration: attention over it against attention over
// uncompressed and over reconstructed values.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "cache/latent_cache_test_fed.h"
#include "kvquant/error.h"
#include "quant/value_basis.h"

namespace kvquant {
namespace {

using test::expect_restored_goes_on;
using test::expect_same_bytes;
using test::Fed;
using test::fitted;
using test::kFedRowSize;
using test::kModes;
using test::kWindows;
using test::max_difference;
using test::refusal;

TEST(LatentCache, FullRankEqualsUncompressedValuesWithinRounding) {
  for (const CacheMode mode : kModes) {
    for (const char* windows : kWindows) {
      for (const std::string keys : {"fp16", "bf16", "fp32"}) {
        Fed exact("k=" + keys + ",v=fp16" + windows, mode);
        Fed plain("k=" + keys + ",v=pca16" + windows, mode);
        Fed weighted("k=" + keys + ",v=pcaw16" + windows, mode);
        Fed rotated("k=" + keys + ",v=pca16+had+fp16" + windows, mode);
        for (const int64_t num_new : {1, 62, 5, 100, 64, 1, 1, 90}) {
          for (Fed* fed : {&exact, &plain, &weighted, &rotated}) fed->append(num_new);
          const auto expected = exact.attended();
          for (Fed* fed : {&plain, &weighted, &rotated}) {  // values are below 16
            ASSERT_LE(max_difference(fed->attended(), expected), 4e-3) << windows << " " << keys;
          }
        }
      }
    }
  }
}

TEST(LatentCache, LateExpansionEqualsReconstruction) {
  for (const CacheMode mode : kModes) {
    for (const char* windows : kWindows) {
      for (const std::string codec :
           {"pca5", "pca12+int8", "pcaw9+int4", "pca8+had+nuq3-2%", "pca13+nuq2", "lnns+int4",
            "pca16+wf4", "pcaw13+wf2.5", "pca7+wf8"}) {
        Fed fed("k=fp16,v=" + codec + windows, mode);
        for (const int64_t num_new : {70, 1, 130, 1, 64}) {
          fed.append(num_new);
          ASSERT_LE(max_difference(fed.attended(), fed.attended(/*reconstructed=*/true)), 2e-5)
              << codec << windows;
        }
      }
    }
  }
}

TEST(LatentCache, ErrorsAreWhatTheSpectrumLeavesOutAndFallWithRank) {
  const auto calibration = fitted();
  double before = 1e9;
  for (int64_t rank = 1; rank <= 16; ++rank) {
    Fed fed("k=fp16,v=pca" + std::to_string(rank), CacheMode::kStrict, 1, calibration);
    fed.append(600);
    double left = 0;
    for (int64_t i = 0; i < 2 * 16; ++i) {
      left += i % 16 < rank ? 0.0 : calibration->layers[0].value.spectrum[i] / 2.0;
    }
    const double error = fed.error();
    EXPECT_NEAR(error, left, 0.03 * left + 1e-5) << rank;
    EXPECT_LT(error, before) << rank;
    before = error;
  }
}

TEST(LatentCache, ErrorsFallWithBits) {
  const auto error_of = [](const std::string& codec) {
    Fed fed("k=fp16,v=" + codec, CacheMode::kStrict);
    fed.append(600);
    return fed.error();
  };
  EXPECT_LT(error_of("pca12"), error_of("pca12+int8"));
  EXPECT_LT(error_of("pca12+int8"), error_of("pca12+int4"));
  EXPECT_LT(error_of("pca12+int8"), 1.001 * error_of("pca12"));
  EXPECT_LT(error_of("pca12+nuq4-2%"), error_of("pca12+nuq3-2%"));
  EXPECT_LT(error_of("pca12+nuq3-2%"), error_of("pca12+nuq2-2%"));
  EXPECT_LT(error_of("pca12"), error_of("pca12+wf8"));
  EXPECT_LT(error_of("pca12+wf8"), 1.001 * error_of("pca12"));
  EXPECT_LT(error_of("pca12+wf8"), error_of("pca12+wf4"));
  EXPECT_LT(error_of("pca12+wf4"), error_of("pca12+wf2"));
}

TEST(LatentCache, MemoryIsTheBlocksAndTheBasisOnce) {
  // Of one layer and two heads: means and components in f32, behind them blocks of 64 tokens.
  const int64_t basis = 2 * (16 + 12 * 16) * 4;
  Fed half("k=fp16,v=pca12,block=64", CacheMode::kStrict);
  EXPECT_EQ(half.cache.memory_bytes(), basis);
  half.append(64);
  half.cache.settle(half.id);
  const int64_t keys = 64 * 32 * 2 + 8, table = 8;  // a pointer to each block
  EXPECT_EQ(half.cache.memory_bytes(), basis + keys + table + 64 * 2 * 16 * 2);  // 12 padded to 16
  Fed coded("k=fp16,v=pca12+int8,block=64", CacheMode::kStrict);
  coded.append(64);
  coded.cache.settle(coded.id);  // a scale and a zero point per token and head
  EXPECT_EQ(coded.cache.memory_bytes(), basis + keys + table + 64 * 2 * (16 + 2 + 2));
  Fed filled("k=fp16,v=pca12+wf4,block=64", CacheMode::kStrict);
  filled.append(64);
  filled.cache.settle(filled.id);
  EXPECT_EQ(filled.cache.memory_bytes(), basis + keys + table + 64 * 2 * (8 + 2 + 2));
  const auto other = coded.cache.fork(coded.id);
  EXPECT_EQ(coded.cache.memory_bytes(), basis + keys + 2 * table + 8 + 64 * 2 * (16 + 2 + 2));
  coded.cache.drop(other);
}

TEST(LatentCache, BytesAreTheSameAtAnyThreads) {
  for (const char* spec : {"k=fp16,v=pca13", "k=int8,v=pcaw12+nuq3-2%", "v=pca15+wf3"}) {
    Fed one(spec, CacheMode::kStrict, 1), three(spec, CacheMode::kStrict, 3);
    for (Fed* fed : {&one, &three}) {
      fed->append(200);
      fed->append(1);
    }
    expect_same_bytes(one, three);
    EXPECT_EQ(one.attended(), three.attended());
  }
}

TEST(LatentCache, WhatIsRestoredGoesOnWithTheSameBits) {
  for (const CacheMode mode : kModes) {
    for (const char* spec : {"k=fp16,v=pca13", "k=nuq3-1%,v=pcaw12+nuq3-2%,sink=5",
                             "k=bf16,v=pca8+had+int4,recent=30", "k=int4,v=pca14+wf4"}) {
      expect_restored_goes_on(spec, mode);
    }
  }
}

TEST(LatentCache, WhatDoesntFitIsRefused) {
  EXPECT_NE(refusal("v=pca8+int8", nullptr).find("needs a calibration"), std::string::npos);
  EXPECT_NE(refusal("v=pca8", fitted(7)).find("--rank of at least 8"), std::string::npos);
  EXPECT_NE(refusal("v=pca17", fitted()).find("rank 17 of pca17 is larger"), std::string::npos);
  EXPECT_NE(refusal("k=pcaw8", fitted()).find("not built yet for keys"), std::string::npos);
  EXPECT_NE(refusal("v=pca8+had+wf4", fitted()).find("not built yet for values"),
            std::string::npos);
  EXPECT_NE(refusal("v=pca8+wf1.5", fitted()).find("2 for each of 8"), std::string::npos);
  EXPECT_THROW(parse_spec("v=pca0"), std::invalid_argument);
  EXPECT_EQ(refusal("v=lnns", nullptr), "accepted");
  Fed fed("v=pca16", CacheMode::kStrict);
  std::vector<float> row(kFedRowSize, 60000.0f);
  const auto chunk = row_major<const float, 3>(row.data(), {1, 2, 16});
  EXPECT_THROW(fed.cache.append(0, fed.id, chunk, chunk), FormatError);
}

}  // namespace
}  // namespace kvquant
