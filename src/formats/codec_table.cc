#include "formats/codec_table.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <utility>

#include "formats/kv_block.h"
#include "formats/outlier_page.h"

namespace kvquant {
namespace {

constexpr double kOutlierBits = 8.0 * sizeof(OutlierPage) / kOutliersPerPage;

bool is_built(const Codec& codec, KvSide side) {
  CacheSpec spec;  // the other side is fp16
  (side == KvSide::kKey ? spec.key : spec.value) = codec;
  try {
    check_spec_built(spec);
  } catch (const std::invalid_argument&) {
    return false;
  }
  return true;
}

double dense_bits(const Codec& codec, int64_t head_dim) {
  return static_cast<double>(code_bits(codec.quantizer)) *
         static_cast<double>(padded_head_dim(head_dim)) / static_cast<double>(head_dim);
}

double count_bits(int64_t head_dim) {
  constexpr double kTileBits = 8 * (sizeof(uint32_t) + sizeof(uint16_t));  // start and count
  return kTileBits / static_cast<double>(kTileTokens * head_dim);
}

}  // namespace

int nuq_bits(Quantizer quantizer) {
  switch (quantizer) {
    case Quantizer::kNuq4: return 4;
    case Quantizer::kNuq3: return 3;
    case Quantizer::kNuq2: return 2;
    default: return 0;
  }
}

int code_bits(Quantizer quantizer) {
  switch (quantizer) {
    case Quantizer::kInt8:
    case Quantizer::kWaterfill: return 8;
    case Quantizer::kInt4: return 4;
    default: return nuq_bits(quantizer);
  }
}

bool has_latents(const Codec& codec) {
  return std::any_of(codec.transforms.begin(), codec.transforms.end(),
                     [](const TransformStep& step) { return step.kind != Transform::kHadamard; });
}

bool needs_calibration(const Codec& codec) {
  return std::any_of(codec.transforms.begin(), codec.transforms.end(),
                     [](const TransformStep& step) { return step.rank > 0; });
}

int64_t latent_rank(const Codec& codec, int64_t head_dim) {
  int64_t rank = head_dim;
  for (const TransformStep& step : codec.transforms) {
    if (step.kind == Transform::kLnNullspace) --rank;
    if (step.kind == Transform::kPca || step.kind == Transform::kPcaWeighted) rank = step.rank;
  }
  return rank;
}

int64_t num_latent_outliers(int64_t rank, double percent) {
  return std::min(num_value_outliers(rank, percent), (rank - 1) / 2);
}

int64_t num_value_outliers(int64_t row_size, double percent) {
  const int64_t millionths = std::llround(percent * 1e6);
  constexpr int64_t kWhole = 200'000'000;
  return (row_size * millionths + kWhole - 1) / kWhole;
}

// Of latents, per value before the transform.
double marginal_latent_bits(const Codec& codec, int64_t head_dim) {
  const int64_t rank = latent_rank(codec, head_dim);
  const auto dim = static_cast<double>(head_dim);
  const int bits = code_bits(codec.quantizer);
  if (bits == 0) return static_cast<double>(kLatentBits * latent_width(rank)) / dim;
  if (codec.quantizer == Quantizer::kWaterfill) {
    return (codec.waterfill_bits * static_cast<double>(rank) + 32) / dim;
  }
  const int64_t num_outliers = 2 * num_latent_outliers(rank, codec.outlier_percent);
  const double per_token = static_cast<double>(bits * padded_head_dim(latent_width(rank)) + 32) +
                           static_cast<double>(num_outliers) * kOutlierBits;
  return per_token / dim + (codec.outlier_percent > 0 ? count_bits(head_dim) : 0);
}

double marginal_key_bits(const Codec& codec, int64_t head_dim) {
  if (!is_built(codec, KvSide::kKey)) return 0;
  if (has_latents(codec)) return marginal_latent_bits(codec, head_dim);
  if (!is_compressed(codec)) return codec.quantizer == Quantizer::kF32 ? 32 : 16;
  double bits = dense_bits(codec, head_dim);
  if (codec.outlier_percent > 0) {
    bits += codec.outlier_percent / 100 * kOutlierBits + count_bits(head_dim);
  }
  return bits;
}

double marginal_value_bits(const Codec& codec, int64_t head_dim, int64_t num_kv_heads) {
  if (!is_built(codec, KvSide::kValue)) return 0;
  if (has_latents(codec)) return marginal_latent_bits(codec, head_dim);
  if (!is_compressed(codec)) return codec.quantizer == Quantizer::kF32 ? 32 : 16;
  const int64_t row_size = head_dim * num_kv_heads;
  const auto row = static_cast<double>(row_size);
  double bits = dense_bits(codec, head_dim) + 32 / row;  // an fp16 scale and zero point per token
  if (codec.outlier_percent > 0) {
    const auto outliers = 2 * num_value_outliers(row_size, codec.outlier_percent);
    bits += static_cast<double>(outliers) / row * kOutlierBits + count_bits(head_dim);
  }
  return bits;
}

std::vector<CodecRow> codec_table(int64_t head_dim, int64_t num_kv_heads) {
  const std::string rank = std::to_string(head_dim * 3 / 4);
  const std::pair<std::string, const char*> codecs[] = {
      {"fp16", "half precision, keys after RoPE"},
      {"fp32", "single precision, keys after RoPE: shows what fp16 costs"},
      {"bf16", "bfloat16, keys after RoPE"},
      {"nuq4", "4-bit codebook indices; keys per channel before RoPE, values per token"},
      {"nuq4-1%", "nuq4 with 1% of outliers kept exactly"},
      {"nuq3", "3-bit codebook indices"},
      {"nuq3-1%", "nuq3 with 1% of outliers kept exactly"},
      {"nuq2", "2-bit codebook indices"},
      {"nuq2-1%", "nuq2 with 1% of outliers kept exactly"},
      {"int8", "256 uniform levels; scale and zero point as of nuq"},
      {"int4", "16 uniform levels"},
      {"pca" + rank, "centred PCA of this rank per KV head, fp16 latents; keys after RoPE"},
      {"pca" + rank + "+int8", "the same with 8-bit latents"},
      {"pcaw" + rank, "PCA weighted by the output projection; values only"},
      {"pcaw" + rank + "+int4", "the same with 4-bit latents"},
      {"pca" + rank + "+wf4", "PCA latents at 4 bits on average, by reverse water-filling"},
      {"lnns", "drops the direction (1, ..., 1) / sqrt(head_dim); keys after RoPE"},
      {"had+nuq4", "Hadamard rotation per KV head before the quantizer; values only"},
      {"had+int4", "the same before uniform 4 bit"},
  };
  std::vector<CodecRow> rows;
  for (const auto& [name, description] : codecs) {
    const Codec codec = parse_spec(name).key;
    const double key_bits = marginal_key_bits(codec, head_dim);
    const double value_bits = marginal_value_bits(codec, head_dim, num_kv_heads);
    rows.push_back({name, key_bits, value_bits, key_bits > 0 || value_bits > 0, description});
  }
  return rows;
}

}  // namespace kvquant
