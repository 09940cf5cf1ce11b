#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "kvquant/error.h"
#include "ops/linear.h"

namespace kvquant {
namespace {

float value_at(int64_t row, int64_t in) { return static_cast<float>(row * 1000 + in) * 0.25f; }

PackedMatrix pack_counting(int64_t num_out, int64_t num_in, WeightType type, ThreadPool& pool) {
  return PackedMatrix::pack(
      num_out, num_in, type,
      [](int64_t row, std::span<float> out) {
        for (size_t i = 0; i < out.size(); ++i) out[i] = value_at(row, static_cast<int64_t>(i));
      },
      pool);
}

template <class T>
T element(const PackedMatrix& w, int64_t panel, int64_t index, int64_t byte_offset = 0) {
  T value;
  std::memcpy(&value, w.panel(panel) + byte_offset + index * static_cast<int64_t>(sizeof(T)),
              sizeof(T));
  return value;
}

TEST(PackedMatrix, LaysOutPanelsAsDocumented) {
  ThreadPool pool(2, ThreadPool::Pin::kNo);
  const auto f32 = pack_counting(70, 33, WeightType::kF32, pool);
  EXPECT_EQ(f32.padded_in(), 64);
  EXPECT_EQ(f32.num_panels(), 2);
  EXPECT_EQ(f32.num_bytes(), 2 * 64 * 64 * 4);
  const auto bf16 = pack_counting(70, 33, WeightType::kBF16, pool);
  EXPECT_EQ(bf16.num_bytes(), 2 * 64 * 64 * 2);
  for (int64_t panel = 0; panel < 2; ++panel) {
    for (int64_t in = 0; in < 64; ++in) {
      for (int64_t out = 0; out < 64; ++out) {
        const int64_t row = panel * 64 + out;
        const float expected = row < 70 && in < 33 ? value_at(row, in) : 0.0f;
        ASSERT_EQ(element<float>(f32, panel, in * 64 + out), expected);
        ASSERT_EQ(element<BFloat16>(bf16, panel, (in / 2 * 64 + out) * 2 + in % 2),
                  to_bfloat16(expected));
      }
    }
  }
}

TEST(PackedMatrix, LaysOutInt8PanelsAsDocumented) {
  ThreadPool pool(2, ThreadPool::Pin::kNo);
  const auto w = PackedMatrix::pack_groups(
      70, 64, WeightType::kInt8,
      [](int64_t row, QuantizedRow out) {
        for (size_t i = 0; i < 64; ++i) out.codes[i] = static_cast<uint8_t>(row * 2 + i);
        for (size_t g = 0; g < 2; ++g) {
          out.scales[g] = to_half(static_cast<float>(row) + static_cast<float>(g) * 0.5f);
          out.offsets[g] = to_half(-static_cast<float>(row));
        }
      },
      pool);
  constexpr int64_t kGroupBytes = 32 * 64 + 2 * 64 * 2;
  EXPECT_EQ(w.panel_bytes(), 2 * kGroupBytes);
  for (int64_t in = 0; in < 64; ++in) {
    const int64_t at = in / 32 * kGroupBytes + in % 32 / 4 * 64 * 4 + in % 4;
    EXPECT_EQ(element<uint8_t>(w, 1, at + 5 * 4), (69 * 2 + in) % 256);
    EXPECT_EQ(element<uint8_t>(w, 1, at + 6 * 4), 0);  // beyond the last row
  }
  EXPECT_EQ(to_float(element<Half>(w, 1, 5, kGroupBytes + 32 * 64)), 69.5f);
  EXPECT_EQ(to_float(element<Half>(w, 1, 64 + 5, kGroupBytes + 32 * 64)), -69.0f);
  std::vector<float> row(64);
  w.read_row(3, row);
  EXPECT_EQ(row[40], 3.5f * 46 - 3.0f);
}

TEST(PackedMatrix, LaysOutInt4PanelsAsDocumented) {
  ThreadPool pool(2, ThreadPool::Pin::kNo);
  const auto w = PackedMatrix::pack_groups(
      70, 64, WeightType::kInt4,
      [](int64_t row, QuantizedRow out) {
        for (size_t i = 0; i < 64; ++i) out.codes[i] = static_cast<uint8_t>((row + i * 7) % 16);
        for (size_t g = 0; g < 2; ++g) {
          out.scales[g] = to_half(static_cast<float>(row) + static_cast<float>(g) * 0.5f);
          out.offsets[g] = to_half(-static_cast<float>(row));
        }
      },
      pool);
  constexpr int64_t kGroupBytes = 16 * 64 + 2 * 64 * 2;
  EXPECT_EQ(w.panel_bytes(), 2 * kGroupBytes);
  for (int64_t in = 0; in < 64; ++in) {
    const int64_t at = in / 32 * kGroupBytes + in % 32 / 8 * 64 * 4 + in % 4;
    const int shift = in % 8 < 4 ? 0 : 4;
    EXPECT_EQ(element<uint8_t>(w, 1, at + 5 * 4) >> shift & 15, (69 + in * 7) % 16);
    EXPECT_EQ(element<uint8_t>(w, 1, at + 6 * 4), 0);  // beyond the last row
  }
  EXPECT_EQ(to_float(element<Half>(w, 1, 5, kGroupBytes + 16 * 64)), 69.5f);
  EXPECT_EQ(to_float(element<Half>(w, 1, 64 + 5, kGroupBytes + 16 * 64)), -69.0f);
  std::vector<float> row(64);
  w.read_row(3, row);
  EXPECT_EQ(row[40], 3.5f * ((3 + 40 * 7) % 16) - 3.0f);
}

// Codes that count in sevens; the scale of part g of row r is r + g / 2.
void counting_row(int64_t row, int num_codes, QuantizedRow out) {
  for (size_t i = 0; i < out.codes.size(); ++i) {
    out.codes[i] = static_cast<uint8_t>((row + static_cast<int64_t>(i) * 7) % num_codes);
  }
  for (size_t g = 0; g < out.scales.size(); ++g) {
    out.scales[g] = to_half(static_cast<float>(row) + static_cast<float>(g) * 0.5f);
    out.offsets[g] = to_half(-static_cast<float>(row));
  }
}

TEST(PackedMatrix, LaysOutInt5PanelsAsDocumented) {
  ThreadPool pool(2, ThreadPool::Pin::kNo);
  const auto w = PackedMatrix::pack_groups(
      70, 64, WeightType::kInt5, [](int64_t row, QuantizedRow out) { counting_row(row, 32, out); },
      pool);
  constexpr int64_t kHighBytes = 4 * 64, kCodeBytes = 20 * 64,
                    kGroupBytes = kCodeBytes + 2 * 64 * 2;
  EXPECT_EQ(w.panel_bytes(), 2 * kGroupBytes);
  for (int64_t in = 0; in < 64; ++in) {
    const int64_t group = in / 32 * kGroupBytes, i = in % 32;
    const int64_t high = group + i % 4, low = group + kHighBytes + i / 8 * 64 * 4 + i % 4;
    const int nibble = element<uint8_t>(w, 1, low + 5 * 4) >> (i % 8 / 4 * 4) & 15;
    const int fifth = element<uint8_t>(w, 1, high + 5 * 4) >> (i / 4) & 1;
    EXPECT_EQ(fifth << 4 | nibble, (69 + in * 7) % 32);
    EXPECT_EQ(element<uint8_t>(w, 1, high + 6 * 4), 0);  // beyond the last row
  }
  EXPECT_EQ(to_float(element<Half>(w, 1, 5, kGroupBytes + kCodeBytes)), 69.5f);
  EXPECT_EQ(to_float(element<Half>(w, 1, 64 + 5, kGroupBytes + kCodeBytes)), -69.0f);
  std::vector<float> row(64);
  w.read_row(3, row);
  EXPECT_EQ(row[40], 3.5f * ((3 + 40 * 7) % 32) - 3.0f);
}

TEST(PackedMatrix, LaysOutInt6x2PanelsAsDocumented) {
  ThreadPool pool(2, ThreadPool::Pin::kNo);
  const auto w = PackedMatrix::pack_groups(
      70, 64, WeightType::kInt6x2,
      [](int64_t row, QuantizedRow out) { counting_row(row, 64, out); }, pool);
  constexpr int64_t kHighBytes = 4 * 64, kCodeBytes = 12 * 64,
                    kGroupBytes = kCodeBytes + 2 * 64 * 2;
  EXPECT_EQ(w.panel_bytes(), 4 * kGroupBytes);
  for (int64_t in = 0; in < 64; ++in) {
    const int64_t group = in / 16 * kGroupBytes, i = in % 16;
    const int64_t high = group + i % 4, low = group + kHighBytes + i / 8 * 64 * 4 + i % 4;
    const int nibble = element<uint8_t>(w, 1, low + 5 * 4) >> (i % 8 / 4 * 4) & 15;
    const int above = element<uint8_t>(w, 1, high + 5 * 4) >> (i / 4 * 2) & 3;
    EXPECT_EQ(above << 4 | nibble, (69 + in * 7) % 64);
    EXPECT_EQ(element<uint8_t>(w, 1, high + 6 * 4), 0);  // beyond the last row
  }
  EXPECT_EQ(to_float(element<Half>(w, 1, 5, 3 * kGroupBytes + kCodeBytes)), 70.5f);
  EXPECT_EQ(to_float(element<Half>(w, 1, 64 + 5, 3 * kGroupBytes + kCodeBytes)), -69.0f);
  std::vector<float> row(64);
  w.read_row(3, row);
  EXPECT_EQ(row[40], 4.0f * ((3 + 40 * 7) % 64) - 3.0f);
  EXPECT_EQ(row[50], 4.5f * ((3 + 50 * 7) % 64) - 3.0f);
}

TEST(PackedMatrix, ReadsBackItsRows) {
  ThreadPool pool(1);
  for (const WeightType type : {WeightType::kF32, WeightType::kBF16}) {
    const auto w = pack_counting(130, 37, type, pool);
    std::vector<float> row(37);
    for (int64_t r = 0; r < 130; ++r) {
      w.read_row(r, row);
      for (int64_t i = 0; i < 37; ++i) {
        const float expected = value_at(r, i);
        ASSERT_EQ(row[static_cast<size_t>(i)],
                  type == WeightType::kF32 ? expected : round_to_bfloat16(expected));
      }
    }
    EXPECT_THROW(w.read_row(130, row), std::invalid_argument);
    EXPECT_THROW(w.read_row(-1, row), std::invalid_argument);
    row.resize(36);
    EXPECT_THROW(w.read_row(0, row), std::invalid_argument);
  }
}

TEST(PackedMatrix, RejectsSizesThatMakeNoSense) {
  ThreadPool pool(1);
  EXPECT_THROW(pack_counting(0, 8, WeightType::kF32, pool), std::invalid_argument);
  EXPECT_THROW(pack_counting(8, 0, WeightType::kBF16, pool), std::invalid_argument);
  EXPECT_THROW(pack_counting(-1, 8, WeightType::kF32, pool), std::invalid_argument);
  EXPECT_THROW(pack_counting(8, 8, WeightType::kInt8, pool), std::invalid_argument);
  EXPECT_THROW(pack_counting(INT64_MAX, INT64_MAX, WeightType::kF32, pool), OutOfMemory);
  EXPECT_THROW(pack_counting(int64_t{1} << 40, int64_t{1} << 40, WeightType::kBF16, pool),
               OutOfMemory);
  const auto no_codes = [](int64_t, QuantizedRow) {};
  EXPECT_THROW(PackedMatrix::pack_groups(8, 33, WeightType::kInt8, no_codes, pool),
               std::invalid_argument);
}

}  // namespace
}  // namespace kvquant
