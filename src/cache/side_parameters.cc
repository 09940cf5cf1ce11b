#include "cache/side_parameters.h"

#include <fmt/format.h>

#include <algorithm>

#include "formats/codec_table.h"
#include "kvquant/codebook.h"
#include "quant/codec_parameters.h"
#include "quant/key_basis.h"

namespace kvquant {
namespace {

std::vector<NuqCodebook> choose_codebooks(KvSide side, const Codec& codec,
                                          const LayerCalibration* calibration) {
  const int bits = code_bits(codec.quantizer);
  if (bits == 0) return {};  // latents of fp16
  if (nuq_bits(codec.quantizer) == 0) return {make_uniform_codebook(bits)};
  if (calibration == nullptr || has_latents(codec)) {
    return {make_codebook(get_cached_codebook(fmt::format("nuq{}", bits)))};
  }
  const auto& value_books = codec.transforms.empty() ? calibration->value.codebooks
                                                     : calibration->value.hadamard_codebooks;
  const auto& books = side == KvSide::kKey ? calibration->key.codebooks : value_books;
  const std::vector<float> levels =
      calibrated_levels(books[static_cast<size_t>(bits - 2)], codec.outlier_percent);
  std::vector<NuqCodebook> out;
  for (size_t first = 0; first < levels.size(); first += size_t{1} << bits) {
    out.push_back(make_codebook(std::span(levels).subspan(first, size_t{1} << bits)));
  }
  return out;
}

std::vector<LatentMap> maps_of(const ValueBasis& basis, const BasisShape& shape) {
  const int64_t dim = shape.head_dim;
  std::vector<LatentMap> maps;
  for (int64_t head = 0; head < shape.num_kv_heads && basis.rank > 0; ++head) {
    maps.push_back({.rank = basis.rank,
                    .width = latent_width(basis.rank),
                    .head_dim = dim,
                    .mean = basis.mean.data() + head * dim,
                    .encode = basis.encoder().data() + head * basis.rank * dim,
                    .decode = basis.decode.data() + head * basis.rank * dim});
  }
  return maps;
}

}  // namespace

SideParameters::SideParameters(KvSide side, const Codec& codec, const BasisShape& shape,
                               const LayerCalibration* calibration)
    : codebooks(choose_codebooks(side, codec, calibration)) {
  if (has_latents(codec)) {
    basis = side == KvSide::kKey ? make_key_basis(codec, shape, calibration)
                                 : make_value_basis(codec, shape, calibration);
    latents = maps_of(basis, shape);
  }
  if (calibration == nullptr || side == KvSide::kValue || has_latents(codec)) return;
  const KeyCalibration& key = calibration->key;
  const int bits = code_bits(codec.quantizer);
  const bool is_nuq = nuq_bits(codec.quantizer) != 0;
  ranges =
      is_nuq ? nuq_key_ranges(key, bits, codec.outlier_percent) : uniform_key_ranges(key, bits);
  if (codec.outlier_percent == 0) ranges.resize(ranges.size() / 2);
  ranges.shrink_to_fit();
  const bool has_feedback =
      std::any_of(key.feedback.begin(), key.feedback.end(), [](float x) { return x != 0; });
  if (!has_feedback) return;
  const size_t width = key.order.size(), head_dim = key.feedback.size() / width;
  for (size_t first = 0; first < width; first += head_dim) {
    feedback.push_back({key.order.data() + first, key.feedback.data() + first * head_dim});
  }
}

int64_t SideParameters::memory_bytes() const {
  int64_t num_levels = 0;
  for (const NuqCodebook& book : codebooks) {
    if (book.bits != 8) num_levels += book.num_levels;  // those of 8 bits come by formula
  }
  return num_levels * static_cast<int64_t>(sizeof(float)) +
         static_cast<int64_t>((basis.mean.size() + basis.decode.size()) * sizeof(float)) +
         static_cast<int64_t>(ranges.size() * sizeof(Half));
}

}  // namespace kvquant
