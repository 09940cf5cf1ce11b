#include "quant/calibration.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <type_traits>

#include "base/check.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/quote.h"
#include "formats/json_fields.h"
#include "formats/nuq_codebook.h"
#include "formats/safetensors.h"
#include "kvquant/error.h"
#include "quant/compact_fields.h"

namespace kvquant {
namespace {

constexpr const char* kFormat = "kvquant-calibration";
constexpr int64_t kMaxLayers = 4096, kMaxHeads = 4096, kMaxHeadDim = 256;
constexpr int64_t kMaxSamples = 1 << 20;

using Shape = std::vector<int64_t>;

// Calls visit(name, shape, array) for every field of a layer. What the file holds is this list.
template <class Layer, class Visit>
void visit_fields(Layer& layer, const CalibrationInfo& info, const Visit& visit) {
  const int64_t h = info.shape.num_kv_heads, q = info.shape.num_q_heads, d = info.shape.head_dim;
  const int64_t r = info.rank, p = kNumOutlierPercents;
  const bool has_head_books = info.codebooks == CodebookScope::kHead;
  const auto visit_codebooks = [&](const std::string& name, auto& books) {
    for (int64_t i = 0; i < kNumCodebooks; ++i) {
      const int64_t num_levels = int64_t{4} << i;
      visit(name + std::to_string(2 + i),
            has_head_books ? Shape{p, h, num_levels} : Shape{p, num_levels},
            books[static_cast<size_t>(i)]);
    }
  };
  const auto visit_side = [&](const std::string& side, auto& fields) {
    visit(side + ".mean", Shape{h, d}, fields.channels.mean);
    visit(side + ".variance", Shape{h, d}, fields.channels.variance);
    visit(side + ".minimum", Shape{h, d}, fields.channels.minimum);
    visit(side + ".maximum", Shape{h, d}, fields.channels.maximum);
    visit(side + ".quantiles", Shape{kNumQuantiles, h, d}, fields.channels.quantiles);
    visit_codebooks(side + ".codebook", fields.codebooks);
    visit(side + ".gram", Shape{h, d, d}, fields.gram);
    visit(side + ".basis", Shape{h, r, d}, fields.basis);
    visit(side + ".spectrum", Shape{h, d}, fields.spectrum);
  };
  visit_side("key", layer.key);
  for (int64_t i = 0; i < kNumCodebooks; ++i) {
    const auto width = static_cast<size_t>(i);
    const std::string bits = std::to_string(2 + i);
    visit("key.scale" + bits, Shape{p, h, d}, layer.key.scale[width]);
    visit("key.zero" + bits, Shape{p, h, d}, layer.key.zero[width]);
    visit("key.low" + bits, Shape{p, h, d}, layer.key.low[width]);
    visit("key.high" + bits, Shape{p, h, d}, layer.key.high[width]);
  }
  visit("key.uniform_scale", Shape{2, h, d}, layer.key.uniform_scale);
  visit("key.uniform_zero", Shape{2, h, d}, layer.key.uniform_zero);
  visit("key.order", Shape{h, d}, layer.key.order);
  visit("key.feedback", Shape{h, d, d}, layer.key.feedback);
  visit("key.rotated_mean", Shape{h, d}, layer.key.rotated_mean);
  visit("query.second_moment", Shape{q, d}, layer.query.second_moment);
  visit("query.rotated_second_moment", Shape{q, d}, layer.query.rotated_second_moment);
  visit("query.gram", Shape{h, d, d}, layer.query.gram);
  visit_side("value", layer.value);
  visit_codebooks("value.hadamard_codebook", layer.value.hadamard_codebooks);
  visit("value.output_gram", Shape{h, d, d}, layer.value.output_gram);
  visit("value.weighted_encode", Shape{h, r, d}, layer.value.weighted_encode);
  visit("value.weighted_decode", Shape{h, r, d}, layer.value.weighted_decode);
  visit("value.weighted_spectrum", Shape{h, d}, layer.value.weighted_spectrum);
}

int64_t num_elements(const Shape& shape) {
  int64_t size = 1;
  for (const int64_t dim : shape) size *= dim;  // checked sizes only
  return size;
}

std::string tensor_name(size_t layer, const std::string& field) {
  return fmt::format("layers.{}.{}", layer, field);
}

// ---- writing

template <class T>
const char* dtype_of(const std::vector<T>&) {
  if (std::is_same_v<T, uint8_t>) return "U8";
  return std::is_same_v<T, Half> ? "F16" : "F32";
}

template <class T>
const char* stored_dtype(FieldForm form, const std::vector<T>& array) {
  const bool is_half = form == FieldForm::kHalf || form == FieldForm::kHalfTriangle;
  return is_half ? "F16" : dtype_of(array);
}

std::string percents_text() { return fmt::format("{}", fmt::join(kOutlierPercents, " ")); }
std::string quantiles_text() { return fmt::format("{}", fmt::join(kQuantiles, " ")); }

std::string texts_json(const std::vector<CalibrationText>& texts) {
  Json list = Json::array();
  for (const auto& text : texts) {
    list.push_back(
        {{"file", text.file}, {"begin", text.begin}, {"end", text.end}, {"hash", text.hash}});
  }
  return Json{{"samples", list}}.dump(-1, ' ', true, Json::error_handler_t::replace);
}

std::map<std::string, std::string> metadata_of(const CalibrationInfo& info) {
  int64_t version = info.codebooks == CodebookScope::kLayer ? 1 : 2;
  if (!info.holds.empty()) version = 3;
  std::map<std::string, std::string> fields = {
      {"format", kFormat},
      {"format_version", std::to_string(version)},
      {"kvquant_version", info.kvquant_version},
      {"model_fingerprint", info.model_fingerprint},
      {"num_layers", std::to_string(info.shape.num_layers)},
      {"num_q_heads", std::to_string(info.shape.num_q_heads)},
      {"num_kv_heads", std::to_string(info.shape.num_kv_heads)},
      {"head_dim", std::to_string(info.shape.head_dim)},
      {"num_samples", std::to_string(info.num_samples)},
      {"seq_len", std::to_string(info.seq_len)},
      {"seed", std::to_string(info.seed)},
      {"rank", std::to_string(info.rank)},
      {"recipe", info.recipe},
      {"outlier_percents", percents_text()},
      {"quantiles", quantiles_text()},
      {"texts", texts_json(info.texts)}};
  if (version > 1) fields.emplace("codebooks", to_string(info.codebooks));
  if (version > 2) fields.emplace("holds", info.holds);
  return fields;
}

// ---- reading

[[noreturn]] void fail(const std::string& path, const std::string& what) {
  throw FormatError(path + ": " + what);
}

class Metadata {
 public:
  Metadata(const std::map<std::string, std::string>& fields, const std::string& path)
      : fields_(fields), path_(path) {}

  const std::string& text(const std::string& key) const {
    const auto found = fields_.find(key);
    if (found == fields_.end()) fail(path_, "the metadata have no " + key);
    return found->second;
  }

  template <class T>
  T number(const std::string& key, T least, T most) const {
    const std::string& digits = text(key);
    T value{};
    const char* end = digits.data() + digits.size();
    const auto [stop, error] = std::from_chars(digits.data(), end, value);
    if (error != std::errc() || stop != end || value < least || value > most) {
      fail(path_,
           fmt::format("{} {} is not a number in [{}, {}]", key, quote(digits), least, most));
    }
    return value;
  }

  void require(const std::string& key, const std::string& expected) const {
    if (text(key) != expected) {
      fail(path_,
           fmt::format("{} is {}, this version reads {}", key, quote(text(key)), quote(expected)));
    }
  }

 private:
  const std::map<std::string, std::string>& fields_;
  const std::string& path_;
};

std::vector<CalibrationText> read_texts(const std::string& text, const std::string& path) {
  const Json json = parse_json_object(text, path + ": texts");
  const auto list = json.find("samples");
  if (list == json.end() || !list->is_array()) fail(path, "texts: samples is not a list");
  std::vector<CalibrationText> out;
  for (const auto& entry : *list) {
    if (!entry.is_object()) fail(path, "texts: a sample is not an object");
    const auto where = path + ": texts";
    CalibrationText sample{.file = json_text(entry, "file", where).value_or(""),
                           .begin = require_integer(entry, "begin", where),
                           .end = require_integer(entry, "end", where),
                           .hash = json_text(entry, "hash", where).value_or("")};
    if (sample.begin < 0 || sample.end < sample.begin) {
      fail(path, fmt::format("texts: a sample of tokens [{}, {})", sample.begin, sample.end));
    }
    out.push_back(std::move(sample));
  }
  return out;
}

CodebookScope read_codebook_scope(const Metadata& metadata, const std::string& path) {
  const auto version = metadata.number<int64_t>("format_version", 1, kCalibrationVersion);
  if (version == 1) return CodebookScope::kLayer;
  try {
    return parse_codebook_scope(metadata.text("codebooks"));
  } catch (const std::invalid_argument& error) {
    fail(path, error.what());
  }
}

// The spec that the file is compact for, where it is.
std::string read_holds(const Metadata& metadata, const CalibrationShape& shape,
                       const std::string& path) {
  if (metadata.number<int64_t>("format_version", 1, kCalibrationVersion) < 3) return "";
  const std::string& text = metadata.text("holds");
  try {
    const CacheSpec spec = parse_spec(text);
    check_spec_fits(spec, static_cast<int>(shape.num_layers), static_cast<int>(shape.head_dim));
    return resolved(spec);
  } catch (const std::invalid_argument& error) {
    fail(path, std::string("holds: ") + error.what());
  }
}

CalibrationInfo read_info(const Metadata& metadata, const std::string& path) {
  CalibrationInfo info;
  info.codebooks = read_codebook_scope(metadata, path);
  metadata.require("outlier_percents", percents_text());
  metadata.require("quantiles", quantiles_text());
  info.kvquant_version = metadata.text("kvquant_version");
  info.model_fingerprint = metadata.text("model_fingerprint");
  info.shape.num_layers = metadata.number<int64_t>("num_layers", 1, kMaxLayers);
  info.shape.num_q_heads = metadata.number<int64_t>("num_q_heads", 1, kMaxHeads);
  info.shape.num_kv_heads = metadata.number<int64_t>("num_kv_heads", 1, kMaxHeads);
  info.shape.head_dim = metadata.number<int64_t>("head_dim", 1, kMaxHeadDim);
  info.rank = metadata.number<int64_t>("rank", 1, info.shape.head_dim);
  info.num_samples = metadata.number<int64_t>("num_samples", 1, kMaxSamples);
  info.seq_len = metadata.number<int64_t>("seq_len", 1, int64_t{1} << 40);
  info.seed = metadata.number<uint64_t>("seed", 0, std::numeric_limits<uint64_t>::max());
  info.recipe = metadata.text("recipe");
  info.texts = read_texts(metadata.text("texts"), path);
  info.holds = read_holds(metadata, info.shape, path);
  return info;
}

template <class T>
void read_array(const SafetensorsTensor& tensor, std::vector<T>& out, const std::string& path) {
  out.resize(tensor.data.size() / sizeof(T));
  if (!out.empty()) std::memcpy(out.data(), tensor.data.data(), tensor.data.size());
  if constexpr (std::is_same_v<T, uint8_t>) return;
  for (size_t i = 0; i < out.size(); ++i) {
    const float value = to_float(out[i]);
    if (!std::isfinite(value)) {
      fail(path, fmt::format("tensor {}: element {} is {}", quote(tensor.name), i, value));
    }
  }
}

// read_array of what lies in a form of its own; `shape` is that in memory.
template <class T>
void read_field(const SafetensorsTensor& tensor, FieldForm form, PercentRows rows,
                const Shape& shape, std::vector<T>& out, const std::string& path) {
  if (form == FieldForm::kWhole) return read_array(tensor, out, path);
  if constexpr (std::is_same_v<T, Half>) {
    std::vector<Half> kept;
    read_array(tensor, kept, path);
    out.assign(static_cast<size_t>(num_elements(shape)), Half{});
    const auto width = num_elements(shape) / shape[0];
    std::copy(kept.begin(), kept.end(), out.begin() + rows.first * width);
  } else if constexpr (std::is_same_v<T, float>) {
    std::vector<Half> halves;
    read_array(tensor, halves, path);
    out = form == FieldForm::kHalfTriangle ? unpack_triangles(halves, shape.back())
                                           : unpack_halves(halves);
  }
}

// What users of the arrays rely on.
void check_layer(const LayerCalibration& layer, const CalibrationShape& shape, size_t index,
                 const std::string& path) {
  const auto fail_in = [&](const std::string& field, const std::string& what) {
    fail(path, "tensor " + quote(tensor_name(index, field)) + ": " + what);
  };
  const auto check_codebooks = [&](const auto& books, const std::string& name) {
    for (int64_t i = 0; i < kNumCodebooks; ++i) {
      const std::span<const float> all = books[static_cast<size_t>(i)];
      const size_t num_levels = size_t{4} << i;
      try {
        for (size_t p = 0; p < all.size(); p += num_levels)
          make_codebook(all.subspan(p, num_levels));
      } catch (const std::invalid_argument& error) {
        fail_in(fmt::format("{}{}", name, 2 + i), error.what());
      }
    }
  };
  check_codebooks(layer.key.codebooks, "key.codebook");
  check_codebooks(layer.value.codebooks, "value.codebook");
  check_codebooks(layer.value.hadamard_codebooks, "value.hadamard_codebook");
  constexpr float kMaxFeedback = 1e5f;  // more than any fit gives; sums of errors stay finite
  for (const float x : layer.key.feedback) {
    if (!(std::abs(x) <= kMaxFeedback)) fail_in("key.feedback", fmt::format("{} is too large", x));
  }
  const size_t num_heads = static_cast<size_t>(shape.num_kv_heads);
  const size_t head_dim = layer.key.order.size() / num_heads;
  for (size_t head = 0; head < num_heads; ++head) {
    std::vector<bool> seen(head_dim);
    for (size_t i = 0; i < head_dim; ++i) {
      const size_t channel = layer.key.order[head * head_dim + i];
      if (channel >= head_dim || seen[channel]) {
        fail_in("key.order", fmt::format("head {} is no permutation of its channels", head));
      }
      seen[channel] = true;
    }
  }
  const auto check_scales = [&](std::span<const Half> scales, const std::string& name) {
    for (const Half scale : scales) {
      if (to_float(scale) < 0) fail_in(name, "a scale is negative");
    }
  };
  check_scales(layer.key.uniform_scale, "key.uniform_scale");
  for (size_t i = 0; i < kNumCodebooks; ++i) {
    check_scales(layer.key.scale[i], fmt::format("key.scale{}", 2 + i));
    for (size_t c = 0; c < layer.key.low[i].size(); ++c) {
      if (to_float(layer.key.low[i][c]) <= to_float(layer.key.high[i][c])) continue;
      fail_in(fmt::format("key.low{}", 2 + i), fmt::format("element {} is larger than high", c));
    }
  }
}

}  // namespace

std::string_view to_string(CodebookScope scope) {
  return scope == CodebookScope::kLayer ? "layer" : "head";
}

CodebookScope parse_codebook_scope(std::string_view name) {
  for (const CodebookScope scope : {CodebookScope::kLayer, CodebookScope::kHead}) {
    if (to_string(scope) == name) return scope;
  }
  throw std::invalid_argument(
      fmt::format("codebooks {}: expected layer or head", quote(std::string(name))));
}

void save_calibration(const Calibration& calibration, const std::string& path) {
  const auto& info = calibration.info;
  check_arg(static_cast<int64_t>(calibration.layers.size()) == info.shape.num_layers,
            fmt::format("calibration: {} layers, the shape says {}", calibration.layers.size(),
                        info.shape.num_layers));
  std::vector<SafetensorsEntry> entries;
  std::vector<std::span<const std::byte>> arrays;
  std::deque<std::vector<Half>> packed;  // what lies otherwise in a compact file
  const FieldForms forms(info);
  for (size_t i = 0; i < calibration.layers.size(); ++i) {
    const PercentRows rows = forms.rows(i);
    visit_fields(calibration.layers[i], info,
                 [&](const std::string& field, const Shape& shape, const auto& array) {
                   const FieldForm form = forms.of(i, field);
                   const int64_t size = form == FieldForm::kAbsent ? 0 : num_elements(shape);
                   check_arg(static_cast<int64_t>(array.size()) == size,
                             fmt::format("calibration: {} has {} elements, not {}",
                                         tensor_name(i, field), array.size(), size));
                   if (form == FieldForm::kAbsent) return;
                   entries.push_back({tensor_name(i, field), stored_dtype(form, array),
                                      stored_shape(form, rows, shape)});
                   arrays.push_back(stored_bytes(form, rows, shape, array, packed));
                 });
  }
  write_safetensors(path, entries, metadata_of(info),
                    [&](size_t i, const ByteSink& sink) { sink(arrays[i]); });
}

Calibration parse_calibration(std::span<const std::byte> bytes, const std::string& path) {
  const Safetensors file = parse_safetensors(bytes, path);
  const auto format = file.metadata.find("format");
  if (format == file.metadata.end() || format->second != kFormat) {
    fail(path, "not a calibration file: its metadata don't say so");
  }
  Calibration out;
  out.path = path;
  out.info = read_info({file.metadata, path}, path);
  size_t num_read = 0;
  const FieldForms forms(out.info);
  for (int64_t i = 0; i < out.info.shape.num_layers; ++i) {
    LayerCalibration layer;
    const auto index = static_cast<size_t>(i);
    visit_fields(layer, out.info, [&](const std::string& field, const Shape& shape, auto& array) {
      const FieldForm form = forms.of(index, field);
      if (form == FieldForm::kAbsent) return;
      const std::string name = tensor_name(index, field);
      const SafetensorsTensor* tensor = file.find(name);
      if (tensor == nullptr) fail(path, "tensor " + quote(name) + " is missing");
      const Shape stored = stored_shape(form, forms.rows(index), shape);
      const char* const dtype = stored_dtype(form, array);
      if (tensor->dtype != dtype || tensor->shape != stored) {
        fail(path, fmt::format("tensor {}: {} [{}], expected {} [{}]", quote(name), tensor->dtype,
                               fmt::join(tensor->shape, ", "), dtype, fmt::join(stored, ", ")));
      }
      read_field(*tensor, form, forms.rows(index), shape, array, path);
      ++num_read;
    });
    check_layer(layer, out.info.shape, index, path);
    out.layers.push_back(std::move(layer));
  }
  if (num_read != file.tensors.size()) {
    fail(path, fmt::format("{} tensors, {} are known", file.tensors.size(), num_read));
  }
  return out;
}

Calibration load_calibration(const std::string& path) {
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (status.type() == std::filesystem::file_type::not_found) {
    throw IoError("Calibration file not found: " + path +
                  ": give the full path, in a preset as its calibration_file (kvquant calibrate "
                  "makes such files)");
  }
  const MappedFile file(path);
  return parse_calibration(file.bytes(), path);
}

void check_calibration_fits(const Calibration& calibration, const std::string& fingerprint,
                            const CalibrationShape& shape) {
  const auto& info = calibration.info;
  const auto describe = [](const std::string& of, const CalibrationShape& s) {
    return fmt::format("fingerprint {}, {} layers, {} query and {} KV heads of {}", quote(of),
                       s.num_layers, s.num_q_heads, s.num_kv_heads, s.head_dim);
  };
  if (info.model_fingerprint == fingerprint && info.shape == shape) return;
  throw std::invalid_argument(
      fmt::format("calibration {} was made for another model ({}), this one has {}: calibrate this "
                  "model",
                  calibration.path, describe(info.model_fingerprint, info.shape),
                  describe(fingerprint, shape)));
}

int64_t memory_bytes(const Calibration& calibration) {
  int64_t total = 0;
  for (const auto& layer : calibration.layers) {
    visit_fields(layer, calibration.info, [&](const std::string&, const Shape&, const auto& array) {
      total += static_cast<int64_t>(std::span(array).size_bytes());
    });
  }
  return total;
}

std::string calibration_hash(const Calibration& calibration) {
  Hash64 hash;
  for (const auto& layer : calibration.layers) {
    visit_fields(layer, calibration.info,
                 [&](const std::string& name, const Shape&, const auto& array) {
                   hash.add_text(name);
                   hash.add_bytes(std::as_bytes(std::span(array)));
                 });
  }
  return hash.hex();
}

}  // namespace kvquant
