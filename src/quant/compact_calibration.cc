#include "quant/compact_calibration.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/check.h"
#include "formats/codec_table.h"
#include "quant/codec_parameters.h"

namespace kvquant {
namespace {

constexpr float kMaxHalf = 65504;

Half clamped_half(float x) { return to_half(std::clamp(x, -kMaxHalf, kMaxHalf)); }

void round_all(std::vector<float>& values) {
  for (float& x : values) x = to_float(clamped_half(x));
}

bool is_one_of(std::string_view field, std::initializer_list<std::string_view> names) {
  return std::find(names.begin(), names.end(), field) != names.end();
}

// Of a codec of keys.
bool reads_calibration(const Codec& codec) {
  return has_latents(codec) ? needs_calibration(codec) : is_compressed(codec);
}

FieldForm key_form(const Codec& codec, std::string_view field) {
  if (field.starts_with("key.codebook") || field.starts_with("key.uniform_")) {
    return FieldForm::kWhole;
  }
  if (has_latents(codec)) {
    const bool is_read = is_one_of(field, {"key.rotated_mean", "key.basis", "key.spectrum"}) ||
                         (codec.quantizer == Quantizer::kWaterfill &&
                          is_one_of(field, {"key.gram", "query.rotated_second_moment"}));
    return is_read && needs_calibration(codec) ? FieldForm::kWhole : FieldForm::kAbsent;
  }
  if (!is_compressed(codec) || field.starts_with("query.")) return FieldForm::kAbsent;
  if (field == "key.order") return FieldForm::kWhole;
  if (field == "key.feedback") return FieldForm::kHalfTriangle;
  const std::string bits = std::to_string(nuq_bits(codec.quantizer));
  for (const char* name : {"key.scale", "key.zero", "key.low", "key.high"}) {
    if (field == name + bits) return FieldForm::kRows;
  }
  return FieldForm::kAbsent;
}

FieldForm value_form(const Codec& codec, std::string_view field) {
  if (field == "value.mean" || field.starts_with("value.codebook") ||
      field.starts_with("value.hadamard_codebook")) {
    return FieldForm::kWhole;
  }
  if (!needs_calibration(codec)) return FieldForm::kAbsent;
  if (field == "value.basis") return FieldForm::kHalf;
  if (field == "value.spectrum") return FieldForm::kWhole;
  if (field == "value.gram" && codec.quantizer == Quantizer::kWaterfill) return FieldForm::kWhole;
  const bool is_weighted = codec.transforms[0].kind == Transform::kPcaWeighted;
  if (is_weighted && is_one_of(field, {"value.gram", "value.weighted_encode",
                                       "value.weighted_decode", "value.weighted_spectrum"})) {
    return FieldForm::kWhole;
  }
  return FieldForm::kAbsent;
}

// The first `rank` components of every head of [H, stored rank, D].
void cut_components(std::vector<float>& basis, const CalibrationShape& shape, int64_t rank) {
  if (basis.empty()) return;
  const int64_t stored = static_cast<int64_t>(basis.size()) / shape.num_kv_heads;
  std::vector<float> out;
  for (int64_t head = 0; head < shape.num_kv_heads; ++head) {
    const auto first = basis.begin() + head * stored;
    out.insert(out.end(), first, first + rank * shape.head_dim);
  }
  basis = std::move(out);
}

// Zeroes the other outlier percents, which a file of this form gives back as zeros.
void keep_rows(std::vector<Half>& ranges, PercentRows rows) {
  const auto width = static_cast<int64_t>(ranges.size()) / kNumOutlierPercents;
  std::fill(ranges.begin(), ranges.begin() + rows.first * width, Half{});
  std::fill(ranges.begin() + (rows.first + rows.count) * width, ranges.end(), Half{});
}

int64_t rank_of(const CacheSpec& spec, int64_t num_layers) {
  int64_t rank = 0;
  for (int layer = 0; layer < num_layers; ++layer) {
    for (const Codec* codec : {&spec.key_of(layer), &spec.value_of(layer)}) {
      for (const TransformStep& step : codec->transforms) {
        rank = std::max<int64_t>(rank, step.rank);
      }
    }
  }
  return std::max<int64_t>(rank, 1);
}

template <class T>
void keep(std::vector<T>& array, FieldForm form) {
  if (form == FieldForm::kAbsent) array = {};
}

void keep_channels(ChannelStatistics& channels, FieldForm of_mean, FieldForm of_rest) {
  keep(channels.mean, of_mean);
  keep(channels.variance, of_rest);
  keep(channels.minimum, of_rest);
  keep(channels.maximum, of_rest);
  keep(channels.quantiles, of_rest);
}

void keep_keys(LayerCalibration& layer, const CacheSpec& spec, int index) {
  const auto form = [&](std::string_view field) { return field_form(spec, index, field); };
  KeyCalibration& key = layer.key;
  keep_channels(key.channels, form("key.mean"), form("key.variance"));
  for (size_t i = 0; i < kNumCodebooks; ++i) {
    const FieldForm of_ranges = form("key.scale" + std::to_string(2 + i));
    for (auto* ranges : {&key.scale[i], &key.zero[i], &key.low[i], &key.high[i]}) {
      keep(*ranges, of_ranges);
      if (of_ranges == FieldForm::kRows) keep_rows(*ranges, percent_rows(spec, index));
    }
  }
  keep(key.order, form("key.order"));
  keep(key.feedback, form("key.feedback"));
  keep(key.rotated_mean, form("key.rotated_mean"));
  keep(key.gram, form("key.gram"));
  keep(key.basis, form("key.basis"));
  keep(key.spectrum, form("key.spectrum"));
  keep(layer.query.second_moment, form("query.second_moment"));
  keep(layer.query.rotated_second_moment, form("query.rotated_second_moment"));
  keep(layer.query.gram, form("query.gram"));
}

void keep_values(LayerCalibration& layer, const CacheSpec& spec, int index) {
  const auto form = [&](std::string_view field) { return field_form(spec, index, field); };
  ValueCalibration& value = layer.value;
  keep_channels(value.channels, form("value.mean"), form("value.variance"));
  keep(value.gram, form("value.gram"));
  keep(value.output_gram, form("value.output_gram"));
  keep(value.basis, form("value.basis"));
  keep(value.spectrum, form("value.spectrum"));
  keep(value.weighted_encode, form("value.weighted_encode"));
  keep(value.weighted_decode, form("value.weighted_decode"));
  keep(value.weighted_spectrum, form("value.weighted_spectrum"));
}

}  // namespace

void round_calibration(Calibration& calibration) {
  for (LayerCalibration& layer : calibration.layers) {
    round_all(layer.key.feedback);
    round_all(layer.value.basis);
  }
}

Calibration compact_calibration(const Calibration& calibration, const CacheSpec& spec) {
  check_calibration_holds(calibration, spec);
  const CalibrationShape& shape = calibration.info.shape;
  check_spec_fits(spec, static_cast<int>(shape.num_layers), static_cast<int>(shape.head_dim));
  Calibration out = calibration;
  if (!out.info.holds.empty()) return out;
  out.info.holds = resolved(spec);
  const int64_t rank = rank_of(spec, shape.num_layers);
  check_arg(rank <= calibration.info.rank,
            fmt::format("calibration {} has bases of rank {} only, {} needs {}", calibration.path,
                        calibration.info.rank, spec.text, rank));
  out.info.rank = rank;
  round_calibration(out);
  for (size_t i = 0; i < out.layers.size(); ++i) {
    LayerCalibration& layer = out.layers[i];
    keep_keys(layer, spec, static_cast<int>(i));
    keep_values(layer, spec, static_cast<int>(i));
    for (auto* basis : {&layer.key.basis, &layer.value.basis, &layer.value.weighted_encode,
                        &layer.value.weighted_decode}) {
      cut_components(*basis, shape, rank);
    }
  }
  return out;
}

void check_calibration_holds(const Calibration& calibration, const CacheSpec& spec) {
  if (calibration.info.holds.empty()) return;
  const CacheSpec holds = parse_spec(calibration.info.holds);
  for (int layer = 0; layer < calibration.info.shape.num_layers; ++layer) {
    const Codec &key = spec.key_of(layer), &value = spec.value_of(layer);
    const bool has_key = !reads_calibration(key) || key == holds.key_of(layer);
    const bool has_value = !needs_calibration(value) || value == holds.value_of(layer);
    check_arg(has_key && has_value,
              fmt::format("calibration {} holds only what {} needs, not {}: use a whole one, as "
                          "kvquant calibrate makes them",
                          calibration.path, calibration.info.holds, spec.text));
  }
}

bool reads_calibration(const CacheSpec& spec, int64_t num_layers) {
  for (int layer = 0; layer < num_layers; ++layer) {
    const Codec &key = spec.key_of(layer), &value = spec.value_of(layer);
    if (reads_calibration(key) || needs_calibration(value)) return true;
    if (nuq_bits(value.quantizer) != 0 && !has_latents(value)) return true;
  }
  return false;
}

FieldForm field_form(const CacheSpec& holds, int layer, std::string_view field) {
  return field.starts_with("value.") ? value_form(holds.value_of(layer), field)
                                     : key_form(holds.key_of(layer), field);
}

PercentRows percent_rows(const CacheSpec& holds, int layer) {
  const OutlierPlace place = outlier_place(holds.key_of(layer).outlier_percent);
  return {static_cast<int64_t>(place.below), place.share == 0 ? 1 : 2};
}

std::vector<int64_t> stored_shape(FieldForm form, PercentRows rows,
                                  const std::vector<int64_t>& shape) {
  std::vector<int64_t> out = shape;
  if (form == FieldForm::kRows) out[0] = rows.count;
  if (form == FieldForm::kHalfTriangle) {
    const int64_t dim = out.back();
    out.pop_back();
    out.back() = dim * (dim - 1) / 2;
  }
  return out;
}

std::vector<Half> pack_halves(const std::vector<float>& values) {
  std::vector<Half> out;
  out.reserve(values.size());
  for (const float x : values) out.push_back(clamped_half(x));
  return out;
}

std::vector<float> unpack_halves(const std::vector<Half>& halves) {
  std::vector<float> out;
  out.reserve(halves.size());
  for (const Half x : halves) out.push_back(to_float(x));
  return out;
}

std::vector<Half> pack_triangles(const std::vector<float>& matrices, int64_t dim) {
  std::vector<Half> out;
  for (size_t i = 0; i < matrices.size(); ++i) {
    const auto row = static_cast<int64_t>(i) / dim % dim, column = static_cast<int64_t>(i) % dim;
    if (column < row) out.push_back(clamped_half(matrices[i]));
  }
  return out;
}

std::vector<float> unpack_triangles(const std::vector<Half>& packed, int64_t dim) {
  const auto per_matrix = static_cast<size_t>(dim * (dim - 1) / 2);
  const size_t count = per_matrix == 0 ? 0 : packed.size() / per_matrix;
  std::vector<float> out(count * static_cast<size_t>(dim * dim));
  size_t next = 0;
  for (size_t i = 0; i < out.size(); ++i) {
    const auto row = static_cast<int64_t>(i) / dim % dim, column = static_cast<int64_t>(i) % dim;
    if (column < row) out[i] = to_float(packed[next++]);
  }
  return out;
}

}  // namespace kvquant
