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
  std::vector<uint8_t> codes(num_blocks * kWeightGroup);
  std::vector<Half> scales(num_blocks), offsets(num_blocks);
  format.to_groups(row.data(), static_cast<int64_t>(num_blocks), {codes, scales, offsets});
  std::vector<float> out(codes.size());
  for (size_t i = 0; i < out.size(); ++i) {
    const float scaled = to_float(scales[i / kWeightGroup]) * static_cast<float>(codes[i]);
    out[i] = scaled + to_float(offsets[i / kWeightGroup]);
  }
  return out;
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
  for (const WeightFormat& format : weight_formats()) EXPECT_EQ(num_rows[format.name], 6);
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
  for (const char* name : {"Q8_0", "Q4_1"}) {
    const WeightFormat& format = *find_weight_format(name);
    std::vector<std::byte> block(static_cast<size_t>(format.block_bytes));
    for (size_t i = 0; i < block.size(); ++i) block[i] = static_cast<std::byte>(37 * i + 128);
    for (uint32_t bits = 0; bits < 0x10000; ++bits) {
      const auto scale = static_cast<uint16_t>(bits);
      std::memcpy(block.data(), &scale, 2);
      const float d = to_float(Half{scale});
      const bool fits = format.fits_groups == nullptr || format.fits_groups(block.data(), 1);
      EXPECT_EQ(fits, name == std::string("Q4_1") || std::abs(d) <= 65504.0f / 128) << d;
      if (!fits || !std::isfinite(d)) continue;
      ASSERT_EQ(through_groups(format, block), to_floats(format, block)) << name << " " << bits;
    }
  }
}

TEST(Dequant, OneBlockThatDoesNotFitIsEnough) {
  const WeightFormat& format = *find_weight_format("Q8_0");
  std::vector<std::byte> row(static_cast<size_t>(3 * format.block_bytes));
  EXPECT_TRUE(format.fits_groups(row.data(), 3));
  for (const float scale : {520.0f, -520.0f, INFINITY, NAN}) {
    const Half d = to_half(scale);
    std::memcpy(row.data() + 2 * format.block_bytes, &d, 2);
    EXPECT_FALSE(format.fits_groups(row.data(), 3)) << scale;
    EXPECT_TRUE(format.fits_groups(row.data(), 2));
  }
}

TEST(Dequant, FormatsAreFoundByNumberAndName) {
  for (const WeightFormat& format : weight_formats()) {
    EXPECT_EQ(find_weight_format(format.gguf_type), &format);
    EXPECT_EQ(find_weight_format(std::string_view(format.name)), &format);
    EXPECT_EQ(gguf_type_name(format.gguf_type), format.name);
  }
  EXPECT_EQ(find_weight_format(12u), nullptr);
  EXPECT_EQ(find_weight_format("Q4_K"), nullptr);
  EXPECT_EQ(gguf_type_name(12), "Q4_K");
  EXPECT_EQ(gguf_type_name(99), "type 99");
}

}  // namespace
}  // namespace kvquant
