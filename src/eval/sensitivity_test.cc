#include "eval/sensitivity.h"

#include <gtest/gtest.h>

#include "base/file.h"
#include "eval/perplexity.h"
#include "eval/sensitivity_file.h"
#include "kvquant/error.h"
#include "model/calibrate.h"

namespace kvquant {
namespace {

class SensitivityOfRef5m : public testing::Test {
 protected:
  SensitivityOfRef5m() : model_(Model::load(KVQUANT_SOURCE_DIR "/assets/ref5m")) {
    text_ = model_.tokenizer().encode(read_text(KVQUANT_SOURCE_DIR "/assets/sample.txt"),
                                      Tokenizer::Special::kAsText, Tokenizer::Bos::kNever);
    options_.keys = {codec("nuq2"), codec("int8")};
    options_.values = {codec("nuq2")};
    options_.windows = parse_spec("sink=1");
    options_.ubatch = 128;
  }

  static Codec codec(const char* name) { return parse_spec(name).key; }

  // As perplexity cuts them.
  std::vector<std::vector<int32_t>> samples(int64_t count, int64_t length) const {
    const TokenizerData& data = model_.tokenizer().data();
    std::vector<std::vector<int32_t>> out(static_cast<size_t>(count));
    auto at = text_.begin();
    for (auto& sample : out) {
      if (data.add_bos) sample.push_back(data.bos);
      while (std::ssize(sample) < length) sample.push_back(*at++);
    }
    return out;
  }

  double perplexity_kl(const std::string& spec, int64_t windows, int64_t length) {
    const std::vector<CacheSpec> specs = {parse_spec(spec)};
    return evaluate_perplexity(model_, text_, specs,
                               {.window = length,
                                .max_windows = windows,
                                .mode = options_.mode,
                                .ubatch = options_.ubatch})[0]
        .kl_mean;
  }

  Model model_;
  std::vector<int32_t> text_;
  SensitivityOptions options_;
};

TEST_F(SensitivityOfRef5m, IsTheDivergenceOfACacheWithThatSideOfThatLayer) {
  for (const CacheMode mode : {CacheMode::kStrict, CacheMode::kAsServed}) {
    options_.mode = mode;
    const auto table = measure_sensitivity(model_, samples(2, 300), options_);
    ASSERT_EQ(table.rows.size(), 6u * 3);
    EXPECT_EQ(table.tokens, 2 * 299);
    for (const int64_t layer : {0, 3, 5}) {
      const std::string prefix = "sink=1,layers=" + std::to_string(layer) + ":";
      const Sensitivity* key = table.find(layer, KvSide::kKey, codec("nuq2"));
      const Sensitivity* value = table.find(layer, KvSide::kValue, codec("nuq2"));
      ASSERT_TRUE(key != nullptr && value != nullptr);
      EXPECT_NEAR(key->kl_mean, perplexity_kl(prefix + "k=nuq2", 2, 300), 1e-9);
      EXPECT_NEAR(value->kl_mean, perplexity_kl(prefix + "v=nuq2", 2, 300), 1e-9);
      const Sensitivity* fine = table.find(layer, KvSide::kKey, codec("int8"));
      EXPECT_GT(fine->bytes, key->bytes);
      // As served most of 300 tokens are exact: what bf16 rounds differently is larger than the
      // loss.
      if (mode != CacheMode::kStrict) continue;
      EXPECT_GT(key->kl_mean, 1e-5);
      EXPECT_LT(fine->kl_mean, key->kl_mean);
    }
  }
}

TEST_F(SensitivityOfRef5m, UsesTheCalibrationOfTheLayerThatIsChanged) {
  const std::vector<TokenizedText> texts = {{"sample.txt", text_}};
  model_.set_calibration(
      calibrate(model_, texts, {.num_samples = 2, .seq_len = 256, .ubatch = 128}));
  const auto table = measure_sensitivity(model_, samples(1, 300), options_);
  for (const int64_t layer : {1, 4}) {
    EXPECT_NEAR(table.find(layer, KvSide::kKey, codec("nuq2"))->kl_mean,
                perplexity_kl("sink=1,layers=" + std::to_string(layer) + ":k=nuq2", 1, 300), 1e-9);
  }
}

TEST_F(SensitivityOfRef5m, BytesOfSidesAddUpToThoseOfTheCache) {
  const auto table = measure_sensitivity(model_, samples(1, 600), options_);
  int64_t bytes = 0;
  for (int64_t layer = 0; layer < 6; ++layer) {
    bytes += table.find(layer, KvSide::kKey, codec("nuq2"))->bytes +
             table.find(layer, KvSide::kValue, codec("nuq2"))->bytes;
  }
  const std::vector<CacheSpec> specs = {parse_spec("nuq2,sink=1")};
  const auto whole =
      evaluate_perplexity(model_, text_, specs,
                          {.window = 600, .max_windows = 1, .mode = options_.mode, .ubatch = 128});
  EXPECT_NEAR(static_cast<double>(bytes), static_cast<double>(whole[0].cache_bytes),
              0.005 * static_cast<double>(bytes));
}

TEST_F(SensitivityOfRef5m, WhatIsKnownIsNotMeasuredAgain) {
  const auto some = samples(1, 100);
  const auto all = measure_sensitivity(model_, some, options_);
  std::vector<size_t> sizes;
  const auto again = measure_sensitivity(model_, some, options_, all.rows, [&](const auto& table) {
    sizes.push_back(table.rows.size());
  });
  EXPECT_TRUE(sizes.empty());
  EXPECT_EQ(again.rows.size(), all.rows.size());
  // All but the last layer.
  std::vector<Sensitivity> most(all.rows.begin(), all.rows.end() - 3);
  const auto rest = measure_sensitivity(
      model_, some, options_, most, [&](const auto& table) { sizes.push_back(table.rows.size()); });
  EXPECT_EQ(sizes, std::vector<size_t>{all.rows.size()});
  for (size_t i = 0; i < all.rows.size(); ++i) {
    EXPECT_EQ(rest.rows[i].kl_mean, all.rows[i].kl_mean);
    EXPECT_EQ(rest.rows[i].bytes, all.rows[i].bytes);
  }
}

TEST_F(SensitivityOfRef5m, ProgressEndsAtItsTotal) {
  int64_t last = 0, total = -1;
  measure_sensitivity(model_, samples(2, 64), options_, {}, {}, [&](int64_t done, int64_t all) {
    EXPECT_GT(done, last);
    last = done;
    total = all;
  });
  EXPECT_NEAR(static_cast<double>(last), static_cast<double>(total),
              0.05 * static_cast<double>(total));
  EXPECT_LE(last, total);
}

TEST_F(SensitivityOfRef5m, BadInputIsRefused) {
  const auto refuse = [&](const std::vector<std::vector<int32_t>>& some) {
    EXPECT_THROW(measure_sensitivity(model_, some, options_), std::invalid_argument);
  };
  refuse({});
  refuse({{1}});
  refuse({{1, 2}, {1, 2, 3}});
  options_.keys = {codec("pca8")};
  refuse({{1, 2}});
  options_.keys = {};
  refuse({{1, 2}});
}

TEST_F(SensitivityOfRef5m, AFileGivesBackWhatWasWritten) {
  const std::string path = testing::TempDir() + "/kvquant_sensitivity.json";
  const auto some = samples(1, 64);
  const auto table = measure_sensitivity(model_, some, options_);
  const std::string key = sensitivity_key(model_, some, options_);
  save_sensitivity(table, key, path);
  const auto rows = load_sensitivity(path, key, 6);
  ASSERT_EQ(rows.size(), table.rows.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    EXPECT_EQ(rows[i].kl_mean, table.rows[i].kl_mean);
    EXPECT_EQ(rows[i].bytes, table.rows[i].bytes);
    EXPECT_EQ(rows[i].codec, table.rows[i].codec);
    EXPECT_TRUE(rows[i].side == table.rows[i].side && rows[i].layer == table.rows[i].layer);
  }
  EXPECT_THROW(load_sensitivity(path, sensitivity_key(model_, samples(1, 65), options_), 6),
               FormatError);
  EXPECT_THROW(load_sensitivity(path, key, 5), FormatError);  // layer 5 is too much
  EXPECT_TRUE(load_sensitivity(path + ".none", key, 6).empty());
  std::remove(path.c_str());
}

TEST(SensitivityFile, BadOnesAreRefusedByField) {
  const std::string path = testing::TempDir() + "/kvquant_sensitivity_bad.json";
  const std::string head = R"({"format":"kvquant sensitivity","version":1,"key":"k","rows":)";
  const std::string row = R"({"layer":0,"side":"k","codec":"nuq2","kl_mean":0.5,"bytes":9})";
  const auto replaced = [&](const std::string& from, const std::string& to) {
    std::string text = row;
    return head + "[" + text.replace(text.find(from), from.size(), to) + "]}";
  };
  write_file_atomic(path, head + "[" + row + "]}");
  EXPECT_EQ(load_sensitivity(path, "k", 1).size(), 1u);
  for (const std::string& text :
       {std::string("{"), std::string("{}"), head + "1}", head + "[1]}",
        head + "[" + row + "," + row + "]}", replaced("\"k\"", "\"q\""), replaced("nuq2", "nuq9"),
        replaced("nuq2", "k=nuq2"), replaced("0.5", "-1"), replaced("0.5", "\"x\""),
        replaced("9}", "0}"), replaced("9}", "1e30}"), replaced("\"layer\":0", "\"layer\":-1")}) {
    write_file_atomic(path, text);
    EXPECT_THROW(load_sensitivity(path, "k", 1), FormatError) << text;
  }
  std::remove(path.c_str());
}

}  // namespace
}  // namespace kvquant
