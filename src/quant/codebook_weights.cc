#include "quant/codebook_weights.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cassert>
#include <cmath>
#include <cstring>

#include "base/check.h"
#include "kvquant/error.h"

namespace kvquant {
namespace {

struct NamedWeighting {
  CodebookWeighting weighting;
  std::string_view name;
};
constexpr std::array<NamedWeighting, 4> kWeightings = {{{CodebookWeighting::kNone, "none"},
                                                        {CodebookWeighting::kScale, "scale"},
                                                        {CodebookWeighting::kQuery, "query"},
                                                        {CodebookWeighting::kFisher, "fisher"}}};

bool is_weight(double x) { return std::isfinite(x) && x >= 0; }

// scale^2 * factor as a weight.
float weight_of(float scale, double factor, size_t i) {
  const auto weight = static_cast<float>(double{scale} * double{scale} * factor);
  if (!is_weight(scale) || !is_weight(factor) || !is_weight(weight)) {
    throw std::invalid_argument(
        fmt::format("codebook weight {}: scale {} and factor {} must be finite and not negative, "
                    "their weight {} too",
                    i, scale, factor, weight));
  }
  return weight;
}

}  // namespace

std::string_view to_string(CodebookWeighting weighting) {
  for (const NamedWeighting& entry : kWeightings) {
    if (entry.weighting == weighting) return entry.name;
  }
  assert(false);
  return "";
}

CodebookWeighting parse_codebook_weighting(std::string_view name) {
  for (const NamedWeighting& entry : kWeightings) {
    if (entry.name == name) return entry.weighting;
  }
  throw std::invalid_argument(
      fmt::format("codebook weighting '{}': expected none, scale, query or fisher", name));
}

std::vector<float> scale_weights(std::span<const float> scales) {
  std::vector<float> weights;
  for (size_t i = 0; i < scales.size(); ++i) weights.push_back(weight_of(scales[i], 1, i));
  return weights;
}

std::vector<float> query_weights(std::span<const float> scales, const QueryMoments& queries) {
  const auto [mean_squares, num_q_heads, num_kv_heads, head_dim] = queries;
  check_arg(num_kv_heads > 0 && num_q_heads % num_kv_heads == 0 && head_dim % 2 == 0 &&
                scales.size() == static_cast<size_t>(num_kv_heads * head_dim) &&
                mean_squares.size() == static_cast<size_t>(num_q_heads * head_dim),
            fmt::format("query weights: {} scales and {} moments for {} query heads, {} KV heads, "
                        "head_dim {}",
                        scales.size(), mean_squares.size(), num_q_heads, num_kv_heads, head_dim));
  const int64_t group = num_q_heads / num_kv_heads, half = head_dim / 2;
  std::vector<float> weights;
  for (int64_t i = 0; i < num_kv_heads * head_dim; ++i) {
    const int64_t head = i / head_dim, channel = i % head_dim;
    const int64_t other = channel < half ? channel + half : channel - half;
    double sum = 0;
    for (int64_t q = head * group; q < (head + 1) * group; ++q) {
      const double own_square = mean_squares[q * head_dim + channel];
      const double other_square = mean_squares[q * head_dim + other];
      check_arg(is_weight(own_square) && is_weight(other_square),
                fmt::format("query weights: a moment of query head {}, channel {} or {} is "
                            "negative or not finite",
                            q, channel, other));
      sum += own_square + other_square;
    }
    weights.push_back(weight_of(scales[i], 0.5 * sum, i));
  }
  return weights;
}

std::vector<float> channel_means(const FisherInformation& fisher) {
  const int64_t rows = std::max<int64_t>(fisher.num_tokens, 1);
  std::vector<double> sums(static_cast<size_t>(fisher.num_channels));
  for (size_t i = 0; i < fisher.values.size(); ++i) sums[i % sums.size()] += fisher.values[i];
  std::vector<float> means;
  for (const double sum : sums)
    means.push_back(static_cast<float>(sum / static_cast<double>(rows)));
  return means;
}

std::vector<float> fisher_weights(std::span<const float> scales, const FisherInformation& fisher) {
  const int64_t rows = std::max<int64_t>(fisher.num_tokens, 1);
  check_arg(scales.size() == static_cast<size_t>(fisher.num_channels) &&
                fisher.values.size() == static_cast<size_t>(rows * fisher.num_channels),
            fmt::format("fisher weights: {} scales and {} numbers for {} rows of {} channels",
                        scales.size(), fisher.values.size(), rows, fisher.num_channels));
  std::vector<float> weights;
  weights.reserve(fisher.values.size());
  for (size_t i = 0; i < fisher.values.size(); ++i) {
    weights.push_back(weight_of(scales[i % scales.size()], fisher.values[i], i));
  }
  return weights;
}

FisherFile::FisherFile(const std::string& path)
    : file_(path), tensors_(parse_safetensors(file_.bytes(), path)) {}

FisherInformation FisherFile::read(KvSide side, int layer, int64_t num_channels) const {
  const std::string name =
      fmt::format("fisher.{}.{}", side == KvSide::kKey ? "key" : "value", layer);
  const auto require = [&](bool ok, const std::string& rule) {
    if (!ok) throw FormatError(fmt::format("{}: tensor {}: {}", file_.path(), name, rule));
  };
  const SafetensorsTensor* tensor = tensors_.find(name);
  require(tensor != nullptr, "is missing");
  require(tensor->dtype == "F32", "is " + tensor->dtype + ", not F32");
  const std::vector<int64_t>& shape = tensor->shape;
  require((shape.size() == 1 || (shape.size() == 2 && shape[0] > 0)) &&
              shape.back() == num_channels && num_channels > 0,
          fmt::format("shape [{}] is not [{}] or [tokens, {}]", fmt::join(shape, ", "),
                      num_channels, num_channels));
  FisherInformation out{.num_tokens = shape.size() == 2 ? shape[0] : 0,
                        .num_channels = num_channels,
                        .values = std::vector<float>(tensor->data.size() / sizeof(float))};
  std::memcpy(out.values.data(), tensor->data.data(), tensor->data.size());
  bool has_weight = false;
  for (size_t i = 0; i < out.values.size(); ++i) {
    const float x = out.values[i];
    if (!is_weight(x)) require(false, fmt::format("number {} is {}", i, x));
    has_weight = has_weight || x > 0;
  }
  require(has_weight, "all numbers are 0");
  return out;
}

}  // namespace kvquant
