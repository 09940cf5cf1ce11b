// A KvCache whose values are latents of a calibration: attention over it against attention over
// uncompressed and over reconstructed values.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "cache/kv_cache.h"
#include "cache/kv_cache_test_view.h"
#include "kvquant/error.h"
#include "quant/calibration_test_data.h"
#include "quant/value_basis.h"

namespace kvquant {
namespace {

constexpr KvShape kShape{1, 2, 16};
constexpr CalibrationShape kCalibrationShape{1, 4, 2, 16};
constexpr int64_t kRowSize = 32, kGroup = 2;

// Values near some directions, so that a spectrum falls.
TestLayer& data() {
  static TestLayer layer(kCalibrationShape, 1, 600, 5);
  static const bool is_mixed = [] {
    for (size_t i = 0; i < layer.values.size(); i += 16) {
      for (size_t c = 1; c < 16; ++c) {
        layer.values[i + c] = 0.7f * layer.values[i + c - 1] + 0.5f * layer.values[i + c];
      }
    }
    for (auto* x : {&layer.keys, &layer.values}) {
      for (float& v : *x) v = round_to_half(v);
    }
    return true;
  }();
  (void)is_mixed;
  return layer;
}

std::shared_ptr<const Calibration> fitted(int64_t rank = 16) {
  static std::map<int64_t, std::shared_ptr<const Calibration>> known;
  auto& out = known[rank];
  if (out != nullptr) return out;
  ThreadPool pool(1, ThreadPool::Pin::kNo);
  auto calibration = std::make_shared<Calibration>();
  calibration->info.shape = kCalibrationShape;
  calibration->layers.push_back(fit_layer(data().views, {.rank = rank}, pool));
  return out = calibration;
}

struct Fed {
  Fed(const std::string& spec, CacheMode mode, int num_threads = 1,
      std::shared_ptr<const Calibration> calibration = fitted())
      : pool(num_threads, ThreadPool::Pin::kNo),
        cache(kShape, parse_spec(spec), mode, rope, pool, std::move(calibration)),
        id(cache.add_sequence()) {}

  void append(int64_t num_new) {
    const auto chunk = [&](const std::vector<float>& rows) {
      return row_major<const float, 3>(rows.data() + cache.length(id) * kRowSize, {num_new, 2, 16});
    };
    cache.append(0, id, chunk(data().keys), chunk(data().values));
    last_chunk = num_new;
  }

  std::vector<float> attend_head(std::span<const AttendRun> runs, int64_t head) {
    const int64_t first = cache.length(id) - last_chunk, row = kGroup * 16;
    std::vector<float> query, out(static_cast<size_t>(last_chunk * row));
    for (int64_t t = first; t < cache.length(id); ++t) {
      const float* q = data().queries.data() + (t * 4 + head * kGroup) * 16;
      query.insert(query.end(), q, q + row);
    }
    const AttendJob job{query.data(), out.data(), row, last_chunk, first, runs};
    attend({16, kGroup, 0.05f}, {&job, 1}, Precision::kF32, pool);
    return out;
  }
  // What the last chunk's queries get, of all heads; reconstructed: of every value expanded first.
  std::vector<float> attended(bool reconstructed = false) {
    std::vector<float> out;
    cache.prepare_view(0, id);
    for (int64_t head = 0; head < 2; ++head) {
      const auto runs = cache.view(0, id, head);
      const test::DecodedRuns decoded(reconstructed ? runs : std::span<const AttendRun>(), 16);
      const auto part = attend_head(reconstructed ? decoded.runs() : runs, head);
      out.insert(out.end(), part.begin(), part.end());
    }
    return out;
  }
  // Mean squared error of the values that the view stands for.
  double error() {
    double sum = 0;
    int64_t count = 0;
    cache.prepare_view(0, id);
    for (int64_t head = 0; head < 2; ++head) {
      for (const AttendRun& run : cache.view(0, id, head)) {
        for (int64_t t = 0; t < run.num_tokens; ++t, ++count) {
          const test::Row value = test::value_in_run(run, t, 16);
          const float* given =
              data().values.data() + (run.first_position + t) * kRowSize + head * 16;
          for (int64_t c = 0; c < 16; ++c) sum += std::pow(double{value[c]} - given[c], 2);
        }
      }
    }
    return sum / static_cast<double>(count);
  }

  RopeTable rope{16, 1000, 10000};
  ThreadPool pool;
  KvCache cache;
  KvCache::SequenceId id;
  int64_t last_chunk = 0;
};

double max_difference(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    largest = std::max(largest, std::abs(double{a[i]} - b[i]));
  }
  return largest;
}

constexpr const char* kWindows[] = {"", ",sink=0,recent=0", ",sink=3,recent=20,block=64",
                                    ",sink=64,recent=1", ",sink=70,recent=130"};
constexpr CacheMode kModes[] = {CacheMode::kStrict, CacheMode::kAsServed};

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
    const StoredSequence a = one.cache.store(one.id), b = three.cache.store(three.id);
    ASSERT_EQ(a.sections.size(), b.sections.size());
    for (size_t i = 0; i < a.sections.size(); ++i) {
      ASSERT_EQ(a.sections[i].pieces.size(), b.sections[i].pieces.size());
      for (size_t p = 0; p < a.sections[i].pieces.size(); ++p) {
        EXPECT_TRUE(std::ranges::equal(a.sections[i].pieces[p], b.sections[i].pieces[p]));
      }
    }
    EXPECT_EQ(one.attended(), three.attended());
  }
}

TEST(LatentCache, WhatIsRestoredGoesOnWithTheSameBits) {
  for (const CacheMode mode : kModes) {
    for (const char* spec : {"k=fp16,v=pca13", "k=nuq3-1%,v=pcaw12+nuq3-2%,sink=5",
                             "k=bf16,v=pca8+had+int4,recent=30", "k=int4,v=pca14+wf4"}) {
      Fed from(spec, mode), to(spec, mode, 2);
      from.append(250);
      to.id = to.cache.restore(from.cache.store(from.id));
      for (const int64_t num_new : {1, 70}) {
        from.append(num_new);
        to.append(num_new);
        ASSERT_EQ(from.attended(), to.attended()) << spec;
      }
    }
  }
}

std::string refusal(const std::string& spec,
                    const std::shared_ptr<const Calibration>& calibration) {
  try {
    Fed fed(spec, CacheMode::kStrict, 1, calibration);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "accepted";
}

TEST(LatentCache, WhatDoesntFitIsRefused) {
  EXPECT_NE(refusal("v=pca8+int8", nullptr).find("needs a calibration"), std::string::npos);
  EXPECT_NE(refusal("v=pca8", fitted(7)).find("--rank of at least 8"), std::string::npos);
  EXPECT_NE(refusal("v=pca17", fitted()).find("rank 17 of pca17 is larger"), std::string::npos);
  EXPECT_NE(refusal("k=pca8", fitted()).find("not built yet for keys"), std::string::npos);
  EXPECT_NE(refusal("v=pca8+had+wf4", fitted()).find("not built yet for values"),
            std::string::npos);
  EXPECT_NE(refusal("v=pca8+wf1.5", fitted()).find("2 for each of 8"), std::string::npos);
  EXPECT_THROW(parse_spec("v=pca0"), std::invalid_argument);
  EXPECT_EQ(refusal("v=lnns", nullptr), "accepted");
  Fed fed("v=pca16", CacheMode::kStrict);
  std::vector<float> row(kRowSize, 60000.0f);
  const auto chunk = row_major<const float, 3>(row.data(), {1, 2, 16});
  EXPECT_THROW(fed.cache.append(0, fed.id, chunk, chunk), FormatError);
}

}  // namespace
}  // namespace kvquant
