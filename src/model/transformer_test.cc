// Batches of the forward pass, on the embedded model.
#include "model/transformer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "kvquant/error.h"
#include "model/session.h"

namespace kvquant {
namespace {

constexpr const char* kEmbedded = KVQUANT_SOURCE_DIR "/assets/ref5m";

std::vector<int32_t> some_tokens(int64_t count, int32_t step) {
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < count; ++i) tokens.push_back(static_cast<int32_t>(5 + i * step % 900));
  return tokens;
}

class Batches : public testing::Test {
 protected:
  KvCache make(const char* spec) {
    return {model_.transformer().kv_shape(), parse_spec(spec), CacheMode::kAsServed,
            model_.transformer().rope_table(), model_.pool()};
  }

  std::vector<float> forward(std::span<const ForwardChunk> chunks, KvCache& cache) {
    const auto hidden = model_.transformer().forward(chunks, cache);
    return {hidden.data, hidden.data + hidden.shape[0] * hidden.shape[1]};
  }

  Model model_ = Model::load(kEmbedded, {.precision = Precision::kF32});
};

void expect_near(std::span<const float> a, std::span<const float> b, double tolerance) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) ASSERT_NEAR(a[i], b[i], tolerance) << i;
}

TEST_F(Batches, OfSequencesOfDifferentLengthsEqualSeparateCalls) {
  const int64_t hidden = model_.config().hidden;
  for (const char* spec : {"fp16", "nuq4-1%,recent=10"}) {
    SCOPED_TRACE(spec);
    const double tolerance = spec == std::string("fp16") ? 2e-3 : 2e-2;  // a code may flip
    KvCache together = make(spec), one = make(spec), two = make(spec);
    const auto a = together.add_sequence(), b = together.add_sequence();
    ASSERT_EQ(one.add_sequence(), 0);
    ASSERT_EQ(two.add_sequence(), 0);
    const auto tokens = some_tokens(300, 7), others = some_tokens(300, 11);
    struct Step {
      size_t first_a, num_a, first_b, num_b;
    };
    for (const Step s : {Step{0, 130, 0, 3}, Step{130, 1, 3, 140}, Step{131, 1, 143, 1}}) {
      const auto chunk_a = std::span(tokens).subspan(s.first_a, s.num_a);
      const auto chunk_b = std::span(others).subspan(s.first_b, s.num_b);
      const ForwardChunk both[] = {{a, chunk_a}, {b, chunk_b}};
      const ForwardChunk only_a{0, chunk_a}, only_b{0, chunk_b};
      const auto out = forward(both, together);
      const auto rows_a = static_cast<size_t>(hidden) * s.num_a;
      expect_near(std::span(out).first(rows_a), forward({&only_a, 1}, one), tolerance);
      expect_near(std::span(out).subspan(rows_a), forward({&only_b, 1}, two), tolerance);
    }
    EXPECT_EQ(together.length(a), 132);
    EXPECT_EQ(together.length(b), 144);
  }
}

TEST_F(Batches, ThatMakeNoSenseAreRefusedAndChangeNothing) {
  KvCache cache = make("fp16");
  const auto id = cache.add_sequence(), other = cache.add_sequence();
  const auto tokens = some_tokens(4, 3);
  const std::vector<int32_t> unknown = {1, 2, static_cast<int32_t>(model_.config().vocab_size)};
  const std::vector<std::vector<ForwardChunk>> batches = {{},
                                                          {{id, tokens}, {other, {}}},
                                                          {{id, tokens}, {id, tokens}},
                                                          {{id, tokens}, {other, unknown}}};
  for (const auto& batch : batches) {
    EXPECT_THROW(forward(batch, cache), std::invalid_argument);
    EXPECT_EQ(cache.length(id), 0);
  }
  const ForwardChunk good{id, tokens};
  forward({&good, 1}, cache);
  EXPECT_EQ(cache.length(id), 4);
}

// A copy of a golden model with 3.4e38 throughout one weight: finite, but its products are not.
std::string broken_model(const std::string& weight) {
  namespace fs = std::filesystem;
  const fs::path folder = fs::path(testing::TempDir()) / ("kvquant_broken_" + weight);
  fs::remove_all(folder);
  fs::copy(KVQUANT_SOURCE_DIR "/tests/golden/tiny_untied", folder);
  const std::string path = (folder / "model.safetensors").string();
  std::string bytes;
  {
    std::ifstream in(path, std::ios::binary);
    bytes.assign(std::istreambuf_iterator<char>(in), {});
  }
  uint64_t header_size = 0;
  std::memcpy(&header_size, bytes.data(), 8);
  const auto header = nlohmann::json::parse(bytes.substr(8, header_size));
  const auto& entry = header.at(weight);
  const auto begin = entry.at("data_offsets").at(0).get<size_t>();
  const auto end = entry.at("data_offsets").at(1).get<size_t>();
  std::fill(bytes.begin() + static_cast<std::ptrdiff_t>(8 + header_size + begin),
            bytes.begin() + static_cast<std::ptrdiff_t>(8 + header_size + end), '\x7F');
  std::ofstream(path, std::ios::binary) << bytes;
  return folder.string();
}

TEST(Session, AnErrorAmidTheLayersEndsIt) {
  for (const char* weight :
       {"model.layers.1.self_attn.k_proj.weight", "model.layers.1.mlp.down_proj.weight"}) {
    SCOPED_TRACE(weight);
    Model model = Model::load(broken_model(weight), {.precision = Precision::kF32});
    Session session(model, {.spec = parse_spec("fp16")});
    EXPECT_THROW(session.feed(std::vector<int32_t>{3, 4, 5}), FormatError);
    EXPECT_EQ(session.length(), 0);
    EXPECT_THROW(session.feed(std::vector<int32_t>{3, 4, 5}), std::invalid_argument);
    EXPECT_THROW(session.truncate(0), std::invalid_argument);
  }
}

TEST(Session, UnknownTokensAreRefusedBeforeAnyIsFed) {
  Model model = Model::load(kEmbedded);
  Session session(model, {.spec = parse_spec("fp16"), .ubatch = 2});
  EXPECT_THROW(session.feed(std::vector<int32_t>{1, 2, 3, -1}), std::invalid_argument);
  EXPECT_EQ(session.length(), 0);
  session.feed(std::vector<int32_t>{1, 2, 3});
  EXPECT_EQ(session.length(), 3);
}

}  // namespace
}  // namespace kvquant
