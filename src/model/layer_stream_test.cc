// The streamed pass must be the ordinary one to the bit, whatever the model.
#include "model/layer_stream.h"

#include <gtest/gtest.h>

#include <cstring>
#include <functional>

#include "kvquant/error.h"
#include "model/golden_test_models.h"
#include "model/session.h"
#include "ops/norm.h"
#include "ops/rope.h"

namespace kvquant {
namespace {

constexpr int64_t kUbatch = 24;

std::string model_path(const std::string& name) {
  return name == "ref5m" ? KVQUANT_SOURCE_DIR "/assets/" + name : test::golden_path(name);
}

std::vector<std::vector<int32_t>> some_samples(const Model& model, int64_t count, int64_t length) {
  std::vector<std::vector<int32_t>> samples(static_cast<size_t>(count));
  for (int64_t s = 0; s < count; ++s) {
    for (int64_t t = 0; t < length; ++t) {
      samples[static_cast<size_t>(s)].push_back(
          static_cast<int32_t>((3 + 7 * s + t * (11 + s)) % model.config().vocab_size));
    }
  }
  return samples;
}

// Hidden states after the last norm, of Transformer::forward over an fp16 cache.
std::vector<float> forward_whole(Model& model, const std::vector<int32_t>& tokens) {
  Transformer& transformer = model.transformer();
  KvCache cache(transformer.kv_shape(), parse_spec("fp16"), CacheMode::kAsServed,
                transformer.rope_table(), model.pool());
  const auto id = cache.add_sequence();
  std::vector<float> out;
  for (size_t begin = 0; begin < tokens.size(); begin += kUbatch) {
    const ForwardChunk chunk{
        id, std::span(tokens).subspan(begin, std::min<size_t>(kUbatch, tokens.size() - begin))};
    const auto hidden = transformer.forward({&chunk, 1}, cache);
    out.insert(out.end(), hidden.data, hidden.data + hidden.shape[0] * hidden.shape[1]);
  }
  return out;
}

bool same_bits(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

class LayerStreams : public testing::TestWithParam<const char*> {};

TEST_P(LayerStreams, EndInTheHiddenStatesOfForwardToTheBit) {
  for (const Precision precision : {Precision::kF32, default_precision()}) {
    Model model = Model::load(model_path(GetParam()), {.precision = precision, .context = 61});
    const auto samples = some_samples(model, 3, 61);
    std::vector<int64_t> layers;
    const Buffer<float> residual = stream_layers(model, samples, {.ubatch = kUbatch},
                                                 [&](int64_t layer, const LayerActivations& a) {
                                                   layers.push_back(layer);
                                                   EXPECT_EQ(a.num_samples, 3);
                                                   EXPECT_EQ(a.seq_len, 61);
                                                 });
    EXPECT_EQ(static_cast<int64_t>(layers.size()), model.config().num_layers);
    EXPECT_TRUE(std::is_sorted(layers.begin(), layers.end()));
    EXPECT_FALSE(model.transformer().is_observed());

    const int64_t hidden = model.config().hidden, size = 61 * hidden;
    std::vector<float> weight(static_cast<size_t>(hidden)), normed(static_cast<size_t>(size));
    model.checkpoint().read_row("model.norm.weight", 0, weight);
    for (int64_t s = 0; s < 3; ++s) {
      rms_norm(row_major<const float, 2>(residual.data() + s * size, {61, hidden}), weight,
               model.config().norm_eps, row_major(normed.data(), {61, hidden}));
      EXPECT_TRUE(same_bits(normed, forward_whole(model, samples[static_cast<size_t>(s)]))) << s;
    }
  }
}

TEST_P(LayerStreams, ShowWhatForwardShowsToAnObserver) {
  Model model = Model::load(model_path(GetParam()), {.precision = Precision::kF32, .context = 50});
  const auto samples = some_samples(model, 2, 50);
  struct Layer {
    std::vector<float> keys, values, queries, rotated_queries;
  };
  const auto add = [](TensorView<const float, 3> x, std::vector<float>& out) {
    for (int64_t t = 0; t < x.shape[0]; ++t) {
      for (int64_t h = 0; h < x.shape[1]; ++h) {
        out.insert(out.end(), x.row(t, h).begin(), x.row(t, h).end());
      }
    }
  };
  std::vector<Layer> expected(static_cast<size_t>(model.config().num_layers));
  model.transformer().set_observer([&](const ObservedChunk& chunk) {
    Layer& layer = expected[static_cast<size_t>(chunk.layer)];
    EXPECT_EQ(chunk.first_position * model.config().kv_dim(),
              static_cast<int64_t>(layer.keys.size()) % (50 * model.config().kv_dim()));
    add(chunk.keys, layer.keys);
    add(chunk.values, layer.values);
    add(chunk.queries, layer.queries);
    add(chunk.rotated_queries, layer.rotated_queries);
  });
  for (const auto& sample : samples) forward_whole(model, sample);
  model.transformer().set_observer({});

  stream_layers(model, samples, {.ubatch = kUbatch}, [&](int64_t at, const LayerActivations& a) {
    const Layer& layer = expected[static_cast<size_t>(at)];
    const auto span_of = [](TensorView<const float, 3> x) {
      return std::span(x.data, static_cast<size_t>(x.shape[0] * x.shape[1] * x.shape[2]));
    };
    EXPECT_TRUE(same_bits(span_of(a.keys), layer.keys));
    EXPECT_TRUE(same_bits(span_of(a.values), layer.values));
    EXPECT_TRUE(same_bits(span_of(a.queries), layer.queries));
    EXPECT_TRUE(same_bits(span_of(a.rotated_queries), layer.rotated_queries));
    // Queries after RoPE are the op's result for those before it; so are keys.
    for (auto [before, after] :
         {std::pair(a.queries, a.rotated_queries), std::pair(a.keys, a.rotated_keys)}) {
      std::vector<float> rotated(span_of(before).begin(), span_of(before).end());
      const int64_t width = before.shape[1] * before.shape[2];
      for (int64_t s = 0; s < 2; ++s) {
        rope(row_major(rotated.data() + s * 50 * width, {50, before.shape[1], before.shape[2]}), 0,
             model.transformer().rope_table());
      }
      EXPECT_TRUE(same_bits(span_of(after), rotated));
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Models, LayerStreams, testing::ValuesIn(test::kTinyModels),
                         [](const auto& info) { return std::string(info.param); });
INSTANTIATE_TEST_SUITE_P(Embedded, LayerStreams, testing::Values("ref5m"),
                         [](const auto& info) { return std::string(info.param); });

TEST(LayerStream, OutputGramIsThatOfTheProjectionRows) {
  Model model = Model::load(model_path("tiny_untied"), {.precision = Precision::kF32});
  const ModelConfig& config = model.config();
  const int64_t d = config.head_dim, width = config.num_q_heads * d;
  stream_layers(model, some_samples(model, 1, 8), {}, [&](int64_t layer, const auto& a) {
    std::vector<double> expected(static_cast<size_t>(config.num_kv_heads * d * d));
    std::vector<float> row(static_cast<size_t>(width));
    const std::string name = "model.layers." + std::to_string(layer) + ".self_attn.o_proj.weight";
    for (int64_t r = 0; r < config.hidden; ++r) {
      model.checkpoint().read_row(name, r, row);
      for (int64_t q = 0; q < config.num_q_heads; ++q) {
        for (int64_t i = 0; i < d * d; ++i) {
          expected[static_cast<size_t>(q / config.group() * d * d + i)] +=
              double{row[static_cast<size_t>(q * d + i / d)]} *
              row[static_cast<size_t>(q * d + i % d)];
        }
      }
    }
    ASSERT_EQ(a.output_gram.size(), expected.size());
    for (size_t i = 0; i < expected.size(); ++i) ASSERT_NEAR(a.output_gram[i], expected[i], 1e-9);
  });
}

TEST(LayerStream, ReportsEverySampleOfEveryLayer) {
  Model model = Model::load(model_path("tiny_tied"));
  int64_t last = 0, units = 0;
  stream_layers(
      model, some_samples(model, 3, 5), {}, [](int64_t, const LayerActivations&) {},
      [&](int64_t done, int64_t total) {
        EXPECT_EQ(done, last + 1);
        last = done;
        units = total;
      });
  EXPECT_EQ(last, units);
  EXPECT_EQ(units, model.config().num_layers * 4);
}

TEST(LayerStream, SamplesThatMakeNoSenseAreRefused) {
  Model model = Model::load(model_path("tiny_tied"));
  const auto nothing = [](int64_t, const LayerActivations&) { FAIL(); };
  const auto vocab = static_cast<int32_t>(model.config().vocab_size);
  const auto too_long = static_cast<size_t>(model.config().max_context + 1);
  using Samples = std::vector<std::vector<int32_t>>;
  for (const Samples& samples : {Samples{}, Samples{{}}, Samples{{1, 2}, {1}}, Samples{{1, vocab}},
                                 Samples{{-1}}, Samples{std::vector<int32_t>(too_long, 1)}}) {
    EXPECT_THROW(stream_layers(model, samples, {}, nothing), std::invalid_argument);
  }
  EXPECT_THROW(stream_layers(model, Samples{{1}}, {.ubatch = 0}, nothing), std::invalid_argument);
}

TEST(LayerStream, AnErrorOfTheConsumerLeavesTheModelAsItWas) {
  Model model = Model::load(model_path("tiny_tied"));
  struct Stop {};
  EXPECT_THROW(stream_layers(model, some_samples(model, 1, 5), {},
                             [](int64_t, const LayerActivations&) { throw Stop{}; }),
               Stop);
  EXPECT_FALSE(model.transformer().is_observed());
}

}  // namespace
}  // namespace kvquant
