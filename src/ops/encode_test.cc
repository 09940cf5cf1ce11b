#include "ops/encode.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

#include "base/half.h"
#include "formats/dense_tile.h"
#include "ops/decode.h"

namespace kvquant {
namespace {

NuqCodebook test_codebook(int bits) {
  if (bits == 8) return make_uniform_codebook(8);
  std::vector<float> levels;
  const int count = 1 << bits;
  for (int i = 0; i < count; ++i) {
    const float x = -1 + 2 * static_cast<float>(i) / static_cast<float>(count - 1);
    levels.push_back(x * (0.6f + 0.4f * std::abs(x)));
  }
  return make_codebook(levels);
}

// Backends that have kernels of their own.
std::vector<Backend> fast_backends() {
  std::vector<Backend> backends = cuda_backends();
  backends.push_back(Backend::kSimd);
  return backends;
}

// A tile of fp16 numbers, rows `stride` apart, and all that a job may ask for.
struct TileData {
  TileData(int64_t head_dim, ScaleAxis axis, unsigned seed)
      : stride(head_dim + 3),
        rows(64 * stride),
        scales(axis == ScaleAxis::kToken ? 64 : head_dim),
        zeros(scales.size()),
        low(head_dim),
        high(head_dim),
        order(head_dim),
        coefficients(head_dim * head_dim),
        outliers(head_dim) {
    std::mt19937_64 rng(seed);
    std::student_t_distribution<float> heavy_tailed(3);
    std::normal_distribution<float> normal;
    for (float& x : rows) x = round_to_half(heavy_tailed(rng));
    for (float& s : scales) s = round_to_half(std::abs(heavy_tailed(rng)));
    for (float& z : zeros) z = round_to_half(heavy_tailed(rng));
    for (float& x : high) x = round_to_half(std::abs(heavy_tailed(rng)));
    for (int64_t c = 0; c < head_dim; ++c) low[c] = -high[(c + 1) % head_dim];
    scales[1] = 0;
    scales[2] = 0x1p-24f;  // the smallest fp16
    std::iota(order.begin(), order.end(), uint8_t{0});
    std::shuffle(order.begin(), order.end(), rng);
    const float spread = 0.5f / std::sqrt(static_cast<float>(head_dim));
    for (float& a : coefficients) a = spread * normal(rng);
    for (uint64_t& word : outliers) word = rng() & rng() & rng();
    feedback = {order.data(), coefficients.data()};
  }
  TileData(const TileData&) = delete;

  EncodeJob job(const NuqCodebook& book, ScaleAxis axis) const {
    return {.codebook = &book,
            .rows = rows.data(),
            .row_stride = stride,
            .scales = scales.data(),
            .zeros = zeros.data(),
            .axis = axis,
            .head_dim = static_cast<int64_t>(low.size()),
            .num_tokens = 64};
  }

  int64_t stride;
  std::vector<float> rows, scales, zeros, low, high;
  std::vector<uint8_t> order;
  std::vector<float> coefficients;
  std::vector<uint64_t> outliers;
  RoundingFeedback feedback;
};

// What a job wrote, with guards behind.
struct Encoded {
  Encoded(int bits, int64_t head_dim)
      : codes(code_tile_bytes(bits, head_dim) + 1, 0), outliers(head_dim + 1, 0) {
    codes.back() = 0xA5;
    outliers.back() = 0xA5;
  }
  std::vector<uint8_t> codes;
  std::vector<uint64_t> outliers;
  friend bool operator==(const Encoded&, const Encoded&) = default;
};

TEST(EncodeReference, CodesByHand) {
  const NuqCodebook book = make_codebook(std::vector<float>{-1, -0.5f, 0.5f, 1});
  std::vector<float> rows(64 * 8, 0.0f), scales(8, 2.0f), zeros(8, 1.0f), high(8, 3.0f);
  const std::vector<float> low(8, -3.0f);
  rows[8 * 0] = 1;        // y = 0: a tie of levels 1 and 2 goes to the lower
  rows[8 * 1] = 1.0001f;  // level 2
  rows[8 * 17] = 2.5f;    // y = 0.75, a tie again: level 2
  rows[8 * 63] = 100;     // clamped to level 3, an outlier
  rows[8 * 33] = -100;    // level 0, an outlier
  rows[8 * 5 + 7] = 3;    // on the threshold: no outlier
  std::vector<uint8_t> codes(code_tile_bytes(2, 8), 0);
  std::vector<uint64_t> outliers(8, 1);
  ref::encode_tile({.codebook = &book,
                    .rows = rows.data(),
                    .row_stride = 8,
                    .scales = scales.data(),
                    .zeros = zeros.data(),
                    .low = low.data(),
                    .high = high.data(),
                    .head_dim = 8,
                    .num_tokens = 64,
                    .codes = codes.data(),
                    .outliers = outliers.data()});
  // All other values are 0: y = -0.5, level 1.
  EXPECT_EQ(codes[0], 0b01'01'01'01);
  EXPECT_EQ(codes[4], 0b01'00'10'10);  // tokens 1, 17, 33, 49 from the low bits
  EXPECT_EQ(codes[60], 0b11'01'01'01);
  EXPECT_EQ(outliers[0], uint64_t{1} << 63 | uint64_t{1} << 33);
  EXPECT_EQ(std::count(outliers.begin() + 1, outliers.end(), 0u), 7);
}

TEST(EncodeReference, FeedbackByHand) {
  // Levels -1, -1/3, 1/3, 1; channel 1 first. Token 0: 0.6 becomes 1/3, error 0.6 - 1/3; half of
  // it lifts 0.6 of channel 0 to 0.733, which becomes 1. Token 1: channel 1 is an outlier, no
  // error: 0.6 becomes 1/3. Token 2: 0.9 becomes 1, and 0.7 - 0.05 becomes 1/3, not 1.
  const NuqCodebook book = make_codebook(std::vector<float>{-1, -1 / 3.0f, 1 / 3.0f, 1});
  std::vector<float> rows(64 * 8, 0.0f), scales(8, 1.0f), zeros(8, 0.0f), high(8, 2.0f);
  const std::vector<float> low(8, -2.0f);
  const float tokens[3][2] = {{0.6f, 0.6f}, {0.6f, 9.0f}, {0.7f, 0.9f}};
  for (int t = 0; t < 3; ++t) std::copy_n(tokens[t], 2, &rows[8 * t]);
  const std::vector<uint8_t> order = {1, 0, 2, 3, 4, 5, 6, 7};
  std::vector<float> coefficients(64, 0.0f);
  coefficients[8] = 0.5f;  // step 1, error of step 0
  const RoundingFeedback feedback{order.data(), coefficients.data()};
  auto backends = fast_backends();
  backends.push_back(Backend::kReference);
  for (const Backend backend : backends) {
    std::vector<uint8_t> codes(code_tile_bytes(2, 8), 0);
    std::vector<uint64_t> outliers(8, 0);
    encode_tile({.codebook = &book,
                 .rows = rows.data(),
                 .row_stride = 8,
                 .scales = scales.data(),
                 .zeros = zeros.data(),
                 .low = low.data(),
                 .high = high.data(),
                 .feedback = &feedback,
                 .head_dim = 8,
                 .num_tokens = 3,
                 .codes = codes.data(),
                 .outliers = outliers.data()},
                backend);
    std::vector<uint8_t> planar(8 * 64);
    read_codes(codes.data(), KvSide::kKey, 2, 8, planar.data());
    EXPECT_EQ(std::vector<uint8_t>(planar.begin(), planar.begin() + 3),
              (std::vector<uint8_t>{3, 2, 2}));
    EXPECT_EQ(std::vector<uint8_t>(planar.begin() + 64, planar.begin() + 67),
              (std::vector<uint8_t>{2, 3, 3}));
    EXPECT_EQ(outliers[1], 2u);
    EXPECT_EQ(outliers[0], 0u);
  }
}

enum class OutlierKind { kNone, kThresholds, kGiven };

class EncodeOfBits : public testing::TestWithParam<int> {};

// Of all backends, the tile as a whole and in pieces of 1, 3, 7, ... tokens. With thresholds marks
// are written, else those of `data` are read, if `job` has any.
void expect_reference_bytes(const TileData& data, EncodeJob job, int bits,
                            const ::testing::Message& where) {
  const bool has_marks = job.outliers != nullptr, is_given = has_marks && job.low == nullptr;
  const auto encode = [&](Encoded& out, std::vector<uint64_t>& marks, Backend backend) {
    job.codes = out.codes.data();
    job.outliers = has_marks ? marks.data() : nullptr;
    encode_tile(job, backend);
  };
  Encoded empty(bits, job.head_dim);
  if (is_given) std::copy(data.outliers.begin(), data.outliers.end(), empty.outliers.begin());
  Encoded expected = empty;
  encode(expected, expected.outliers, Backend::kReference);
  EXPECT_EQ(expected.outliers[0] > 0, has_marks) << where;
  for (const Backend backend : fast_backends()) {
    Encoded whole = empty, pieces = empty;
    job.first_token = 0;
    job.num_tokens = 64;
    job.rows = data.rows.data();
    encode(whole, whole.outliers, backend);
    int64_t size = 1;
    for (int64_t first = 0; first < 64; first += size, size = 2 * size + 1) {
      job.first_token = first;
      job.num_tokens = std::min<int64_t>(size, 64 - first);
      job.rows = data.rows.data() + first * data.stride;
      std::vector<uint64_t> marks = pieces.outliers;
      encode(pieces, marks, backend);
      for (int64_t c = 0; c < job.head_dim; ++c) pieces.outliers[c] |= marks[c];
    }
    EXPECT_TRUE(whole == expected) << backend_name(backend) << ", " << where;
    EXPECT_TRUE(pieces == expected) << backend_name(backend) << ", " << where;
  }
}

TEST_P(EncodeOfBits, WritesTheReferenceBytesAlsoInPieces) {
  const int bits = GetParam();
  const NuqCodebook book = test_codebook(bits);
  for (const int64_t head_dim : {8, 16, 64, 80, 128, 256}) {
    for (const ScaleAxis axis : {ScaleAxis::kChannel, ScaleAxis::kToken}) {
      const TileData data(head_dim, axis, static_cast<unsigned>(head_dim + bits));
      for (const bool has_feedback : {false, true}) {
        for (const auto kind :
             {OutlierKind::kNone, OutlierKind::kThresholds, OutlierKind::kGiven}) {
          EncodeJob job = data.job(book, axis);
          if (has_feedback) job.feedback = &data.feedback;
          if (kind == OutlierKind::kThresholds) job.low = data.low.data();
          if (kind == OutlierKind::kThresholds) job.high = data.high.data();
          std::vector<uint64_t> marks(head_dim);
          if (kind != OutlierKind::kNone) job.outliers = marks.data();
          const auto where = ::testing::Message()
                             << bits << " bits, head_dim " << head_dim << " feedback "
                             << has_feedback << " outliers " << static_cast<int>(kind);
          expect_reference_bytes(data, job, bits, where);
        }
      }
    }
  }
}

TEST_P(EncodeOfBits, EveryInstructionSetWritesTheSameBytes) {
  const int bits = GetParam();
  const NuqCodebook book = test_codebook(bits);
  const TileData data(80, ScaleAxis::kChannel, 9);
  EncodeJob job = data.job(book, ScaleAxis::kChannel);
  job.feedback = &data.feedback;
  job.low = data.low.data();
  job.high = data.high.data();
  for (const int64_t num_tokens : {1, 5, 20, 64}) {
    job.num_tokens = num_tokens;
    Encoded expected(bits, 80);
    job.codes = expected.codes.data();
    job.outliers = expected.outliers.data();
    encode_tile(job, Backend::kReference);
    for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
      hwy::SetSupportedTargetsForTest(target);
      Encoded actual(bits, 80);
      job.codes = actual.codes.data();
      job.outliers = actual.outliers.data();
      encode_tile(job, Backend::kSimd);
      EXPECT_TRUE(actual == expected) << hwy::TargetName(target);
    }
    hwy::SetSupportedTargetsForTest(0);
  }
}

INSTANTIATE_TEST_SUITE_P(AllBits, EncodeOfBits, testing::Values(2, 3, 4, 8));

// Coefficients that minimise e' M e greedily: with M = L D L' in reverse coding order, the weights
// of a step's errors are those of the Cholesky factor of M (arXiv 2307.13304).
std::vector<float> ldl_coefficients(std::vector<double> metric, int64_t n) {
  std::vector<float> coefficients(n * n, 0.0f);
  for (int64_t i = n - 1; i >= 0; --i) {  // channels before i: complete the square in e_i last
    const double pivot = metric[i * n + i];
    for (int64_t j = 0; j < i; ++j) {
      coefficients[i * n + j] = static_cast<float>(metric[i * n + j] / pivot);
    }
    for (int64_t j = 0; j < i; ++j) {
      for (int64_t k = 0; k < i; ++k) {
        metric[j * n + k] -= metric[i * n + j] * metric[i * n + k] / pivot;
      }
    }
  }
  return coefficients;
}

TEST(Encode, FeedbackLowersTheErrorInItsMetric) {
  constexpr int64_t kDim = 64;
  const NuqCodebook book = test_codebook(3);
  std::mt19937 rng(4);
  std::normal_distribution<float> normal;
  // Queries of few directions and some noise: a metric far from the identity.
  std::vector<double> metric(kDim * kDim, 0.0);
  for (int query = 0; query < 24; ++query) {
    std::vector<double> q(kDim);
    for (double& x : q) x = normal(rng);
    for (int64_t i = 0; i < kDim * kDim; ++i) metric[i] += q[i / kDim] * q[i % kDim] / 24;
  }
  for (int64_t i = 0; i < kDim; ++i) metric[i * kDim + i] += 0.1;
  const std::vector<float> coefficients = ldl_coefficients(metric, kDim);
  std::vector<uint8_t> order(kDim);
  std::iota(order.begin(), order.end(), uint8_t{0});
  const RoundingFeedback feedback{order.data(), coefficients.data()};
  TileData data(kDim, ScaleAxis::kChannel, 1);
  for (float& x : data.rows) x = round_to_half(0.5f * normal(rng));
  std::fill(data.scales.begin(), data.scales.end(), 1.5f);
  std::fill(data.zeros.begin(), data.zeros.end(), 0.0f);
  double in_metric[2] = {}, plain[2] = {};
  for (const int with : {0, 1}) {
    EncodeJob job = data.job(book, ScaleAxis::kChannel);
    std::vector<uint8_t> codes(code_tile_bytes(3, kDim), 0);
    job.codes = codes.data();
    if (with == 1) job.feedback = &feedback;
    encode_tile(job);
    std::vector<float> decoded(64 * kDim);
    decode_tile({.codebook = &book,
                 .codes = codes.data(),
                 .scales = data.scales.data(),
                 .zeros = data.zeros.data(),
                 .head_dim = kDim,
                 .num_tokens = 64},
                decoded.data());
    for (int64_t t = 0; t < 64; ++t) {
      std::vector<double> e(kDim);
      for (int64_t c = 0; c < kDim; ++c) {
        e[c] = double{data.rows[t * data.stride + c]} - decoded[c * 64 + t];
        plain[with] += e[c] * e[c];
      }
      for (int64_t i = 0; i < kDim * kDim; ++i) {
        in_metric[with] += e[i / kDim] * metric[i] * e[i % kDim];
      }
    }
  }
  RecordProperty("ratio", std::to_string(in_metric[1] / in_metric[0]));
  EXPECT_LT(in_metric[1], 0.6 * in_metric[0]);
  EXPECT_GT(in_metric[1], 0.1 * in_metric[0]);
  EXPECT_GT(plain[1], plain[0]);  // nearest levels are the best without a metric
}

TEST(Encode, RefusesTokensOutsideTheTile) {
  const NuqCodebook book = test_codebook(2);
  EXPECT_THROW(encode_tile({.codebook = &book, .head_dim = 8, .first_token = 60, .num_tokens = 5}),
               std::invalid_argument);
  EXPECT_THROW(encode_tile({.codebook = &book, .head_dim = 12}), std::invalid_argument);
  EXPECT_THROW(encode_tile({.codebook = &book, .head_dim = 264}), std::invalid_argument);
  const float low[8] = {};
  EXPECT_THROW(encode_tile({.codebook = &book, .low = low, .head_dim = 8}), std::invalid_argument);
}

TEST(Decode, EqualsTheReferenceBitForBitWithOutliers) {
  for (const int bits : {2, 3, 4, 8}) {
    for (const int64_t head_dim : {8, 16, 64, 80, 128, 256}) {
      for (const ScaleAxis axis : {ScaleAxis::kChannel, ScaleAxis::kToken}) {
        const NuqCodebook book = test_codebook(bits);
        const TileData data(head_dim, axis, static_cast<unsigned>(head_dim));
        std::mt19937 rng(7);
        std::vector<uint8_t> codes(code_tile_bytes(bits, head_dim));
        for (auto& byte : codes) byte = static_cast<uint8_t>(rng());
        OutlierPage page{};
        page.entries[127] = {outlier_place(/*token=*/3, /*channel=*/1), to_half(42.0f)};
        OutlierPage next{};
        next.entries[0] = {outlier_place(3, 5), to_half(-7.0f)};
        const OutlierPage* pages[] = {&page, &next};
        const DecodeJob job{.codebook = &book,
                            .codes = codes.data(),
                            .scales = data.scales.data(),
                            .zeros = data.zeros.data(),
                            .axis = axis,
                            .head_dim = head_dim,
                            .num_tokens = 61,
                            .outliers = {127, 2, pages}};
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

std::vector<float> random_planar(int64_t head_dim, unsigned seed) {
  std::mt19937 rng(seed);
  std::student_t_distribution<float> heavy_tailed(3);
  std::vector<float> planar(64 * head_dim);
  for (float& x : planar) x = round_to_half(heavy_tailed(rng));
  return planar;
}

TEST(Decode, KeyTilesAreRotatedAsByRope) {
  for (const int64_t head_dim : {8, 64, 80}) {
    const RopeTable table(head_dim, 70, 10000);
    const std::vector<float> planar = random_planar(head_dim, 3);
    std::vector<float> cos(32 * head_dim), sin(32 * head_dim);
    fill_rope_tile(table, /*first_position=*/5, cos.data(), sin.data());
    for (const Backend backend : {Backend::kReference, Backend::kSimd}) {
      std::vector<float> tile(64 * head_dim), row(head_dim);
      rotate_to_key_tile(planar.data(), cos.data(), sin.data(), head_dim, tile.data(), backend);
      for (int64_t t = 0; t < 64; ++t) {
        for (int64_t c = 0; c < head_dim; ++c) row[c] = planar[64 * c + t];
        rope_row(row.data(), table.cos(5 + t), table.sin(5 + t), head_dim);
        for (int64_t c = 0; c < head_dim; ++c) {
          const float partner = planar[64 * ((c + head_dim / 2) % head_dim) + t];
          const float size = std::abs(planar[64 * c + t]) + std::abs(partner);
          EXPECT_NEAR(tile[key_index(t, c)], row[c], 2e-7f * size);
        }
      }
    }
  }
}

TEST(Decode, ValueTilesHoldTokenPairs) {
  for (const int64_t head_dim : {8, 64, 80}) {
    const std::vector<float> planar = random_planar(head_dim, 4);
    std::vector<float> tile(64 * head_dim);
    planar_to_value_tile(planar.data(), head_dim, tile.data());
    for (int64_t t = 0; t < 64; ++t) {
      for (int64_t c = 0; c < head_dim; ++c) {
        EXPECT_EQ(tile[value_index(t, c, head_dim)], planar[64 * c + t]);
      }
    }
  }
}

TEST(Decode, ATileTurnsAsItsPositionsDo) {
  const RopeTable table(8, 300, 10000);
  std::vector<float> cos(4 * 64), sin(4 * 64);
  for (const int64_t first : {0, 5, 236, 299}) {  // the last reaches past the table
    fill_rope_tile(table, first, cos.data(), sin.data());
    for (int64_t t = 0; t < 64; ++t) {
      for (int64_t c = 0; c < 4; ++c) {
        const double angle = static_cast<double>(first + t) * std::pow(10000.0, -c / 4.0);
        EXPECT_NEAR(cos[64 * c + t], std::cos(angle), 2e-7) << first + t;
        EXPECT_NEAR(sin[64 * c + t], std::sin(angle), 2e-7) << first + t;
      }
    }
  }
}

}  // namespace
}  // namespace kvquant
