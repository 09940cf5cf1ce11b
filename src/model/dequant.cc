#include "model/dequant.h"

#include <cmath>
#include <cstring>

namespace kvquant {
namespace {

constexpr int64_t kBlock = kWeightGroup;  // 32 values, both in Q8_0 and in Q4_1
constexpr float kMaxHalf = 65504.0f;

Half load_half(const std::byte* from) {
  Half value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

void f32_to_floats(const std::byte* blocks, int64_t num_blocks, float* out) noexcept {
  std::memcpy(out, blocks, static_cast<size_t>(num_blocks) * sizeof(float));
}

void f16_to_floats(const std::byte* blocks, int64_t num_blocks, float* out) noexcept {
  for (int64_t i = 0; i < num_blocks; ++i) out[i] = to_float(load_half(blocks + 2 * i));
}

void bf16_to_floats(const std::byte* blocks, int64_t num_blocks, float* out) noexcept {
  for (int64_t i = 0; i < num_blocks; ++i) {
    BFloat16 value;
    std::memcpy(&value, blocks + 2 * i, sizeof(value));
    out[i] = to_float(value);
  }
}

// Q8_0: Half d, int8 q[32].
constexpr int64_t kQ8_0Bytes = 34;

void q8_0_to_floats(const std::byte* blocks, int64_t num_blocks, float* out) noexcept {
  for (int64_t b = 0; b < num_blocks; ++b, blocks += kQ8_0Bytes, out += kBlock) {
    const float d = to_float(load_half(blocks));
    for (int64_t i = 0; i < kBlock; ++i) {
      out[i] = static_cast<float>(static_cast<int8_t>(blocks[2 + i])) * d;
    }
  }
}

// code = q + 128 and offset = -128 d: a power of two times d, exact while it does not overflow.
// Both products have at most 19 significant bits, so f32 arithmetic on them is exact as well.
void q8_0_to_groups(const std::byte* blocks, int64_t num_blocks, QuantizedRow out) noexcept {
  for (int64_t b = 0; b < num_blocks; ++b, blocks += kQ8_0Bytes) {
    const Half d = load_half(blocks);
    out.scales[static_cast<size_t>(b)] = d;
    out.offsets[static_cast<size_t>(b)] = to_half(-128.0f * to_float(d));
    uint8_t* codes = out.codes.data() + b * kBlock;
    for (int64_t i = 0; i < kBlock; ++i) {
      codes[i] = static_cast<uint8_t>(blocks[2 + i]) ^ 0x80;
    }
  }
}

bool q8_0_fits_groups(const std::byte* blocks, int64_t num_blocks) noexcept {
  bool fits = true;
  for (int64_t b = 0; b < num_blocks; ++b) {
    const float offset = 128.0f * to_float(load_half(blocks + b * kQ8_0Bytes));
    fits &= std::abs(offset) <= kMaxHalf;  // false for NaN
  }
  return fits;
}

// Q4_1: Half d, Half m, uint8 nibbles[16].
constexpr int64_t kQ4_1Bytes = 20;

void q4_1_to_floats(const std::byte* blocks, int64_t num_blocks, float* out) noexcept {
  for (int64_t b = 0; b < num_blocks; ++b, blocks += kQ4_1Bytes, out += kBlock) {
    const float d = to_float(load_half(blocks));
    const float m = to_float(load_half(blocks + 2));
    for (int64_t i = 0; i < kBlock / 2; ++i) {
      const auto pair = static_cast<uint8_t>(blocks[4 + i]);
      out[i] = d * static_cast<float>(pair & 15) + m;
      out[i + kBlock / 2] = d * static_cast<float>(pair >> 4) + m;
    }
  }
}

void q4_1_to_groups(const std::byte* blocks, int64_t num_blocks, QuantizedRow out) noexcept {
  for (int64_t b = 0; b < num_blocks; ++b, blocks += kQ4_1Bytes) {
    out.scales[static_cast<size_t>(b)] = load_half(blocks);
    out.offsets[static_cast<size_t>(b)] = load_half(blocks + 2);
    uint8_t* codes = out.codes.data() + b * kBlock;
    for (int64_t i = 0; i < kBlock / 2; ++i) {
      const auto pair = static_cast<uint8_t>(blocks[4 + i]);
      codes[i] = pair & 15;
      codes[i + kBlock / 2] = pair >> 4;
    }
  }
}

constexpr WeightFormat kFormats[] = {
    {"F32", 0, 1, 4, f32_to_floats, nullptr, nullptr},
    {"F16", 1, 1, 2, f16_to_floats, nullptr, nullptr},
    {"BF16", 30, 1, 2, bf16_to_floats, nullptr, nullptr},
    {"Q8_0", 8, kBlock, kQ8_0Bytes, q8_0_to_floats, q8_0_to_groups, q8_0_fits_groups},
    {"Q4_1", 3, kBlock, kQ4_1Bytes, q4_1_to_floats, q4_1_to_groups, nullptr},
};

// Names of GGUF's other types, for messages.
constexpr struct {
  uint32_t gguf_type;
  const char* name;
} kOtherTypes[] = {
    {2, "Q4_0"},     {6, "Q5_0"},   {7, "Q5_1"},    {9, "Q8_1"},   {10, "Q2_K"},    {11, "Q3_K"},
    {12, "Q4_K"},    {13, "Q5_K"},  {14, "Q6_K"},   {15, "Q8_K"},  {16, "IQ2_XXS"}, {17, "IQ2_XS"},
    {18, "IQ3_XXS"}, {19, "IQ1_S"}, {20, "IQ4_NL"}, {21, "IQ3_S"}, {22, "IQ2_S"},   {23, "IQ4_XS"},
    {24, "I8"},      {25, "I16"},   {26, "I32"},    {27, "I64"},   {28, "F64"},     {29, "IQ1_M"},
    {34, "TQ1_0"},   {35, "TQ2_0"}, {39, "MXFP4"},
};

}  // namespace

std::span<const WeightFormat> weight_formats() { return kFormats; }

const WeightFormat* find_weight_format(uint32_t gguf_type) {
  for (const WeightFormat& format : kFormats) {
    if (format.gguf_type == gguf_type) return &format;
  }
  return nullptr;
}

const WeightFormat* find_weight_format(std::string_view name) {
  for (const WeightFormat& format : kFormats) {
    if (format.name == name) return &format;
  }
  return nullptr;
}

std::string gguf_type_name(uint32_t gguf_type) {
  if (const WeightFormat* format = find_weight_format(gguf_type)) return format->name;
  for (const auto& other : kOtherTypes) {
    if (other.gguf_type == gguf_type) return other.name;
  }
  return "type " + std::to_string(gguf_type);
}

std::string weight_format_names() {
  std::string names;
  for (const WeightFormat& format : kFormats) {
    if (!names.empty()) names += ", ";
    names += format.name;
  }
  return names;
}

}  // namespace kvquant
