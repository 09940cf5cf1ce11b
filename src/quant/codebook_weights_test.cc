#include "quant/codebook_weights.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <stdexcept>

#include "kvquant/error.h"

namespace kvquant {
namespace {

TEST(CodebookWeights, NamesGoBothWays) {
  for (const char* name : {"none", "scale", "query", "fisher"}) {
    EXPECT_EQ(to_string(parse_codebook_weighting(name)), name);
  }
  EXPECT_THROW(parse_codebook_weighting("hessian"), std::invalid_argument);
}

TEST(CodebookWeights, OfScalesAreTheirSquares) {
  EXPECT_EQ(scale_weights(std::vector<float>{0, 3, 0.5f}), (std::vector<float>{0, 9, 0.25f}));
  for (const float bad : {-1.0f, NAN, INFINITY, 1e30f}) {
    EXPECT_THROW(scale_weights(std::vector<float>{bad}), std::invalid_argument) << bad;
  }
}

TEST(CodebookWeights, OfQueriesSumThePairsOfTheGroup) {
  // 4 query heads, 2 KV heads, head_dim 4: channels 0, 2 and 1, 3 are pairs.
  const std::vector<double> moments = {1, 2, 3, 4, 10, 20, 30, 40, 0, 0, 0, 0, 5, 6, 7, 8};
  const std::vector<float> scales = {1, 1, 2, 1, 1, 1, 0, 3};
  const auto weights = query_weights(scales, {moments, 4, 2, 4});
  EXPECT_EQ(weights, (std::vector<float>{22, 33, 88, 33, 6, 7, 0, 63}));
}

TEST(CodebookWeights, OfQueriesCheckShapesAndNumbers) {
  const std::vector<float> scales(4, 1);
  std::vector<double> moments(8, 1);
  EXPECT_NO_THROW(query_weights(scales, {moments, 4, 2, 2}));
  EXPECT_THROW(query_weights(scales, {moments, 4, 0, 2}), std::invalid_argument);
  EXPECT_THROW(query_weights(scales, {moments, 3, 2, 2}), std::invalid_argument);
  EXPECT_THROW(query_weights(scales, {moments, 2, 2, 2}), std::invalid_argument);
  EXPECT_THROW(query_weights(scales, {moments, 8, 4, 1}), std::invalid_argument);
  moments[5] = -1;
  EXPECT_THROW(query_weights(scales, {moments, 4, 2, 2}), std::invalid_argument);
}

class Fisher : public testing::Test {
 protected:
  ~Fisher() override { std::filesystem::remove(path_); }

  void write(const SafetensorsEntry& entry, const std::vector<float>& numbers) {
    write_safetensors(path_, {&entry, 1}, {}, [&](size_t, const ByteSink& sink) {
      sink(std::as_bytes(std::span(numbers)));
    });
  }
  void expect_refused(const std::string& part) {
    try {
      FisherFile(path_).read(KvSide::kKey, 0, 2);
      ADD_FAILURE() << "accepted; expected " << part;
    } catch (const FormatError& error) {
      EXPECT_NE(std::string(error.what()).find(path_ + ": tensor fisher.key.0: "),
                std::string::npos)
          << error.what();
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
  }

  const std::string path_ = testing::TempDir() +
                            testing::UnitTest::GetInstance()->current_test_info()->name() +
                            ".fisher.safetensors";
};

TEST_F(Fisher, IsReadPerChannelAndPerToken) {
  write({"fisher.value.3", "F32", {2}}, {1, 2});
  const auto per_channel = FisherFile(path_).read(KvSide::kValue, 3, 2);
  EXPECT_EQ(per_channel.num_tokens, 0);
  EXPECT_EQ(fisher_weights(std::vector<float>{2, 3}, per_channel), (std::vector<float>{4, 18}));
  write({"fisher.key.0", "F32", {3, 2}}, {1, 2, 3, 4, 5, 0});
  const auto per_token = FisherFile(path_).read(KvSide::kKey, 0, 2);
  EXPECT_EQ(per_token.num_tokens, 3);
  EXPECT_EQ(fisher_weights(std::vector<float>{1, 2}, per_token),
            (std::vector<float>{1, 8, 3, 16, 5, 0}));
  EXPECT_EQ(channel_means(per_token), (std::vector<float>{3, 2}));
  EXPECT_EQ(channel_means(per_channel), (std::vector<float>{1, 2}));
  EXPECT_THROW(fisher_weights(std::vector<float>{1}, per_token), std::invalid_argument);
}

TEST_F(Fisher, HostileFilesAreRefusedByTensor) {
  write({"fisher.key.1", "F32", {2}}, {1, 2});
  expect_refused("is missing");
  write({"fisher.key.0", "I32", {2}}, {1, 2});
  expect_refused("not F32");
  write({"fisher.key.0", "F32", {3}}, {1, 2, 3});
  expect_refused("shape [3]");
  write({"fisher.key.0", "F32", {0, 2}}, {});
  expect_refused("shape [0, 2]");
  write({"fisher.key.0", "F32", {}}, {1});
  expect_refused("shape []");
  write({"fisher.key.0", "F32", {2}}, {1, -2});
  expect_refused("number 1 is -2");
  write({"fisher.key.0", "F32", {2}}, {NAN, 2});
  expect_refused("number 0 is nan");
  write({"fisher.key.0", "F32", {2}}, {0, 0});
  expect_refused("all numbers are 0");
}

}  // namespace
}  // namespace kvquant
