// Value decoders in output projections: by algebra, and whole models with and without.
#include "model/absorbed_outputs.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <stdexcept>

#include "base/file.h"
#include "model/calibrate.h"
#include "model/golden_test_models.h"
#include "model/session.h"
#include "quant/value_basis.h"

namespace kvquant {
namespace {

std::vector<float> draw(int64_t size, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<float> out;
  for (int64_t i = 0; i < size; ++i) {
    out.push_back(static_cast<float>(random()) / static_cast<float>(random.max()) - 0.5f);
  }
  return out;
}

// W_o of 6 query heads of 16 channels, two KV heads.
struct Projection {
  explicit Projection(int64_t rank, WeightType type = WeightType::kF32) {
    const auto reader = [&](int64_t row, std::span<float> out) {
      std::copy_n(weights.begin() + row * 96, 96, out.begin());
    };
    const auto groups = [&](int64_t row, QuantizedRow out) {
      quantize_to_groups(std::span(weights).subspan(static_cast<size_t>(row * 96), 96), out);
    };
    output = has_groups(type) ? PackedMatrix::pack_groups(70, 96, type, groups, pool)
                              : PackedMatrix::pack(70, 96, type, reader, pool);
    for (int64_t head = 0; head < 2; ++head) {
      maps.push_back({.rank = rank,
                      .width = latent_width(rank),
                      .head_dim = 16,
                      .decode = decode.data() + head * 256});
    }
  }
  // Of W_o' and of W_o D, row by row.
  double error(const PackedMatrix& absorbed) const {
    double largest = 0;
    std::vector<float> row(96), found(static_cast<size_t>(absorbed.num_in()));
    for (int64_t o = 0; o < 70; ++o) {
      output.read_row(o, row);
      absorbed.read_row(o, found);
      for (int64_t i = 0; i < absorbed.num_in(); ++i) {
        const int64_t head = i / maps[0].width, r = i % maps[0].width;
        double sum = 0;
        for (int64_t c = 0; r < maps[0].rank && c < 16; ++c) {
          sum += double{row[static_cast<size_t>(head * 16 + c)]} *
                 decode[static_cast<size_t>(head / 3 * 256 + r * 16 + c)];
        }
        largest = std::max(largest, std::abs(sum - found[static_cast<size_t>(i)]));
      }
    }
    return largest;
  }

  ThreadPool pool{1, ThreadPool::Pin::kNo};
  std::vector<float> weights = draw(70 * 96, 1), decode = draw(2 * 256, 2);
  PackedMatrix output;
  std::vector<LatentMap> maps;
};

TEST(AbsorbDecoders, GivesTheProductAsPreciseAsWeights) {
  for (const int64_t rank : {1, 8, 11, 16}) {
    Projection floats(rank), codes(rank, WeightType::kInt8);
    const auto f32 = absorb_decoders(floats.output, floats.maps, Precision::kF32, floats.pool);
    EXPECT_EQ(f32.type(), WeightType::kF32);
    EXPECT_EQ(f32.num_in(), 6 * latent_width(rank));
    EXPECT_LE(floats.error(f32), 1e-6);
    const auto bf16 = absorb_decoders(floats.output, floats.maps, Precision::kBF16, floats.pool);
    EXPECT_EQ(bf16.type(), WeightType::kBF16);
    EXPECT_LE(floats.error(bf16), 4 * 0x1p-9);  // products of 16 numbers up to 0.5
    const auto exact = absorb_decoders(codes.output, codes.maps, Precision::kF32, codes.pool);
    EXPECT_EQ(exact.type(), WeightType::kF32);
    EXPECT_LE(codes.error(exact), 1e-6);
    const auto narrow = absorb_decoders(codes.output, codes.maps, Precision::kBF16, codes.pool);
    EXPECT_EQ(narrow.type(), rank > 8 ? WeightType::kInt8 : WeightType::kBF16);  // 6 * 8 inputs
    EXPECT_LE(codes.error(narrow), 4 * 0x1p-8);
    EXPECT_GT(codes.error(narrow), 0);
  }
}

TEST(AbsorbDecoders, RefusesMapsThatDontFit) {
  Projection floats(8);
  const auto attempt = [&](std::span<const LatentMap> maps) {
    return absorb_decoders(floats.output, maps, Precision::kF32, floats.pool);
  };
  EXPECT_THROW(attempt({}), std::invalid_argument);
  std::vector<LatentMap> many(4, floats.maps[0]);  // 6 query heads
  EXPECT_THROW(attempt(many), std::invalid_argument);
}

std::vector<int32_t> text_tokens(const Model& model, size_t count) {
  auto tokens = model.tokenizer().encode(read_text(KVQUANT_SOURCE_DIR "/assets/sample.txt"),
                                         Tokenizer::Special::kAsText, Tokenizer::Bos::kNever);
  tokens.resize(std::min(count, tokens.size()));
  return tokens;
}

// The same model with and without, calibrated alike.
struct Pair {
  explicit Pair(const std::string& path, Precision precision = Precision::kF32,
                int num_threads = 1) {
    const ModelOptions options{.num_threads = num_threads, .precision = precision, .context = 512};
    expanded = std::make_unique<Model>(Model::load(path, options));
    ModelOptions other = options;
    other.value_decoders = ValueDecoders::kAbsorbed;
    absorbed = std::make_unique<Model>(Model::load(path, other));
    tokens = text_tokens(*expanded, 700);
    const TokenizedText text{"sample", tokens};
    const int64_t longest = std::min<int64_t>(128, expanded->config().max_context);
    const Calibration made =
        calibrate(*expanded, {&text, 1}, {.num_samples = 4, .seq_len = longest});
    for (Model* model : {expanded.get(), absorbed.get()}) model->set_calibration(made);
  }

  std::unique_ptr<Model> expanded, absorbed;
  std::vector<int32_t> tokens;
};

KvCache cache_of(Model& model, const std::string& spec, CacheMode mode) {
  return {model.transformer().kv_shape(),   parse_spec(spec), mode,
          model.transformer().rope_table(), model.pool(),     model.calibration()};
}

constexpr int kChunks[] = {70, 1, 1, 130, 5, 64, 1};

// Log-probabilities of all tokens, fed in chunks.
std::vector<std::vector<float>> log_probabilities(Model& model, std::span<const int32_t> tokens,
                                                  const std::string& spec, CacheMode mode) {
  KvCache cache = cache_of(model, spec, mode);
  const auto id = cache.add_sequence();
  std::vector<std::vector<float>> out;
  size_t first = 0;
  for (const int most : kChunks) {
    const auto left = model.config().max_context - static_cast<int64_t>(first);
    const int64_t count = std::min<int64_t>(most, left);
    if (count == 0) break;
    const ForwardChunk chunk{id, tokens.subspan(first, static_cast<size_t>(count))};
    first += static_cast<size_t>(count);
    const auto hidden = model.transformer().forward({&chunk, 1}, cache);
    std::vector<float> logits(static_cast<size_t>(count * model.config().vocab_size));
    const auto rows = row_major(logits.data(), {count, model.config().vocab_size});
    model.transformer().logits(hidden, rows);
    for (int64_t t = 0; t < count; ++t) {
      std::vector<float> row(rows.row(t).begin(), rows.row(t).end());
      double sum = 0;
      for (const float x : row) sum += std::exp(double{x});
      for (float& x : row) x -= static_cast<float>(std::log(sum));
      out.push_back(std::move(row));
    }
  }
  return out;
}

double mean_divergence(const std::vector<std::vector<float>>& p,
                       const std::vector<std::vector<float>>& q) {
  double sum = 0;
  for (size_t t = 0; t < p.size(); ++t) {
    for (size_t i = 0; i < p[t].size(); ++i) {
      sum += std::exp(double{p[t][i]}) * (double{p[t][i]} - q[t][i]);
    }
  }
  return std::abs(sum) / static_cast<double>(p.size());
}

double divergence(Pair& pair, const std::string& spec, CacheMode mode) {
  return mean_divergence(log_probabilities(*pair.expanded, pair.tokens, spec, mode),
                         log_probabilities(*pair.absorbed, pair.tokens, spec, mode));
}

constexpr CacheMode kModes[] = {CacheMode::kStrict, CacheMode::kAsServed};

TEST(Absorbed, EqualsExpandedWithinRoundingOnEveryArchitecture) {
  for (const char* name : test::kTinyModels) {
    Pair pair(test::golden_path(name));
    const std::string full = std::to_string(pair.expanded->config().head_dim);
    for (const CacheMode mode : kModes) {
      const std::vector<std::string> specs = {"v=pca" + full, "v=pca5+int8,sink=3,recent=20",
                                              "k=int8,v=pcaw7,sink=1", "layers=0:v=lnns+int4"};
      for (const std::string& spec : specs) {
        EXPECT_LT(divergence(pair, spec, mode), 1e-5) << name << " " << spec;
      }
    }
    EXPECT_EQ(pair.expanded->transformer().absorbed_bytes(), 0);
    EXPECT_GT(pair.absorbed->transformer().absorbed_bytes(), 0);
  }
}

TEST(Absorbed, EqualsExpandedWithinRoundingForEveryCodecAndWindow) {
  Pair pair(KVQUANT_SOURCE_DIR "/assets/ref5m");
  struct Case {
    const char* spec;
    double most;
  };
  // What is rounded otherwise in one layer may be coded otherwise in the next, the more so the
  // fewer bits there are; nothing comes behind layer 5.
  const Case cases[] = {{"v=pca64", 1e-5},
                        {"v=pca60,sink=4", 1e-5},
                        {"v=pca16+had+fp16,recent=64", 1e-5},
                        {"k=bf16,v=pca48+int8,recent=1", 1e-5},
                        {"k=int8,v=lnns,sink=0,recent=0", 1e-5},
                        {"v=pca64+wf8,sink=1", 1e-5},
                        {"v=pca64+wf5,sink=1", 2e-4},
                        {"v=pca48+int8,layers=2-3:v=int8,layers=5:v=pcaw8", 1e-5},
                        {"v=pcaw48+int4,sink=70,recent=130", 2e-4},
                        {"v=pca64+had+int4,sink=1", 2e-4},
                        {"k=nuq4-1%,v=pcaw33+nuq3-1%,sink=1", 2e-4},
                        {"v=lnns+nuq2", 2e-4},
                        {"sink=2,recent=9,layers=5:v=pca64+had+int4", 1e-6},
                        {"sink=1,layers=5:k=nuq4-1%,layers=5:v=pcaw33+nuq2-1%", 1e-6}};
  for (const CacheMode mode : kModes) {
    for (const Case& c : cases) {
      EXPECT_LT(divergence(pair, c.spec, mode), c.most)
          << c.spec << (mode == CacheMode::kStrict ? " strict" : " as served");
    }
  }
  Pair rounded(KVQUANT_SOURCE_DIR "/assets/ref5m", Precision::kBF16);
  for (const CacheMode mode : kModes) {
    EXPECT_LT(divergence(rounded, "v=pca48+int8,sink=1", mode), 1e-3);
  }
}

TEST(Absorbed, GivesTheSameBitsAtAnyThreads) {
  Pair one(KVQUANT_SOURCE_DIR "/assets/ref5m"),
      three(KVQUANT_SOURCE_DIR "/assets/ref5m", Precision::kF32, 3);
  const std::string spec = "v=pca48+int8,sink=1";
  EXPECT_EQ(log_probabilities(*one.absorbed, one.tokens, spec, CacheMode::kAsServed),
            log_probabilities(*three.absorbed, one.tokens, spec, CacheMode::kAsServed));
}

TEST(Absorbed, AreMadeOncePerBasisOfTheLayersThatNeedThem) {
  Pair pair(KVQUANT_SOURCE_DIR "/assets/ref5m");
  Model& model = *pair.absorbed;
  const auto bytes_after = [&](const char* spec) {
    log_probabilities(model, pair.tokens, spec, CacheMode::kAsServed);
    return model.transformer().absorbed_bytes();
  };
  const ModelConfig& config = model.config();
  const auto bytes_of_layer = [&](int64_t width) {  // f32, inputs padded to 32
    const int64_t num_in = (config.num_q_heads * width + 31) / 32 * 32;
    return config.hidden / 64 * 64 * num_in * 4;
  };
  ASSERT_EQ(config.hidden % 64, 0);
  EXPECT_EQ(bytes_after("nuq4"), 0);
  EXPECT_EQ(bytes_after("v=int8,layers=1-2:v=pca48+int8"), 2 * bytes_of_layer(48));
  EXPECT_EQ(bytes_after("v=pca48+int4"), 6 * bytes_of_layer(48));  // two of them were there
  EXPECT_EQ(bytes_after("k=int8,v=pca48+nuq3-1%,sink=9"), 6 * bytes_of_layer(48));
  const int64_t before = bytes_after("v=lnns");
  EXPECT_EQ(before, 6 * (bytes_of_layer(48) + bytes_of_layer(64)));
  EXPECT_EQ(bytes_after("v=pca32+had+int4"), before + 6 * bytes_of_layer(32));
}

TEST(Absorbed, FollowTheCalibration) {
  Pair pair(KVQUANT_SOURCE_DIR "/assets/ref5m");
  const TokenizedText other{"other", {pair.tokens.rbegin(), pair.tokens.rend()}};
  const std::string spec = "v=pca32+int8,sink=1";
  EXPECT_LT(divergence(pair, spec, CacheMode::kStrict), 1e-5);
  const int64_t bytes = pair.absorbed->transformer().absorbed_bytes();
  const Calibration made =
      calibrate(*pair.expanded, {&other, 1}, {.num_samples = 4, .seq_len = 90});
  for (Model* model : {pair.expanded.get(), pair.absorbed.get()}) model->set_calibration(made);
  EXPECT_LT(divergence(pair, spec, CacheMode::kStrict), 1e-5);
  EXPECT_EQ(pair.absorbed->transformer().absorbed_bytes(), bytes);  // those of the first are gone
}

TEST(Absorbed, BatchesMayHaveSequencesWithoutLatentsYet) {
  Pair pair(KVQUANT_SOURCE_DIR "/assets/ref5m");
  const auto hidden_of = [&](Model& model) {
    KvCache cache = cache_of(model, "v=pca48+int8", CacheMode::kAsServed);
    const auto long_one = cache.add_sequence(), short_one = cache.add_sequence();
    const std::span<const int32_t> all = pair.tokens;
    const ForwardChunk first{long_one, all.first(300)};
    model.transformer().forward({&first, 1}, cache);
    const ForwardChunk both[] = {{short_one, all.subspan(300, 3)}, {long_one, all.subspan(400, 2)}};
    const auto hidden = model.transformer().forward(both, cache);
    return std::vector<float>(hidden.data, hidden.data + 5 * hidden.shape[1]);
  };
  const auto expected = hidden_of(*pair.expanded), found = hidden_of(*pair.absorbed);
  for (size_t i = 0; i < expected.size(); ++i) ASSERT_NEAR(found[i], expected[i], 1e-3) << i;
}

}  // namespace
}  // namespace kvquant
