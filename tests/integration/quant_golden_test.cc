// Quantization against tests/golden/quant_golden.json, which make_quant_golden.py computes from the
// published formulas in numpy: ranges and outliers, the codebook fit, codes and decoded numbers.
#include <gtest/gtest.h>

#include <cmath>

#include "formats/code_planes.h"
#include "golden.h"
#include "kvquant/codebook.h"
#include "ops/decode.h"
#include "ops/encode.h"
#include "quant/codebook_weights.h"
#include "quant/ranges.h"

namespace kvquant {
namespace {

struct NuqCase {
  bool is_key;
  int bits;
  double percent;
  int64_t num_tokens, num_channels;
  std::vector<float> x;                        // [num_tokens, num_channels]
  std::vector<float> codebook, scales, zeros;  // of channels (keys) or tokens (values)
  std::vector<uint8_t> outliers, codes;        // [num_tokens, num_channels]
  std::vector<float> decoded;

  size_t range_of(size_t i) const { return is_key ? i % num_channels : i / num_channels; }
  std::string name() const {
    return std::string(is_key ? "keys, " : "values, ") + std::to_string(bits) + " bits, " +
           std::to_string(percent) + "%";
  }
};

std::vector<NuqCase> read_cases() {
  const auto golden = test::read_golden("quant_golden.json");
  std::vector<NuqCase> cases;
  for (const auto& entry : golden.at("nuq")) {
    const auto& input = golden.at(entry.at("side").get<std::string>());
    NuqCase out{.is_key = entry.at("side") == "key",
                .bits = entry.at("bits"),
                .percent = entry.at("outlier_percent"),
                .num_tokens = input.at("shape").at(0),
                .num_channels = input.at("shape").at(1),
                .x = input.at("x"),
                .codebook = entry.at("codebook"),
                .scales = entry.at("scales"),
                .zeros = entry.at("zeros"),
                .outliers = {},
                .codes = {},
                .decoded = entry.at("decoded")};
    out.outliers.resize(out.x.size(), 0);
    for (const size_t i : entry.at("outliers")) out.outliers.at(i) = 1;
    for (const char digit : entry.at("codes").get<std::string>()) {
      out.codes.push_back(static_cast<uint8_t>(digit <= '9' ? digit - '0' : digit - 'a' + 10));
    }
    cases.push_back(out);
  }
  return cases;
}

// Uniform codes, without outliers.
std::vector<NuqCase> read_uniform_cases() {
  const auto golden = test::read_golden("quant_golden.json");
  std::vector<NuqCase> cases;
  for (const auto& entry : golden.at("integer")) {
    const auto& input = golden.at(entry.at("side").get<std::string>());
    const std::vector<float> x = input.at("x");
    cases.push_back({.is_key = entry.at("side") == "key",
                     .bits = entry.at("bits"),
                     .percent = 0,
                     .num_tokens = input.at("shape").at(0),
                     .num_channels = input.at("shape").at(1),
                     .x = x,
                     .codebook = {},
                     .scales = entry.at("scales"),
                     .zeros = entry.at("zeros"),
                     .outliers = std::vector<uint8_t>(x.size(), 0),
                     .codes = entry.at("codes"),
                     .decoded = entry.at("decoded")});
  }
  return cases;
}

// y of every value, in the normative order of operations.
std::vector<float> normalised(const NuqCase& c) {
  std::vector<float> y;
  for (size_t i = 0; i < c.x.size(); ++i) {
    const float scale = c.scales[c.range_of(i)];
    const float difference = c.x[i] - c.zeros[c.range_of(i)];
    y.push_back(difference * (scale > 0 ? 1 / scale : 0.0f));
  }
  return y;
}

// Levels of uniform codes are rounded otherwise than the script's: an ulp of a half range.
void expect_close(const NuqCase& c, const std::vector<float>& actual) {
  ASSERT_EQ(actual.size(), c.decoded.size());
  for (size_t i = 0; i < actual.size(); ++i) {
    const double slack = c.codebook.empty() ? 2e-7 * c.scales[c.range_of(i)] : 0;
    EXPECT_NEAR(actual[i], c.decoded[i], 1e-6 * std::fabs(c.decoded[i]) + slack) << i;
  }
}

TEST(QuantGolden, HasBothSidesAllBitsWithAndWithoutOutliers) {
  EXPECT_EQ(read_cases().size(), 12u);
  EXPECT_EQ(read_uniform_cases().size(), 4u);
}

TEST(QuantGolden, RangesAndOutliersAreThoseOfTheFormulas) {
  for (const NuqCase& c : read_cases()) {
    SCOPED_TRACE(c.name());
    for (int64_t channel = 0; c.is_key && channel < c.num_channels; ++channel) {
      std::vector<float> values;
      for (int64_t t = 0; t < c.num_tokens; ++t) {
        values.push_back(c.x[t * c.num_channels + channel]);
      }
      const std::vector<float> in_order = values;
      const ChannelRange range = fit_channel(values, c.percent);
      EXPECT_EQ(to_float(range.scale), c.scales[channel]);
      EXPECT_EQ(to_float(range.zero), c.zeros[channel]);
      for (int64_t t = 0; t < c.num_tokens; ++t) {
        const bool is_outlier =
            in_order[t] < to_float(range.low) || in_order[t] > to_float(range.high);
        EXPECT_EQ(is_outlier, c.outliers[t * c.num_channels + channel] == 1);
      }
    }
    for (int64_t t = 0; !c.is_key && t < c.num_tokens; ++t) {
      const std::span row(c.x.data() + t * c.num_channels, c.num_channels);
      const std::span expected(c.outliers.data() + t * c.num_channels, c.num_channels);
      std::vector<uint8_t> marks(row.size());
      const RowRange range = fit_row(row, c.percent > 0 ? 1 : 0, marks);  // ceil(8 * 5 / 200)
      EXPECT_EQ(marks, std::vector<uint8_t>(expected.begin(), expected.end()));
      EXPECT_EQ(to_float(range.scale), c.scales[t]);
      EXPECT_EQ(to_float(range.zero), c.zeros[t]);
    }
  }
}

TEST(QuantGolden, TheFitFindsTheSameCodebook) {
  for (const NuqCase& c : read_cases()) {
    SCOPED_TRACE(c.name());
    const std::vector<float> y = normalised(c), squares = scale_weights(c.scales);
    std::vector<float> inside, weights;
    for (size_t i = 0; i < y.size(); ++i) {
      if (c.outliers[i] != 0) continue;
      inside.push_back(y[i]);
      weights.push_back(squares[c.range_of(i)]);
    }
    const auto levels = compute_nuq_codebook(inside, weights, c.bits);
    ASSERT_EQ(levels.size(), c.codebook.size());
    for (size_t l = 0; l < levels.size(); ++l) EXPECT_NEAR(levels[l], c.codebook[l], 1e-6);
  }
}

TEST(QuantGolden, CodesAndDecodedValuesAreTheSame) {
  for (const NuqCase& c : read_cases()) {
    SCOPED_TRACE(c.name());
    std::vector<uint8_t> codes(c.x.size());
    quantize_to_nuq(normalised(c), c.codebook, codes);
    EXPECT_EQ(codes, c.codes);
    std::vector<float> decoded(codes.size());
    dequantize_from_nuq(codes, c.codebook, decoded);
    for (size_t i = 0; i < decoded.size(); ++i) {
      const float product = decoded[i] * c.scales[c.range_of(i)];
      decoded[i] = c.outliers[i] != 0 ? c.x[i] : product + c.zeros[c.range_of(i)];
    }
    expect_close(c, decoded);
  }
}

// Codes of a tile and what they decode to, against the case's.
void expect_tile(const NuqCase& c, const NuqCodebook& book) {
  const ScaleAxis axis = c.is_key ? ScaleAxis::kChannel : ScaleAxis::kToken;
  std::vector<float> scales = c.scales, zeros = c.zeros;
  if (!c.is_key) scales.resize(kTileTokens), zeros.resize(kTileTokens);
  std::vector<uint8_t> tile(code_tile_bytes(c.bits, c.num_channels), 0);
  encode_tile({.codebook = &book,
               .rows = c.x.data(),
               .row_stride = c.num_channels,
               .scales = scales.data(),
               .zeros = zeros.data(),
               .axis = axis,
               .head_dim = c.num_channels,
               .num_tokens = c.num_tokens,
               .codes = tile.data()});
  std::vector<uint8_t> codes(c.codes.size());
  std::vector<uint8_t> planar(c.num_channels * kTileTokens);
  read_codes(tile.data(), code_side(axis), c.bits, c.num_channels, planar.data());
  for (int64_t channel = 0; channel < c.num_channels; ++channel) {
    for (int64_t t = 0; t < c.num_tokens; ++t) {
      codes[t * c.num_channels + channel] = planar[channel * kTileTokens + t];
    }
  }
  EXPECT_EQ(codes, c.codes);
  std::vector<float> decoded(c.num_channels * kTileTokens), actual;
  decode_tile({.codebook = &book,
               .codes = tile.data(),
               .scales = scales.data(),
               .zeros = zeros.data(),
               .axis = axis,
               .head_dim = c.num_channels,
               .num_tokens = c.num_tokens},
              decoded.data());
  for (size_t i = 0; i < c.x.size(); ++i) {
    const float dense = decoded[i % c.num_channels * kTileTokens + i / c.num_channels];
    actual.push_back(c.outliers[i] != 0 ? c.x[i] : dense);
  }
  expect_close(c, actual);
}

TEST(QuantGolden, TilesOfTheEngineHoldTheSameCodesAndDecodeTheSame) {
  for (const NuqCase& c : read_cases()) {
    SCOPED_TRACE(c.name());
    expect_tile(c, make_codebook(c.codebook));
  }
}

TEST(QuantGolden, UniformTilesHoldTheNearestOfEquallySpacedLevels) {
  for (const NuqCase& c : read_uniform_cases()) {
    SCOPED_TRACE(c.name());
    expect_tile(c, make_uniform_codebook(c.bits));
  }
}

}  // namespace
}  // namespace kvquant
