#include "quant/per_layer_files.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <stdexcept>

#include "base/file.h"
#include "formats/safetensors.h"
#include "kvquant/error.h"

namespace kvquant {
namespace {

class PerLayerFiles : public testing::Test {
 protected:
  ~PerLayerFiles() override { std::filesystem::remove_all(dir_); }

  // A codebook file with tensors of these entries, each of the same numbers.
  void write(const std::vector<SafetensorsEntry>& entries, const std::vector<float>& numbers) {
    std::filesystem::create_directories(dir_);
    write_safetensors(
        dir_ + "/codebooks.safetensors", entries, {},
        [&](size_t, const ByteSink& sink) { sink(std::as_bytes(std::span(numbers))); });
  }
  void expect_refused(const std::string& part) {
    try {
      load_per_layer_codebooks(dir_);
      ADD_FAILURE() << "accepted; expected " << part;
    } catch (const FormatError& error) {
      EXPECT_EQ(std::string(error.what()).find(dir_ + "/codebooks.safetensors: "), 0u)
          << error.what();
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
  }

  const std::string dir_ = testing::TempDir() + "per_layer_" +
                           testing::UnitTest::GetInstance()->current_test_info()->name();
  const std::vector<float> levels_ = {-1, -0.25f, 0.25f, 1};
};

TEST_F(PerLayerFiles, RoundTripWithAndWithoutHeadsInAnyNumberOfLayers) {
  std::vector<LayerCodebook> books;
  std::vector<LayerScalingFactors> scales;
  for (int layer = 0; layer < 12; ++layer) {  // layer 10 sorts before layer 2 by name
    books.push_back({0, 8, create_heuristic_codebook("nuq3")});
    books.back().levels[0] = -1 + 0.01f * static_cast<float>(layer);
    scales.push_back({2, 3, {0, 1, 2, 3, 4, static_cast<float>(layer)}});
  }
  books[5] = {2, 4, {-1, -0.5f, 0, 1, -0.75f, -0.5f, 0, 0.5f}};
  const std::string nested = dir_ + "/a/b";
  save_per_layer_codebooks(nested, books);
  save_per_layer_scaling_factors(nested, scales);
  EXPECT_EQ(load_per_layer_codebooks(nested), books);
  EXPECT_EQ(load_per_layer_scaling_factors(nested), scales);
}

TEST_F(PerLayerFiles, TensorsHaveThePublishedNames) {
  save_per_layer_codebooks(dir_, std::vector<LayerCodebook>{{0, 4, levels_}});
  save_per_layer_scaling_factors(dir_, std::vector<LayerScalingFactors>{{1, 2, {1, 2}}});
  const MappedFile books(dir_ + "/codebooks.safetensors");
  const MappedFile scales(dir_ + "/scaling_factors.safetensors");
  const Safetensors a = parse_safetensors(books.bytes(), "a");
  const Safetensors b = parse_safetensors(scales.bytes(), "b");
  EXPECT_EQ(a.find("codebook_layer0")->shape, (std::vector<int64_t>{4}));
  EXPECT_EQ(b.find("scales_layer0")->shape, (std::vector<int64_t>{1, 2}));
}

TEST_F(PerLayerFiles, WhatIsWrongIsNotSaved) {
  const auto save = [&](const LayerCodebook& book) {
    save_per_layer_codebooks(dir_, std::vector<LayerCodebook>{book});
  };
  EXPECT_THROW(save_per_layer_codebooks(dir_, {}), std::invalid_argument);
  EXPECT_THROW(save({0, 4, {-1, 0, 0, 1}}), std::invalid_argument);
  EXPECT_THROW(save({0, 4, {-2, 0, 0.5f, 1}}), std::invalid_argument);
  EXPECT_THROW(save({2, 4, levels_}), std::invalid_argument);
  EXPECT_THROW(save({-1, 4, levels_}), std::invalid_argument);
  EXPECT_THROW(save({0, 5, {-1, 0, 0.25f, 0.5f, 1}}), std::invalid_argument);
  const auto save_scales = [&](const std::vector<LayerScalingFactors>& scales) {
    save_per_layer_scaling_factors(dir_, scales);
  };
  EXPECT_THROW(save_scales({}), std::invalid_argument);
  EXPECT_THROW(save_scales({{1, 2, {1, NAN}}}), std::invalid_argument);
  EXPECT_THROW(save_scales({{1, 2, {1, -1}}}), std::invalid_argument);
  EXPECT_THROW(save_scales({{2, 2, {1, 1}}}), std::invalid_argument);
  EXPECT_THROW(save_scales({{1, 2, {1, 1}}, {2, 1, {1, 1}}}), std::invalid_argument);
  EXPECT_FALSE(std::filesystem::exists(dir_));
}

TEST_F(PerLayerFiles, HostileFilesAreRefusedByPathAndTensor) {
  write({}, {});
  expect_refused("there is no layer");
  write({{"codebook_layer1", "F32", {4}}}, levels_);
  expect_refused("tensor codebook_layer0: is missing");
  write({{"codebook_layer0", "F32", {4}}, {"codebook_layer2", "F32", {4}}}, levels_);
  expect_refused("tensor codebook_layer1: is missing");
  write({{"codebook_layer0", "F32", {4}}, {"other", "F32", {4}}}, levels_);
  expect_refused("tensor codebook_layer1: is missing");
  write({{"codebook_layer0", "I32", {4}}}, levels_);
  expect_refused("not F32");
  write({{"codebook_layer0", "F32", {1, 1, 4}}}, levels_);
  expect_refused("shape [1, 1, 4]");
  write({{"codebook_layer0", "F32", {2, 2}}}, levels_);
  expect_refused("2 levels are not 4, 8 or 16");
  write({{"codebook_layer0", "F32", {0, 4}}}, {});
  expect_refused("shape [0, 4]");
  write({{"codebook_layer0", "F32", {1, 4}}}, {-1, 0.5f, 0.25f, 1});
  expect_refused("level 2 does not ascend");
  write({{"codebook_layer0", "F32", {4}}}, {-1, NAN, 0.25f, 1});
  expect_refused("level 1 is nan");
  write({{"codebook_layer0", "F32", {4}}}, {-1, 0, 0.25f, 1.5f});
  expect_refused("level 3 is 1.5");
  write_file_atomic(dir_ + "/codebooks.safetensors", "abc");
  expect_refused("");
}

TEST_F(PerLayerFiles, AMissingFolderIsAnIoError) {
  EXPECT_THROW(load_per_layer_codebooks(dir_), IoError);
  EXPECT_THROW(load_per_layer_scaling_factors(dir_), IoError);
  write_file_atomic(dir_, "a file, not a folder");
  EXPECT_THROW(save_per_layer_codebooks(dir_ + "/x", std::vector<LayerCodebook>{{0, 4, levels_}}),
               IoError);
}

TEST_F(PerLayerFiles, ScalesThatDifferInShapeAreRefused) {
  const SafetensorsEntry entries[] = {{"scales_layer0", "F32", {1, 2}},
                                      {"scales_layer1", "F32", {2, 1}}};
  const std::vector<float> numbers = {1, 2};
  std::filesystem::create_directories(dir_);
  write_safetensors(dir_ + "/scaling_factors.safetensors", entries, {},
                    [&](size_t, const ByteSink& sink) { sink(std::as_bytes(std::span(numbers))); });
  EXPECT_THROW(load_per_layer_scaling_factors(dir_), FormatError);
}

}  // namespace
}  // namespace kvquant
