#include "model/dequant.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <map>
#include <sstream>
#include <vector>

#include "base/file.h"

namespace kvquant {
namespace {

std::vector<std::byte> from_hex(const std::string& hex) {
  std::vector<std::byte> bytes;
  for (size_t i = 0; i + 1 < hex.size(); i += 2) {
    bytes.push_back(static_cast<std::byte>(std::stoi(hex.substr(i, 2), nullptr, 16)));
  }
  return bytes;
}

std::vector<float> to_floats(const WeightFormat& format, std::span<const std::byte> row) {
  const int64_t num_blocks = static_cast<int64_t>(row.size()) / format.block_bytes;
  std::vector<float> out(static_cast<size_t>(num_blocks * format.block_size));
  format.to_floats(row.data(), num_blocks, out.data());
  return out;
}

// scale * code + offset of the row's groups.
std::vector<float> through_groups(const WeightFormat& format, std::span<const std::byte> row) {
  const auto num_blocks = row.size() / static_cast<size_t>(format.block_bytes);
  const auto group_size = static_cast<size_t>(format.groups.size);
  std::vector<uint8_t> codes(num_blocks * static_cast<size_t>(format.block_size));
  std::vector<Half> scales(codes.size() / group_size), offsets(scales.size());
  format.groups.convert(row.data(), static_cast<int64_t>(num_blocks), {codes, scales, offsets});
  std::vector<float> out(codes.size());
  for (size_t i = 0; i < out.size(); ++i) {
    const float scaled = to_float(scales[i / group_size]) * static_cast<float>(codes[i]);
    out[i] = scaled + to_float(offsets[i / group_size]);
  }
  return out;
}

bool fits_groups(const WeightFormat& format, std::span<const std::byte> row) {
  const auto num_blocks = static_cast<int64_t>(row.size()) / format.block_bytes;
  return format.groups.fit == nullptr || format.groups.fit(row.data(), num_blocks);
}

std::vector<std::byte> arbitrary_block(const WeightFormat& format) {
  std::vector<std::byte> block(static_cast<size_t>(format.block_bytes));
  for (size_t i = 0; i < block.size(); ++i) block[i] = static_cast<std::byte>(37 * i + 128);
  return block;
}

TEST(Dequant, RowsEqualTheGgufPackageBitForBit) {
  std::istringstream lines(read_text(KVQUANT_SOURCE_DIR "/tests/golden/dequant.txt"));
  std::string name, packed, floats;
  std::map<std::string, int> num_rows;
  while (lines >> name >> packed >> floats) {
    const WeightFormat* format = find_weight_format(name);
    ASSERT_NE(format, nullptr) << name;
    const auto row = from_hex(packed);
    const auto expected_bytes = from_hex(floats);
    const auto values = to_floats(*format, row);
    ASSERT_EQ(values.size() * 4, expected_bytes.size());
    EXPECT_EQ(std::memcmp(values.data(), expected_bytes.data(), expected_bytes.size()), 0)
        << name << " row " << num_rows[name];
    ++num_rows[name];
  }
  for (const WeightFormat& format : weight_formats()) {
    EXPECT_EQ(num_rows[format.name], format.block_size == 256 ? 2 : 6) << format.name;
  }
}

TEST(Dequant, BlocksMayLieAtAnyAddress) {
  for (const WeightFormat& format : weight_formats()) {
    std::vector<std::byte> aligned(static_cast<size_t>(2 * format.block_bytes));
    for (size_t i = 0; i < aligned.size(); ++i) aligned[i] = static_cast<std::byte>(i + 1);
    std::vector<std::byte> shifted(1);
    shifted.insert(shifted.end(), aligned.begin(), aligned.end());
    const auto a = to_floats(format, aligned);
    const auto b = to_floats(format, std::span(shifted).subspan(1));
    EXPECT_EQ(std::memcmp(a.data(), b.data(), a.size() * sizeof(float)), 0) << format.name;
  }
}

TEST(Dequant, GroupsHoldTheSameValuesForEveryScaleThatFits) {
  const std::map<std::string, float> zeros = {
      {"Q8_0", 128.0f}, {"Q4_0", 8.0f}, {"Q5_0", 16.0f}, {"Q4_1", 1.0f}, {"Q5_1", 1.0f}};
  int num_exact = 0;
  for (const WeightFormat& format : weight_formats()) {
    if (!format.groups.are_exact) continue;
    ++num_exact;
    auto block = arbitrary_block(format);
    for (uint32_t bits = 0; bits < 0x10000; ++bits) {
      const auto scale = static_cast<uint16_t>(bits);
      std::memcpy(block.data(), &scale, 2);
      const float d = to_float(Half{scale});
      const bool fits = fits_groups(format, block);
      const bool has_offset = format.groups.fit == nullptr;
      EXPECT_EQ(fits, has_offset || std::abs(d) <= 65504.0f / zeros.at(format.name)) << d;
      if (!fits || !std::isfinite(d)) continue;
      ASSERT_EQ(through_groups(format, block), to_floats(format, block)) << format.name << bits;
    }
  }
  EXPECT_EQ(num_exact, 5);
}

// The largest deviation of a value, in multiples of the largest of the block.
double deviation(const std::vector<float>& values, const std::vector<float>& expected) {
  double largest = 0, error = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    largest = std::max(largest, std::abs(double{expected[i]}));
    error = std::max(error, std::abs(double{values[i]} - expected[i]));
  }
  return error / largest;
}

TEST(Dequant, GroupsOfSuperBlocksRoundOnlyTheirScales) {
  for (const char* name : {"Q4_K", "Q5_K", "Q6_K"}) {
    const WeightFormat& format = *find_weight_format(name);
    auto block = arbitrary_block(format);
    double worst = 0;
    // Every d, and as minimum's scale its half.
    const size_t place = std::string_view(name) == "Q6_K" ? 208 : 0;
    for (uint32_t bits = 0x0080; bits < 0x7C00; ++bits) {  // from 128 * 2^-24 on
      const auto scale = static_cast<uint16_t>(bits);
      const float d = to_float(Half{scale});
      std::memcpy(block.data() + place, &scale, 2);
      const Half half = to_half(d / 2);
      if (place == 0) std::memcpy(block.data() + 2, &half, 2);
      const auto floats = to_floats(format, block);
      if (!fits_groups(format, block)) {
        EXPECT_GT(d, 65504.0f / 32 / 128) << name;
        continue;
      }
      EXPECT_LT(d, 65504.0f / 16);
      const auto values = through_groups(format, block);
      // A code's part and the minimum's are each off by 2^-11.
      const double error = deviation(values, floats);
      EXPECT_LE(error, place == 0 ? 0x1p-10 : 0x1p-11) << name << " " << bits;
      worst = std::max(worst, error);
      for (size_t i = 0; i < values.size() && place > 0; ++i) {
        EXPECT_EQ(values[i] == 0, floats[i] == 0);
      }
    }
    EXPECT_GT(worst, 0x1p-13) << name;
  }
}

TEST(Dequant, OneBlockThatDoesNotFitIsEnough) {
  for (const WeightFormat& format : weight_formats()) {
    if (format.groups.fit == nullptr) continue;
    const size_t place = std::string_view(format.name) == "Q6_K" ? 208 : 0;
    std::vector<std::byte> row;
    for (int i = 0; i < 3; ++i) {
      auto block = arbitrary_block(format);
      std::memset(block.data() + place, 0, 2);
      if (format.block_size == 256 && place == 0) std::memset(block.data() + 2, 0, 2);
      row.insert(row.end(), block.begin(), block.end());
    }
    EXPECT_TRUE(fits_groups(format, row)) << format.name;
    const auto block_bytes = static_cast<size_t>(format.block_bytes);
    for (const float scale : {9000.0f, -9000.0f, INFINITY, NAN}) {
      const Half d = to_half(scale);
      std::memcpy(row.data() + 2 * block_bytes + place, &d, 2);
      EXPECT_FALSE(fits_groups(format, row)) << format.name << " " << scale;
      EXPECT_TRUE(fits_groups(format, std::span(row).first(2 * block_bytes)));
    }
  }
}

TEST(Dequant, FormatsAreFoundByNumberAndName) {
  for (const WeightFormat& format : weight_formats()) {
    EXPECT_EQ(find_weight_format(format.gguf_type), &format);
    EXPECT_EQ(find_weight_format(std::string_view(format.name)), &format);
    EXPECT_EQ(gguf_type_name(format.gguf_type), format.name);
  }
  EXPECT_EQ(find_weight_format(11u), nullptr);
  EXPECT_EQ(find_weight_format("Q3_K"), nullptr);
  EXPECT_EQ(gguf_type_name(11), "Q3_K");
  EXPECT_EQ(gguf_type_name(99), "type 99");
}

}  // namespace
}  // namespace kvquant
