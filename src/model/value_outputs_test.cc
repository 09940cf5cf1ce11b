#include "model/value_outputs.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "quant/calibration_test_data.h"
#include "quant/pca.h"

namespace kvquant {
namespace {

constexpr CalibrationShape kShape{1, 4, 2, 16};

// One query head of one token, as the header says it.
std::vector<double> expected(const LayerActivations& a, const ValueOutputOptions& options,
                             int64_t token, int64_t head) {
  const int64_t dim = a.head_dim(), kv_head = head / (a.num_q_heads() / a.num_kv_heads());
  const int64_t first = token / a.seq_len * a.seq_len;
  const int64_t window = options.sliding_window > 0 ? options.sliding_window : a.seq_len;
  std::vector<double> out(static_cast<size_t>(dim)), mean(out.size());
  int64_t count = 0;
  for (int64_t row = 0; row < a.num_tokens(); ++row) {
    if (row % a.seq_len < kCalibrationSinks) continue;
    ++count;
    for (int64_t c = 0; c < dim; ++c) mean[c] += a.values(row, kv_head, c);
  }
  double sum = 0;
  for (int64_t t = std::max(first, token - window + 1); t <= token; ++t) {
    double score = 0;
    for (int64_t c = 0; c < dim; ++c) {
      score += double{a.rotated_queries(token, head, c)} * a.rotated_keys(t, kv_head, c);
    }
    const double weight = std::exp(score * options.scale);
    sum += weight;
    for (int64_t c = 0; c < dim && t - first >= kCalibrationSinks; ++c) {
      out[c] += weight * (a.values(t, kv_head, c) - mean[c] / static_cast<double>(count));
    }
  }
  for (double& x : out) x /= sum;
  return out;
}

TEST(ValueOutputs, AreSumsOfCentredValuesWithoutSinks) {
  const TestLayer layer(kShape, 3, 90, 8);
  ThreadPool one(1, ThreadPool::Pin::kNo), three(3, ThreadPool::Pin::kNo);
  for (const int64_t window : {0, 20}) {
    const ValueOutputOptions options{.scale = 0.02f, .sliding_window = window};
    Buffer<float> out, other;
    attend_centred_values(layer.views, options, one, out);
    attend_centred_values(layer.views, options, three, other);
    for (int64_t token = 0; token < 270; ++token) {
      for (int64_t head = 0; head < 4; ++head) {
        const auto wanted = expected(layer.views, options, token, head);
        for (int64_t c = 0; c < 16; ++c) {
          const int64_t at = (token * 4 + head) * 16 + c;
          ASSERT_NEAR(out[at], wanted[static_cast<size_t>(c)], 2e-5) << token;
          ASSERT_EQ(out[at], other[at]);
        }
      }
    }
  }
}

// What truncation loses of the outputs themselves is less than with bases of the values.
TEST(ValueOutputs, BasesFittedToThemLoseLeastOfThem) {
  TestLayer layer(kShape, 2, 200, 4);
  for (size_t i = 0; i < layer.values.size(); ++i) {  // slow changes along one direction
    if (i % 16 == 3) layer.values[i] = 0.5f * std::sin(static_cast<float>(i / 32) * 0.02f);
  }
  ThreadPool pool(1, ThreadPool::Pin::kNo);
  Buffer<float> outputs;
  attend_centred_values(layer.views, {.scale = 0.01f}, pool, outputs);
  LayerActivations with_outputs = layer.views;
  with_outputs.outputs = row_major<const float, 3>(outputs.data(), {400, 4, 16});
  const auto lost = [&](const LayerActivations& activations) {
    const auto fitted = fit_layer(activations, {}, pool).value;
    double sum = 0;
    for (int64_t row = 0; row < 400 * 4; ++row) {
      if (row / 4 % 200 < kCalibrationSinks) continue;
      const float* o = outputs.data() + row * 16;
      const float* basis = fitted.basis.data() + row % 4 / 2 * 16 * 16;
      for (int64_t r = 8; r < 16; ++r) {
        double z = 0;
        for (int64_t c = 0; c < 16; ++c) z += double{o[c]} * basis[r * 16 + c];
        sum += z * z;
      }
    }
    return sum;
  };
  EXPECT_LT(lost(with_outputs), 0.9 * lost(layer.views));
}

}  // namespace
}  // namespace kvquant
