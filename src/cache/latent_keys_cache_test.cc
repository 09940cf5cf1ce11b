// A KvCache whose keys are latents of a calibration: attention over it against attention over
// uncompressed and over reconstructed keys.
#include <gtest/gtest.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "cache/latent_cache_test_fed.h"
#include "kvquant/error.h"

namespace kvquant {
namespace {

using test::data;
using test::expect_restored_goes_on;
using test::expect_same_bytes;
using test::Fed;
using test::fitted;
using test::kFedRowSize;
using test::kModes;
using test::kWindows;
using test::max_difference;
using test::refusal;

constexpr const char* kValueCodecs[] = {"fp16",    "bf16",     "fp32",  "int8",
                                        "nuq4-1%", "had+int8", "pca16", "pca12+int8"};

TEST(LatentKeysCache, FullRankEqualsUncompressedKeysWithinRounding) {
  for (const CacheMode mode : kModes) {
    for (const char* windows : kWindows) {
      for (const std::string values : {"fp16", "bf16", "fp32"}) {
        Fed exact("k=fp32,v=" + values + windows, mode);
        Fed plain("k=pca16,v=" + values + windows, mode);
        Fed rotated("k=pca16+had+fp16,v=" + values + windows, mode);
        for (const int64_t num_new : {1, 62, 5, 100, 64, 1, 1, 90}) {
          for (Fed* fed : {&exact, &plain, &rotated}) fed->append(num_new);
          const auto expected = exact.attended();
          for (Fed* fed : {&plain, &rotated}) {  // values are below 16, of bf16 sinks may be fp16
            ASSERT_LE(max_difference(fed->attended(), expected), 2e-2) << windows << " " << values;
          }
        }
      }
    }
  }
}

TEST(LatentKeysCache, ProjectingQueriesEqualsReconstruction) {
  for (const CacheMode mode : kModes) {
    for (const char* windows : kWindows) {
      for (const std::string codec :
           {"pca5", "pca12+int8", "pca8+had+nuq3-2%", "pca13+nuq2", "lnns+int4", "pca14+wf4"}) {
        for (const std::string values : kValueCodecs) {
          Fed fed("k=" + codec + ",v=" + values + windows, mode);
          for (const int64_t num_new : {70, 1, 130, 1}) {
            fed.append(num_new);
            ASSERT_LE(max_difference(fed.attended(), fed.attended(/*reconstructed=*/true)), 1e-4)
                << codec << " " << values << windows;
          }
        }
      }
    }
  }
}

TEST(LatentKeysCache, ErrorsAreWhatTheSpectrumLeavesOutAndFallWithRank) {
  const auto calibration = fitted();
  double before = 1e9;
  for (int64_t rank = 1; rank <= 16; ++rank) {
    Fed fed("k=pca" + std::to_string(rank), CacheMode::kStrict, 1, calibration);
    fed.append(600);
    double left = 0;
    for (int64_t i = 0; i < 2 * 16; ++i) {
      left += i % 16 < rank ? 0.0 : calibration->layers[0].key.spectrum[i] / 2.0;
    }
    const double error = fed.error(KvSide::kKey);
    EXPECT_NEAR(error, left, 0.03 * left + 1e-4) << rank;
    EXPECT_LT(error, before) << rank;
    before = error;
  }
}

TEST(LatentKeysCache, ErrorsFallWithBits) {
  const auto error_of = [](const std::string& codec) {
    Fed fed("k=" + codec, CacheMode::kStrict);
    fed.append(600);
    return fed.error(KvSide::kKey);
  };
  EXPECT_LT(error_of("pca12"), error_of("pca12+int8"));
  EXPECT_LT(error_of("pca12+int8"), error_of("pca12+int4"));
  EXPECT_LT(error_of("pca12+int8"), 1.001 * error_of("pca12"));
  EXPECT_LT(error_of("pca12+nuq4-2%"), error_of("pca12+nuq3-2%"));
  EXPECT_LT(error_of("pca12+nuq3-2%"), error_of("pca12+nuq2-2%"));
  EXPECT_LT(error_of("pca12+wf8"), error_of("pca12+wf4"));
  EXPECT_LT(error_of("pca12+wf4"), error_of("pca12+wf2"));
}

TEST(LatentKeysCache, MemoryIsTheBlocksAndTheBasisOnce) {
  const int64_t basis = 2 * (16 + 12 * 16) * 4;
  const int64_t values = 64 * 32 * 2 + 8, table = 8;  // a pointer to each block
  Fed half("k=pca12,block=64", CacheMode::kStrict);
  EXPECT_EQ(half.cache.memory_bytes(), basis);
  half.append(64);
  half.cache.settle(half.id);
  EXPECT_EQ(half.cache.memory_bytes(), basis + values + table + 64 * 2 * 16 * 2);  // 12 are 16
  Fed coded("k=pca12+int8,block=64", CacheMode::kStrict);
  coded.append(64);
  coded.cache.settle(coded.id);  // a scale and a zero point per token and head
  EXPECT_EQ(coded.cache.memory_bytes(), basis + values + table + 64 * 2 * (16 + 2 + 2));
  Fed both("pca12+int8,block=64", CacheMode::kStrict);  // means and components of either side
  both.append(64);
  both.cache.settle(both.id);
  EXPECT_EQ(both.cache.memory_bytes(), 2 * (basis + table + 64 * 2 * (16 + 2 + 2)));
  // Attention reads what is stored: nothing is expanded.
  coded.cache.prepare_view(0, coded.id);
  EXPECT_EQ(num_expanded_layers(coded.cache.spec(), 1), 0);
  EXPECT_LT(coded.cache.scratch_bytes(), 64 * 32 * 2 * 4);
}

TEST(LatentKeysCache, BytesAreTheSameAtAnyThreadsAndCuts) {
  for (const char* spec : {"k=pca13", "k=pca13+int8,v=had+int4", "pca12+nuq3-2%",
                           "k=pca13+int4,v=fp16,sink=5", "pca16+wf4"}) {
    Fed one(spec, CacheMode::kStrict, 1), three(spec, CacheMode::kStrict, 3);
    Fed pieces(spec, CacheMode::kStrict);
    for (Fed* fed : {&one, &three}) {
      fed->append(200);
      fed->append(1);
    }
    for (const int64_t num_new : {1, 3, 66, 64, 67}) pieces.append(num_new);
    expect_same_bytes(one, three);
    expect_same_bytes(one, pieces);
    EXPECT_EQ(one.attended(), three.attended());
  }
}

TEST(LatentKeysCache, WhatIsRestoredGoesOnWithTheSameBits) {
  for (const CacheMode mode : kModes) {
    for (const char* spec : {"k=pca13,v=bf16", "k=pca12+nuq3-2%,v=nuq3-1%,sink=5",
                             "k=pca8+had+int4,v=pca12+int8,recent=30", "k=pca15+wf2"}) {
      expect_restored_goes_on(spec, mode);
    }
  }
}

TEST(LatentKeysCache, HoldTheirPositions) {
  Fed fed("k=pca12+int8,v=int8", CacheMode::kAsServed), moving("int8", CacheMode::kAsServed);
  EXPECT_FALSE(fed.cache.can_splice(0));
  EXPECT_TRUE(moving.cache.can_splice(0));
  fed.append(300);
  const auto other = fed.cache.add_sequence();
  try {
    fed.cache.splice(other, fed.id, 4, 64);
    FAIL();
  } catch (const std::invalid_argument& error) {
    EXPECT_NE(std::string(error.what()).find("hold their positions"), std::string::npos);
  }
}

TEST(LatentKeysCache, WhatDoesntFitIsRefused) {
  const auto expect_refused = [](const char* spec, auto calibration, const char* why) {
    EXPECT_NE(refusal(spec, calibration).find(why), std::string::npos) << spec;
  };
  expect_refused("k=pca8+int8", nullptr, "needs a calibration");
  expect_refused("k=pca8", fitted(7), "--rank of at least 8");
  expect_refused("k=pca17", fitted(), "rank 17 of pca17 is larger");
  expect_refused("k=pcaw8", fitted(), "not built yet for keys");
  expect_refused("k=had+int8", fitted(), "not built yet for keys");
  expect_refused("k=pca8+had+wf4", fitted(), "not built yet for keys");
  expect_refused("k=pca8+wf1", fitted(), "2 for each of 8");
  EXPECT_THROW(parse_spec("k=pca0"), std::invalid_argument);
  EXPECT_EQ(refusal("k=lnns", nullptr), "accepted");
  Fed fed("k=pca16", CacheMode::kStrict);
  std::vector<float> row(kFedRowSize, 60000.0f);
  const auto chunk = row_major<const float, 3>(row.data(), {1, 2, 16});
  EXPECT_THROW(fed.cache.append(0, fed.id, chunk, chunk), FormatError);
}

}  // namespace
}  // namespace kvquant
