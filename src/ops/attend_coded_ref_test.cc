// The reference attention over codes, against results by hand and a plain sum over what the test
// itself stored; no other kernel is used.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <vector>

#include "ops/attend.h"
#include "ops/attend_coded_test_data.h"

namespace kvquant {
namespace {

using testing::TestCodec;
using testing::TestCodedRun;
using testing::TestCodedSide;
using testing::TestRandom;

std::vector<float> reference(const AttendShape& shape, const std::vector<float>& query,
                             int64_t first_position, const AttendRun& run) {
  const int64_t row = shape.group * shape.head_dim;
  std::vector<float> out(query.size(), -1.0f);
  const AttendJob job{query.data(),   out.data(), row, static_cast<int64_t>(query.size()) / row,
                      first_position, {&run, 1}};
  ThreadPool pool(1);
  attend(shape, {&job, 1}, Precision::kF32, pool, Backend::kReference);
  return out;
}

constexpr int64_t kHeadDim = 8;

// Two tokens of head_dim 8 in one tile of one head, written byte by byte. Levels are -1, -1/3, 1/3
// and 1.
struct TwoTokens {
  TwoTokens() {
    key_scales[0] = key_scales[4] = to_half(1);
    key_zeros[0] = to_half(1);
    Half* params = reinterpret_cast<Half*>(value_block.data() + 256);
    params[0] = params[1] = to_half(3);  // scales
    params[64] = to_half(10);            // zero points of tokens 0 and 1
    params[65] = to_half(20);
    keys = {&book, {KvSide::kKey, 2, false, 1, kHeadDim, 1}};
    values = {&book, {KvSide::kValue, 2, false, 1, kHeadDim, 1}};
    keys.scales = key_scales;
    keys.zeros = key_zeros;
    for (auto* side : {&keys, &values}) side->layout = kv_block_layout(side->shape);
    keys.blocks = {&key_data, 1};
    values.blocks = {&value_data, 1};
  }
  AttendRun run() const {
    AttendRun run;
    run.coded_keys = &keys;
    run.coded_values = &values;
    run.rope = &rope;
    run.num_tokens = 2;
    return run;
  }

  const float levels[4] = {-1, -1.0f / 3, 1.0f / 3, 1};
  NuqCodebook book = make_codebook(levels);
  RopeTable rope{kHeadDim, 10, 10000};
  Half key_scales[kHeadDim] = {};
  Half key_zeros[kHeadDim] = {};
  Buffer<std::byte> key_block{256}, value_block{256 + 256};
  std::byte* key_data = key_block.data();
  std::byte* value_data = value_block.data();
  CodedSide keys, values;
};

TEST(AttendCodedReference, RotatesKeysAndWeighsValuesAsComputedByHand) {
  TwoTokens two;
  // Token 0 of the pair of channels 0 and 4: codes 2 and 3 are -> (1/3 + 1, 1); token 1: codes 3
  // and 0 -> (2, -1). Row 0, slot 0; words 0, 1 (token 0) and 2, 3 (token 1).
  two.key_data[0] = std::byte{2};
  two.key_data[2] = std::byte{3};
  two.key_data[4] = std::byte{3};
  // Values: channel 0 of token 1 has code 3, all else code 0. Row 0, slot 0, lane 0, half 1.
  two.value_data[2] = std::byte{3};
  std::vector<float> query(kHeadDim, 0.0f);
  query[0] = 1;
  query[4] = 0.5f;
  const auto out = reference({kHeadDim, 1, 1}, query, 1, two.run());
  const double score0 = 4.0 / 3 + 0.5;  // position 0: not turned
  const double x = 2 * std::cos(1.0) + std::sin(1.0), y = 2 * std::sin(1.0) - std::cos(1.0);
  const double weight1 = 1 / (1 + std::exp(score0 - (x + 0.5 * y)));
  EXPECT_NEAR(out[0], 7 * (1 - weight1) + 23 * weight1, 1e-5);  // 10 - 3 and 20 + 3
  EXPECT_NEAR(out[1], 7 * (1 - weight1) + 17 * weight1, 1e-5);
}

TEST(AttendCodedReference, AnOutlierStandsInThePlaceOfItsCode) {
  TwoTokens two;
  OutlierPage page{};
  for (OutlierEntry& entry : page.entries) entry = {outlier_place(1, 0), to_half(500)};
  page.entries[7] = {outlier_place(0, 3), to_half(-100)};
  const OutlierPage* pages[] = {&page};
  Buffer<std::byte> block(1024);
  two.values.shape.has_outliers = true;
  two.values.layout = kv_block_layout(two.values.shape);
  ASSERT_EQ(two.values.layout.starts, 256 + 256);
  std::copy_n(two.value_data, 512, block.data());
  *reinterpret_cast<uint32_t*>(block.data() + two.values.layout.starts) = 7;
  *reinterpret_cast<uint16_t*>(block.data() + two.values.layout.counts) = 1;
  std::byte* data = block.data();
  two.values.blocks = {&data, 1};
  two.values.pages = pages;
  AttendRun run = two.run();
  run.num_tokens = 1;
  const auto out = reference({kHeadDim, 1, 1}, std::vector<float>(kHeadDim, 1.0f), 1, run);
  for (int64_t c = 0; c < kHeadDim; ++c) {
    EXPECT_EQ(out[static_cast<size_t>(c)], c == 3 ? -100.0f : 7.0f);
  }
}

// exp(q R k) over the run, in double, of the values that the test stored. The inverse rotation of
// values is the definition: H[i][j] = (-1)^popcount(i & j) / sqrt(n).
std::vector<double> plain_sum(const AttendShape& shape, const float* query, int64_t position,
                              const AttendRun& run, const TestCodedRun& test) {
  const int64_t half = shape.head_dim / 2;
  std::vector<double> mix(static_cast<size_t>(shape.head_dim), 0.0);
  double sum = 0;
  for (int64_t t = 0; t < run.num_tokens && run.first_position + t <= position; ++t) {
    double score = 0;
    for (int64_t c = 0; c < half; ++c) {
      const double angle =
          static_cast<double>(run.first_position + t) *
          std::pow(10000.0, -2.0 * static_cast<double>(c) / static_cast<double>(shape.head_dim));
      const double a = test.keys->stored(t, c), b = test.keys->stored(t, c + half);
      score += query[c] * (a * std::cos(angle) - b * std::sin(angle)) +
               query[c + half] * (b * std::cos(angle) + a * std::sin(angle));
    }
    const double weight = std::exp(shape.scale * score);
    sum += weight;
    for (int64_t c = 0; c < shape.head_dim; ++c) {
      double value = 0;
      for (int64_t j = 0; j < shape.head_dim; ++j) {
        const bool odd = std::popcount(static_cast<uint64_t>(c & j)) % 2 == 1;
        const double h = test.values->side.hadamard
                             ? (odd ? -1 : 1) / std::sqrt(static_cast<double>(shape.head_dim))
                             : (c == j ? 1 : 0);
        value += h * test.values->stored(t, j);
      }
      mix[static_cast<size_t>(c)] += weight * value;
    }
  }
  for (double& x : mix) x /= sum;
  return mix;
}

TEST(AttendCodedReference, IsTheSoftmaxOfRotatedDecodedKeysForEveryWidth) {
  TestRandom random(31);
  const RopeTable rope(16, 200, 10000);
  const AttendShape shape{16, 1, 0.25f};
  for (const TestCodec& codec : {TestCodec{2, 3, 1, 5}, TestCodec{3, 4, 5, 0},
                                 TestCodec{4, 8, 0, 1, true}, TestCodec{8, 2, 0, 0}}) {
    const TestCodedRun run(codec, rope, 67, 5, random);
    std::vector<float> query(2 * 16);
    for (float& x : query) x = random.heavy_tailed();
    const auto out = reference(shape, query, 70, run.run());
    for (int64_t q = 0; q < 2; ++q) {
      const auto expected = plain_sum(shape, query.data() + q * 16, 70 + q, run.run(), run);
      for (size_t c = 0; c < 16; ++c) {
        EXPECT_NEAR(out[static_cast<size_t>(q) * 16 + c], expected[c], 1e-5) << codec.name();
      }
    }
  }
}

// Tokens of two segments of scales compete with each other.
TEST(AttendCodedReference, AddsHalfTheExpectedVarianceOfAScoreTimesItsFactor) {
  TestRandom random(34);
  const RopeTable rope(16, 300, 10000);
  const AttendShape shape{16, 1, 0.25f};
  constexpr int64_t kFirstTokens = TestCodedSide::kSegmentTiles * kTileTokens;
  for (const int bits : {2, 3, 4, 8}) {
    const TestCodedRun run({bits, bits}, rope, kFirstTokens + 30, 0, random);
    run.values->mark_first_segment();
    std::vector<float> query(16);
    for (float& x : query) x = random.heavy_tailed();
    CodedSide& keys = run.keys->side;
    const auto log_odds = [&](float factor) {
      keys.logit_bias = factor;
      const double first = reference(shape, query, 250, run.run())[0];
      return std::log(first / (1 - first));
    };
    double difference = 0;  // of the biases at factor 1
    for (int64_t c = 0; c < 16; ++c) {
      const int64_t other = (c + 8) % 16;
      const auto variance = [&](const Half* scales) {
        const double a = to_float(scales[c]), b = to_float(scales[other]);
        return keys.codebook->noise * (a * a + b * b) / 2;
      };
      difference += 0.25 * 0.25 / 2 * query[c] * query[c] *
                    (variance(keys.scales) - variance(keys.scales + keys.segment_stride));
    }
    const double unbiased = log_odds(0);
    for (const float factor : {50.0f, -100.0f}) {
      EXPECT_NEAR(log_odds(factor) - unbiased, factor * difference,
                  1e-4 * std::abs(factor * difference) + 1e-4)
          << bits << " bits, " << factor;
    }
  }
}

TEST(AttendCodedReference, ConstantValuesComeOutUnchanged) {
  TestRandom random(32);
  const RopeTable rope(16, 300, 10000);
  const TestCodedRun run({4, 4, 1, 0}, rope, 150, 4, random);
  const CodedSide& values = run.values->side;
  for (std::byte* block : values.blocks) {
    for (int64_t i = 0; i < values.shape.num_tiles * kTileTokens; ++i) {
      reinterpret_cast<Half*>(block + values.layout.scales)[i] = to_half(0);
      reinterpret_cast<Half*>(block + values.layout.zeros)[i] = to_half(0.5f);
    }
  }
  std::vector<float> query(3 * 16);
  for (float& x : query) x = random.heavy_tailed();
  for (float x : reference({16, 3, 0.25f}, query, 150, run.run())) EXPECT_FLOAT_EQ(x, 0.5f);
}

TEST(AttendCodedReference, AQueryThatSeesNothingGetsZeros) {
  TestRandom random(33);
  const RopeTable rope(16, 300, 10000);
  const TestCodedRun run({4, 4, 1, 1}, rope, 100, 50, random);
  const std::vector<float> query(16, 1.0f), zeros(16, 0.0f);
  EXPECT_EQ(reference({16, 1, 1}, query, 49, run.run()), zeros);
  AttendRun old = run.run();
  old.max_lag = 10;
  EXPECT_EQ(reference({16, 1, 1}, query, 160, old), zeros);
}

}  // namespace
}  // namespace kvquant
