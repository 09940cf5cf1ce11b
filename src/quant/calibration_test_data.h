// A small calibration for tests: every array has its size, numbers differ from one another.
#pragma once

#include "base/rng.h"
#include "kvquant/codebook.h"
#include "quant/fit_layer.h"

namespace kvquant {

// Random activations of one layer, and views of them. Not movable: views point into it.
struct TestLayer {
  std::vector<float> keys, rotated_keys, values, queries, rotated_queries;
  std::vector<double> output_gram;
  LayerActivations views;

  TestLayer(const CalibrationShape& shape, int64_t num_samples, int64_t seq_len, uint64_t seed) {
    const int64_t tokens = num_samples * seq_len, d = shape.head_dim;
    uint64_t stream = 0;
    const auto fill = [&](std::vector<float>& x, int64_t num_heads) {
      const CounterRng random(seed, stream++);
      x.resize(static_cast<size_t>(tokens * num_heads * d));
      for (size_t i = 0; i < x.size(); ++i) {
        x[i] = random.normals(i).first * static_cast<float>(1 + i % 5) + static_cast<float>(i % 3);
      }
      return row_major<const float, 3>(x.data(), {tokens, num_heads, d});
    };
    output_gram.resize(static_cast<size_t>(shape.num_kv_heads * d * d));
    for (int64_t h = 0; h < shape.num_kv_heads; ++h) {
      for (int64_t i = 0; i < d; ++i) {
        output_gram[static_cast<size_t>((h * d + i) * d + i)] = static_cast<double>(1 + i % 4);
      }
    }
    views = {.num_samples = num_samples,
             .seq_len = seq_len,
             .keys = fill(keys, shape.num_kv_heads),
             .rotated_keys = fill(rotated_keys, shape.num_kv_heads),
             .values = fill(values, shape.num_kv_heads),
             .queries = fill(queries, shape.num_q_heads),
             .rotated_queries = fill(rotated_queries, shape.num_q_heads),
             .output_gram = output_gram};
  }
  TestLayer(const TestLayer&) = delete;
  TestLayer& operator=(const TestLayer&) = delete;
};

inline Calibration test_calibration(const CalibrationShape& shape = {2, 4, 2, 8},
                                    const FitChoices& choices = {}) {
  ThreadPool pool(1);
  Calibration out;
  out.info = {.kvquant_version = "test",
              .model_fingerprint = "0123456789abcdef",
              .shape = shape,
              .texts = {{"a.txt", 0, 20, "00112233445566ff"}, {"b.txt", 40, 60, "ff"}},
              .seed = 18446744073709551615u,
              .num_samples = 2,
              .seq_len = 20,
              .rank = 5,
              .codebooks = choices.codebooks,
              .recipe = to_string(choices)};
  for (int64_t i = 0; i < shape.num_layers; ++i) {
    const TestLayer layer(shape, 2, 20, static_cast<uint64_t>(i));
    out.layers.push_back(fit_layer(layer.views, {.choices = choices, .rank = out.info.rank}, pool));
  }
  return out;
}

}  // namespace kvquant
