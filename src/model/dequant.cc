#include "model/dequant.h"

#include <cstring>

#include "model/dequant_blocks.h"

namespace kvquant {
namespace {

void f32_to_floats(const std::byte* blocks, int64_t num_blocks, float* out) noexcept {
  std::memcpy(out, blocks, static_cast<size_t>(num_blocks) * sizeof(float));
}

void f16_to_floats(const std::byte* blocks, int64_t num_blocks, float* out) noexcept {
  for (int64_t i = 0; i < num_blocks; ++i) out[i] = load_half_as_float(blocks + 2 * i);
}

void bf16_to_floats(const std::byte* blocks, int64_t num_blocks, float* out) noexcept {
  for (int64_t i = 0; i < num_blocks; ++i) {
    BFloat16 value;
    std::memcpy(&value, blocks + 2 * i, sizeof(value));
    out[i] = to_float(value);
  }
}

// Blocks of 32 whose values are (code - kZero) d: the groups' offset is -kZero d, a power of two
// times d, exact while it does not overflow. All products have at most 19 significant bits, so f32
// arithmetic on them is exact as well.
template <class Block>
void centred_to_floats(const std::byte* blocks, int64_t num_blocks, float* out) noexcept {
  uint8_t codes[kWeightGroup];
  for (int64_t b = 0; b < num_blocks; ++b, blocks += Block::kBytes, out += kWeightGroup) {
    const float d = load_half_as_float(blocks);
    Block::unpack(blocks, codes);
    for (int i = 0; i < kWeightGroup; ++i) out[i] = static_cast<float>(codes[i] - Block::kZero) * d;
  }
}

template <class Block>
void centred_to_groups(const std::byte* blocks, int64_t num_blocks, QuantizedRow out) noexcept {
  for (int64_t b = 0; b < num_blocks; ++b, blocks += Block::kBytes) {
    const float d = load_half_as_float(blocks);
    out.scales[static_cast<size_t>(b)] = to_half(d);
    out.offsets[static_cast<size_t>(b)] = to_half(-Block::kZero * d);
    Block::unpack(blocks, out.codes.data() + b * kWeightGroup);
  }
}

template <class Block>
bool centred_fits_groups(const std::byte* blocks, int64_t num_blocks) noexcept {
  bool fits = true;
  for (int64_t b = 0; b < num_blocks; ++b) {
    fits &= fits_half(Block::kZero * load_half_as_float(blocks + b * Block::kBytes));
  }
  return fits;
}

// Blocks of 32 whose values are d code + m, as a group's are.
template <class Block>
void affine_to_floats(const std::byte* blocks, int64_t num_blocks, float* out) noexcept {
  uint8_t codes[kWeightGroup];
  for (int64_t b = 0; b < num_blocks; ++b, blocks += Block::kBytes, out += kWeightGroup) {
    const float d = load_half_as_float(blocks), m = load_half_as_float(blocks + 2);
    Block::unpack(blocks, codes);
    for (int i = 0; i < kWeightGroup; ++i) out[i] = d * static_cast<float>(codes[i]) + m;
  }
}

template <class Block>
void affine_to_groups(const std::byte* blocks, int64_t num_blocks, QuantizedRow out) noexcept {
  for (int64_t b = 0; b < num_blocks; ++b, blocks += Block::kBytes) {
    std::memcpy(&out.scales[static_cast<size_t>(b)], blocks, sizeof(Half));
    std::memcpy(&out.offsets[static_cast<size_t>(b)], blocks + 2, sizeof(Half));
    Block::unpack(blocks, out.codes.data() + b * kWeightGroup);
  }
}

// Super-blocks of 256: a Half of the block times a small integer is the scale of 16 or 32 values.
// f32 holds that exactly, and its product with a code, so that a value is rounded once, when an
// offset is added.
template <class Block>
void super_to_floats(const std::byte* blocks, int64_t num_blocks, float* out) noexcept {
  SuperBlock block;
  for (int64_t b = 0; b < num_blocks; ++b, blocks += Block::kBytes, out += kSuperBlock) {
    Block::unpack(blocks, block);
    for (int64_t i = 0; i < kSuperBlock; ++i) {
      const int64_t g = i / Block::kGroupSize;
      out[i] = block.scales[g] * static_cast<float>(block.codes[i] - Block::kZero);
      if constexpr (Block::kZero == 0) out[i] += block.offsets[g];
    }
  }
}

// A Half does not hold the scales: they are rounded to its 11 bits. Zero stays zero.
template <class Block>
void super_to_groups(const std::byte* blocks, int64_t num_blocks, QuantizedRow out) noexcept {
  constexpr int64_t kNumGroups = kSuperBlock / Block::kGroupSize;
  SuperBlock block;
  for (int64_t b = 0; b < num_blocks; ++b, blocks += Block::kBytes) {
    Block::unpack(blocks, block);
    std::memcpy(out.codes.data() + b * kSuperBlock, block.codes, kSuperBlock);
    for (int64_t g = 0; g < kNumGroups; ++g) {
      const auto at = static_cast<size_t>(b * kNumGroups + g);
      const float scale = round_to_half(block.scales[g]);
      out.scales[at] = to_half(scale);
      out.offsets[at] = to_half(Block::kZero == 0 ? block.offsets[g] : -Block::kZero * scale);
    }
  }
}

template <class Block>
bool super_fits_groups(const std::byte* blocks, int64_t num_blocks) noexcept {
  bool fits = true;
  SuperBlock block;
  for (int64_t b = 0; b < num_blocks; ++b, blocks += Block::kBytes) {
    Block::unpack(blocks, block);
    for (int64_t g = 0; g < kSuperBlock / Block::kGroupSize; ++g) {
      const int factor = Block::kZero == 0 ? 1 : Block::kZero;
      fits &= fits_half(factor * block.scales[g]) && fits_half(block.offsets[g]);
    }
  }
  return fits;
}

constexpr WeightFormat plain(const char* name, uint32_t gguf_type, int64_t bytes,
                             decltype(WeightFormat::to_floats) to_floats) {
  return {name, gguf_type, 1, bytes, to_floats, {}};
}

template <class Block>
constexpr WeightFormat centred(const char* name, uint32_t gguf_type) {
  return {name,
          gguf_type,
          kWeightGroup,
          Block::kBytes,
          centred_to_floats<Block>,
          {kWeightGroup, Block::kBits, true, centred_to_groups<Block>, centred_fits_groups<Block>}};
}

template <class Block>
constexpr WeightFormat affine(const char* name, uint32_t gguf_type) {
  return {name,
          gguf_type,
          kWeightGroup,
          Block::kBytes,
          affine_to_floats<Block>,
          {kWeightGroup, Block::kBits, true, affine_to_groups<Block>, nullptr}};
}

template <class Block>
constexpr WeightFormat super(const char* name, uint32_t gguf_type) {
  return {
      name,
      gguf_type,
      kSuperBlock,
      Block::kBytes,
      super_to_floats<Block>,
      {Block::kGroupSize, Block::kBits, false, super_to_groups<Block>, super_fits_groups<Block>}};
}

constexpr WeightFormat kFormats[] = {
    plain("F32", 0, 4, f32_to_floats),
    plain("F16", 1, 2, f16_to_floats),
    plain("BF16", 30, 2, bf16_to_floats),
    centred<Q8_0>("Q8_0", 8),
    centred<Q4_0>("Q4_0", 2),
    affine<Q4_1>("Q4_1", 3),
    centred<Q5_0>("Q5_0", 6),
    affine<Q5_1>("Q5_1", 7),
    super<Q4_K>("Q4_K", 12),
    super<Q5_K>("Q5_K", 13),
    super<Q6_K>("Q6_K", 14),
};

// Names of GGUF's other types, for messages.
constexpr struct {
  uint32_t gguf_type;
  const char* name;
} kOtherTypes[] = {
    {9, "Q8_1"},     {10, "Q2_K"},  {11, "Q3_K"},   {15, "Q8_K"},  {16, "IQ2_XXS"}, {17, "IQ2_XS"},
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
