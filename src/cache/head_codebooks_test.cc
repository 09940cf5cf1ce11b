// A KvCache whose calibration has a codebook for each KV head.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>

#include "cache/kv_cache.h"
#include "cache/kv_cache_test_model.h"
#include "quant/calibration_test_data.h"
#include "quant/codec_parameters.h"

namespace kvquant {
namespace {

constexpr CalibrationShape kShape{1, 6, 3, 16};
constexpr int64_t kRowSize = 48;
constexpr size_t kOnePercent = 4;  // in kOutlierPercents

// fp16 numbers [num_tokens, kRowSize]: head 0 near -3 and 3, head 1 Student's t with 3 degrees
// of freedom, head 2 small and normal.
std::vector<float> rows_of(int64_t num_tokens, uint64_t seed) {
  const CounterRng random(seed);
  std::vector<float> out(static_cast<size_t>(num_tokens * kRowSize));
  for (size_t i = 0; i < out.size(); ++i) {
    const auto [a, b] = random.normals(2 * i);
    const auto [c, d] = random.normals(2 * i + 1);
    const float student = a / std::sqrt((b * b + c * c + d * d) / 3);
    const float heads[] = {(random.uniform(i) < 0.5 ? -3.0f : 3.0f) + 0.1f * b,
                           std::clamp(student, -20.0f, 20.0f), 0.3f * a};
    out[i] = round_to_half(heads[i % kRowSize / 16]);
  }
  return out;
}

// Without a metric, so that keys are rounded to the nearest level.
std::shared_ptr<const Calibration> fitted(CodebookScope scope) {
  ThreadPool pool(1, ThreadPool::Pin::kNo);
  TestLayer layer(kShape, 2, 400, 1);
  layer.keys = rows_of(800, 2);
  layer.values = rows_of(800, 3);
  layer.views.keys = row_major<const float, 3>(layer.keys.data(), {800, 3, 16});
  layer.views.values = row_major<const float, 3>(layer.values.data(), {800, 3, 16});
  auto out = std::make_shared<Calibration>();
  out->info.shape = kShape;
  out->info.codebooks = scope;
  out->layers.push_back(fit_layer(layer.views, {.choices = {.codebooks = scope}}, pool));
  return out;
}

// A cache of one sequence, filled in two pieces, and what it decodes to: keys before RoPE.
struct Filled {
  static constexpr int64_t kTokens = 150;
  std::vector<float> keys = rows_of(kTokens, 4), values = rows_of(kTokens, 5);
  std::vector<float> decoded_keys = keys, decoded_values = values;
  int64_t empty_bytes = 0;

  Filled(const std::string& spec, std::shared_ptr<const Calibration> calibration) {
    const RopeTable rope(16, 1000, 10000);
    ThreadPool pool(2, ThreadPool::Pin::kNo);
    KvCache cache({1, 3, 16}, parse_spec(spec), CacheMode::kStrict, rope, pool,
                  std::move(calibration));
    empty_bytes = cache.memory_bytes();
    const auto id = cache.add_sequence();
    for (const auto& [first, count] : {std::pair<int64_t, int64_t>{0, 70}, {70, 80}}) {
      const auto chunk = [&, first = first, count = count](const std::vector<float>& x) {
        return row_major<const float, 3>(x.data() + first * kRowSize, {count, 3, 16});
      };
      cache.append(0, id, chunk(keys), chunk(values));
    }
    cache.prepare_view(0, id);
    for (int64_t head = 0; head < 3; ++head) {
      const AttendRun& run = cache.view(0, id, head)[0];
      for (int64_t tile = 0; tile * kTileTokens < kTokens; ++tile) {
        const int64_t count = std::min<int64_t>(kTileTokens, kTokens - tile * kTileTokens);
        const auto place = [&](const CodedSide& side, std::vector<float>& out) {
          const auto planar = test::decode_planar(side, KvSide::kKey, tile, count);
          for (int64_t i = 0; i < 16 * count; ++i) {
            const int64_t token = tile * kTileTokens + i % count, c = i / count;
            out[token * kRowSize + head * 16 + c] = planar[c * kTileTokens + i % count];
          }
        };
        place(*run.coded_keys, decoded_keys);
        place(*run.coded_values, decoded_values);
      }
    }
  }
};

// Codebooks of the heads from a set [P, 3, 2^bits].
std::vector<NuqCodebook> books_of(const std::vector<float>& set, int bits, size_t percent) {
  std::vector<NuqCodebook> books;
  const size_t num_levels = size_t{1} << bits;
  for (size_t head = 0; head < 3; ++head) {
    books.push_back(
        make_codebook(std::span(set).subspan((percent * 3 + head) * num_levels, num_levels)));
  }
  return books;
}

void expect_near(const std::vector<float>& decoded, const std::vector<float>& expected) {
  for (size_t i = 0; i < decoded.size(); ++i) {
    ASSERT_NEAR(decoded[i], expected[i], 1e-5 * (1 + std::abs(expected[i])))
        << "token " << i / kRowSize << ", channel " << i % kRowSize;
  }
}

std::vector<float> reference_keys(const std::vector<float>& keys, const KeyCalibration& fit,
                                  int bits, size_t percent) {
  const auto ranges = nuq_key_ranges(fit, bits, kOutlierPercents[percent]);
  const auto books = books_of(fit.codebooks[static_cast<size_t>(bits - 2)], bits, percent);
  std::vector<float> out = keys;
  for (size_t i = 0; i < keys.size(); ++i) {
    const size_t c = i % kRowSize;
    const bool is_outside = keys[i] < to_float(ranges[2 * kRowSize + c]) ||
                            keys[i] > to_float(ranges[3 * kRowSize + c]);
    if (percent > 0 && is_outside) continue;
    out[i] =
        test::nearest(books[c / 16], keys[i], to_float(ranges[c]), to_float(ranges[kRowSize + c]));
  }
  return out;
}

std::vector<float> reference_values(const std::vector<float>& values, bool is_rotated,
                                    const std::vector<NuqCodebook>& books, double percent) {
  std::vector<float> out = values;
  for (size_t first = 0; first < values.size(); first += kRowSize) {
    const std::span row = std::span(out).subspan(first, kRowSize);
    if (is_rotated) ref::hadamard_rows(row.data(), 16, 3, 16);
    std::vector<uint8_t> marks(kRowSize);
    const RowRange range = fit_row(row, num_value_outliers(kRowSize, percent), marks);
    for (size_t c = 0; c < kRowSize; ++c) {
      row[c] = marks[c] != 0 ? round_to_half(row[c])
                             : test::nearest(books[c / 16], row[c], to_float(range.scale),
                                             to_float(range.zero));
    }
    if (is_rotated) ref::hadamard_rows(row.data(), 16, 3, 16);
  }
  return out;
}

TEST(HeadCodebooks, CachesDecodeWithTheCodebookOfTheHead) {
  const auto calibration = fitted(CodebookScope::kHead);
  const LayerCalibration& fit = calibration->layers[0];
  for (int bits = 2; bits <= 4; ++bits) {
    for (const size_t percent : {size_t{0}, kOnePercent}) {
      const std::string codec = fmt::format("nuq{}{}", bits, percent > 0 ? "-1%" : "");
      SCOPED_TRACE(codec);
      const auto i = static_cast<size_t>(bits - 2);
      const double share = kOutlierPercents[percent];
      const Filled plain(codec, calibration);
      expect_near(plain.decoded_keys, reference_keys(plain.keys, fit.key, bits, percent));
      const auto books = books_of(fit.value.codebooks[i], bits, percent);
      expect_near(plain.decoded_values, reference_values(plain.values, false, books, share));
      const Filled rotated(fmt::format("k={},v=had+{}", codec, codec), calibration);
      const auto rotated_books = books_of(fit.value.hadamard_codebooks[i], bits, percent);
      expect_near(rotated.decoded_values,
                  reference_values(rotated.values, true, rotated_books, share));
    }
  }
}

double squared_error(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
  return sum;
}

TEST(HeadCodebooks, HaveSmallerErrorsThanTheLayersWhereHeadsDiffer) {
  const auto head = fitted(CodebookScope::kHead), layer = fitted(CodebookScope::kLayer);
  for (const char* spec : {"nuq2-1%", "nuq3-1%", "nuq4-1%", "k=nuq3-1%,v=had+nuq3"}) {
    SCOPED_TRACE(spec);
    const Filled own(spec, head), shared(spec, layer);
    EXPECT_LT(squared_error(own.decoded_keys, own.keys),
              0.95 * squared_error(shared.decoded_keys, shared.keys));
    EXPECT_LT(squared_error(own.decoded_values, own.values),
              0.95 * squared_error(shared.decoded_values, shared.values));
  }
}

TEST(HeadCodebooks, AreCountedEach) {
  const auto head = fitted(CodebookScope::kHead), layer = fitted(CodebookScope::kLayer);
  const auto more = [&](const char* spec) {
    return Filled(spec, head).empty_bytes - Filled(spec, layer).empty_bytes;
  };
  EXPECT_EQ(more("nuq3-1%"), 2 * 2 * 8 * 4);  // two heads more on either side, 8 levels of 4 bytes
  EXPECT_EQ(more("k=nuq2,v=had+nuq4"), 2 * 4 * 4 + 2 * 16 * 4);
  EXPECT_EQ(more("int4"), 0);  // has the levels of its formula
  EXPECT_EQ(more("int8"), 0);
}

}  // namespace
}  // namespace kvquant
