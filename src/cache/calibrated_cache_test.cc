// A KvCache with a calibration.
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <stdexcept>

#include "cache/kv_cache.h"
#include "cache/kv_cache_test_view.h"
#include "cache/side_parameters.h"
#include "quant/calibration_test_data.h"
#include "quant/codec_parameters.h"

namespace kvquant {
namespace {

constexpr KvShape kShape{2, 2, 16};
constexpr int64_t kRowSize = 32;

// Of random keys whose channels differ, with queries that lie near two directions: so that feedback
// has something to gain.
std::shared_ptr<const Calibration> fitted(const FitChoices& choices) {
  static const std::vector<double> angles = {1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005};
  ThreadPool pool(1, ThreadPool::Pin::kNo);
  const LagMetric metric(angles, lag_weights(200));
  auto out = std::make_shared<Calibration>();
  out->info.shape = {kShape.num_layers, 4, kShape.num_kv_heads, kShape.head_dim};
  for (int64_t layer = 0; layer < kShape.num_layers; ++layer) {
    TestLayer data(out->info.shape, 2, 200, static_cast<uint64_t>(layer));
    for (size_t i = 0; i < data.queries.size(); ++i) {
      data.queries[i] = 0.05f * data.queries[i] +
                        std::sin(static_cast<float>(i % 16)) * data.queries[i / 16 * 16];
    }
    out->layers.push_back(fit_layer(data.views, {.choices = choices, .lag_metric = &metric}, pool));
  }
  return out;
}

struct Rows {
  std::vector<float> data;  // [num_tokens, kRowSize] of fp16 numbers
  TensorView<const float, 3> chunk(int64_t first, int64_t count) const {
    return row_major<const float, 3>(data.data() + first * kRowSize, {count, 2, 16});
  }
};

Rows random_rows(int64_t num_tokens) {
  const TestLayer layer({1, 4, 2, 16}, 1, num_tokens, 77);
  Rows rows{layer.keys};
  for (float& x : rows.data) x = round_to_half(x);
  return rows;
}

// Planar values come back through the codec alone when nothing rotates: a table of zero angles.
struct Fixture {
  Fixture(const char* spec, std::shared_ptr<const Calibration> calibration)
      : cache(kShape, parse_spec(spec), CacheMode::kStrict, rope, pool, std::move(calibration)),
        id(cache.add_sequence()) {}

  void append(const Rows& rows, int64_t first, int64_t count) {
    for (int64_t layer = 0; layer < kShape.num_layers; ++layer) {
      cache.append(layer, id, rows.chunk(first, count), rows.chunk(first, count));
    }
  }

  // Keys of the last layer, [num_tokens, kRowSize], rotated back.
  std::vector<double> keys(int64_t num_tokens) {
    std::vector<double> out(static_cast<size_t>(num_tokens * kRowSize));
    cache.prepare_view(kShape.num_layers - 1, id);
    for (int64_t head = 0; head < kShape.num_kv_heads; ++head) {
      const AttendRun& run = cache.view(kShape.num_layers - 1, id, head)[0];
      for (int64_t t = 0; t < num_tokens; ++t) {
        const test::Row key = test::key_in_run(run, t, kShape.head_dim);
        for (int64_t c = 0; c < 8; ++c) {
          const double a = key[c], b = key[c + 8];
          const double cos = rope.cos(t)[c], sin = rope.sin(t)[c];
          out[t * kRowSize + head * 16 + c] = a * cos + b * sin;
          out[t * kRowSize + head * 16 + c + 8] = b * cos - a * sin;
        }
      }
    }
    return out;
  }

  RopeTable rope{16, 1000, 10000};
  ThreadPool pool{2, ThreadPool::Pin::kNo};
  KvCache cache;
  KvCache::SequenceId id;
};

TEST(CalibratedCache, ValuesOutsideTheThresholdsComeBackExactly) {
  const auto calibration = fitted({});
  const auto ranges = nuq_key_ranges(calibration->layers.back().key, 3, 1);
  Rows rows = random_rows(200);
  rows.data[100 * kRowSize + 5] = 500;  // an outlier in any case
  Fixture fixture("nuq3-1%", calibration);
  fixture.append(rows, 0, 200);
  const std::vector<double> keys = fixture.keys(200);
  int64_t num_outliers = 0;
  for (size_t i = 0; i < keys.size(); ++i) {
    const size_t c = i % kRowSize;
    if (rows.data[i] >= to_float(ranges[2 * kRowSize + c]) &&
        rows.data[i] <= to_float(ranges[3 * kRowSize + c])) {
      continue;
    }
    ++num_outliers;
    EXPECT_NEAR(keys[i], rows.data[i], 1e-5 * (1 + std::abs(rows.data[i]))) << i;
  }
  EXPECT_GT(num_outliers, 20);  // 1% of 6400 are 64
  EXPECT_LT(num_outliers, 160);
}

TEST(CalibratedCache, FeedbackLowersTheErrorThatQueriesSee) {
  const Rows rows = random_rows(400);
  const auto ours = fitted({});
  auto nearest = std::make_shared<Calibration>(*ours);
  for (auto& layer : nearest->layers) {
    std::fill(layer.key.feedback.begin(), layer.key.feedback.end(), 0.0f);
  }
  double losses[2] = {}, squares[2] = {};
  for (const int i : {0, 1}) {
    Fixture fixture("nuq4", i == 0 ? ours : nearest);
    fixture.append(rows, 0, 400);
    const std::vector<double> keys = fixture.keys(400);
    const std::vector<float>& gram = ours->layers.back().query.gram;
    for (int64_t t = 0; t < 400; ++t) {
      for (int64_t head = 0; head < 2; ++head) {
        const int64_t at = t * kRowSize + head * 16;
        for (int64_t a = 0; a < 16; ++a) {
          const double error_a = keys[at + a] - rows.data[at + a];
          squares[i] += error_a * error_a;
          for (int64_t b = 0; b < 16; ++b) {
            losses[i] +=
                error_a * gram[head * 256 + a * 16 + b] * (keys[at + b] - rows.data[at + b]);
          }
        }
      }
    }
  }
  EXPECT_LT(losses[0], 0.8 * losses[1]);    // although
  EXPECT_GT(squares[0], 1.0 * squares[1]);  // the plain error grows
  EXPECT_LT(squares[0], 3.0 * squares[1]);
}

TEST(CalibratedCache, PiecesGiveTheSameCodesFromTheFirstTokenOn) {
  const Rows rows = random_rows(150);
  for (const char* spec : {"nuq2-1%", "int4", "int8", "k=nuq4-0.7%,v=had+nuq3-1%"}) {
    SCOPED_TRACE(spec);
    const auto calibration = fitted({});
    Fixture whole(spec, calibration), pieces(spec, calibration);
    whole.append(rows, 0, 150);
    for (int64_t first = 0, size = 1; first < 150; first += size, size = size * 2 % 61) {
      size = std::min<int64_t>(size, 150 - first);
      pieces.append(rows, first, size);
    }
    EXPECT_EQ(whole.keys(150), pieces.keys(150));
  }
}

TEST(CalibratedCache, CountsItsParametersOnceAndStoresNoneInSequences) {
  const auto calibration = fitted({});
  Fixture fixture("nuq3-1%", calibration);
  // Per layer: 8 levels on either side, four fp16 numbers per key channel.
  const int64_t parameters = 2 * (2 * 8 * 4 + 4 * kRowSize * 2);
  EXPECT_EQ(fixture.cache.memory_bytes(), parameters);
  fixture.append(random_rows(64), 0, 64);
  const int64_t one = fixture.cache.memory_bytes() - parameters;
  fixture.id = fixture.cache.add_sequence();
  fixture.append(random_rows(64), 0, 64);
  EXPECT_EQ(fixture.cache.memory_bytes() - parameters, 2 * one);
}

TEST(CalibratedCache, ThePublishedRecipeRoundsToTheNearestLevel) {
  const auto calibration = fitted(recipe_choices("percentile"));
  const SideParameters parameters(KvSide::kKey, parse_spec("nuq4-1%").key, {2, 16},
                                  &calibration->layers[0]);
  EXPECT_TRUE(parameters.feedback.empty());
  EXPECT_EQ(parameters.ranges.size(), 4u * kRowSize);
}

TEST(CalibratedCache, ACalibrationOfAnotherShapeIsRefused) {
  auto other = std::make_shared<Calibration>(*fitted({}));
  other->info.shape.head_dim = 32;
  EXPECT_THROW(Fixture("nuq3", other), std::invalid_argument);
  other->info.shape.head_dim = 16;
  other->layers.pop_back();
  EXPECT_THROW(Fixture("nuq3", other), std::invalid_argument);
}

}  // namespace
}  // namespace kvquant
