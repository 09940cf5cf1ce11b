#include "cache/side_parameters.h"

#include <fmt/format.h>

#include <algorithm>

#include "formats/codec_table.h"
#include "kvquant/codebook.h"
#include "quant/codec_parameters.h"

namespace kvquant {
namespace {

NuqCodebook choose_codebook(KvSide side, const Codec& codec, const LayerCalibration* calibration) {
  const int bits = code_bits(codec.quantizer);
  if (nuq_bits(codec.quantizer) == 0) return make_uniform_codebook(bits);
  if (calibration == nullptr) return make_codebook(get_cached_codebook(fmt::format("nuq{}", bits)));
  const auto& value_books = codec.transforms.empty() ? calibration->value.codebooks
                                                     : calibration->value.hadamard_codebooks;
  const auto& books = side == KvSide::kKey ? calibration->key.codebooks : value_books;
  return make_codebook(
      calibrated_levels(books[static_cast<size_t>(bits - 2)], bits, codec.outlier_percent));
}

}  // namespace

SideParameters::SideParameters(KvSide side, const Codec& codec, const LayerCalibration* calibration)
    : codebook(choose_codebook(side, codec, calibration)) {
  if (calibration == nullptr || side == KvSide::kValue) return;
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
  const int64_t num_stored = codebook.bits == 8 ? 0 : codebook.num_levels;  // 256 by formula
  return num_stored * static_cast<int64_t>(sizeof(float)) +
         static_cast<int64_t>(ranges.size() * sizeof(Half));
}

}  // namespace kvquant
