#include "model/activation_collector.h"

#include <algorithm>
#include <string>
#include <utility>

#include "base/check.h"

namespace kvquant {
namespace {

void append_rows(TensorView<const float, 3> x, std::vector<float>& out) {
  for (int64_t t = 0; t < x.shape[0]; ++t) {
    for (int64_t h = 0; h < x.shape[1]; ++h) {
      const auto row = x.row(t, h);
      out.insert(out.end(), row.begin(), row.end());
    }
  }
}

}  // namespace

ActivationCollector::ActivationCollector(Model& model, int64_t max_samples)
    : model_(model), max_samples_(max_samples) {
  check_arg(max_samples > 0,
            "ActivationCollector: max_samples " + std::to_string(max_samples) + " is not positive");
}

ActivationCollector::~ActivationCollector() { remove_hooks(); }

void ActivationCollector::install_hooks() {
  if (is_installed_) return;
  check_arg(!model_.transformer().is_observed(),
            "ActivationCollector: the model has hooks already: remove them first");
  model_.transformer().set_observer([this](const ObservedChunk& chunk) { observe(chunk); });
  is_installed_ = true;
}

void ActivationCollector::remove_hooks() {
  if (is_installed_) model_.transformer().set_observer({});
  is_installed_ = false;
}

void ActivationCollector::increment_sample_count() {
  for (auto& [sequence, sample] : open_) {
    if (num_samples() < max_samples_) samples_.push_back(std::move(sample));
  }
  open_.clear();
}

void ActivationCollector::observe(const ObservedChunk& chunk) {
  if (num_samples() >= max_samples_) return;
  Sample& sample = open_[chunk.sequence];
  const auto num_layers = static_cast<size_t>(model_.config().num_layers);
  sample.queries.resize(num_layers);
  sample.keys.resize(num_layers);
  sample.values.resize(num_layers);
  append_rows(chunk.queries, sample.queries[static_cast<size_t>(chunk.layer)]);
  append_rows(chunk.keys, sample.keys[static_cast<size_t>(chunk.layer)]);
  append_rows(chunk.values, sample.values[static_cast<size_t>(chunk.layer)]);
}

CollectedActivations ActivationCollector::get_keys(int64_t layer_idx) const {
  return gather(layer_idx, model_.config().num_kv_heads, &Sample::keys);
}

CollectedActivations ActivationCollector::get_queries(int64_t layer_idx) const {
  return gather(layer_idx, model_.config().num_q_heads, &Sample::queries);
}

CollectedActivations ActivationCollector::get_values(int64_t layer_idx) const {
  return gather(layer_idx, model_.config().num_kv_heads, &Sample::values);
}

CollectedActivations ActivationCollector::gather(
    int64_t layer, int64_t num_heads, std::vector<std::vector<float>> Sample::*side) const {
  const ModelConfig& config = model_.config();
  check_arg(0 <= layer && layer < config.num_layers, "ActivationCollector: layer " +
                                                         std::to_string(layer) + " of " +
                                                         std::to_string(config.num_layers));
  check_arg(!samples_.empty(),
            "ActivationCollector: no sample is complete: call increment_sample_count after each");
  const auto rows_of = [&](const Sample& sample) -> const std::vector<float>& {
    return (sample.*side)[static_cast<size_t>(layer)];
  };
  const int64_t width = num_heads * config.head_dim;
  const auto seq_len = static_cast<int64_t>(rows_of(samples_[0]).size()) / width;
  CollectedActivations out;
  const int64_t shape[] = {num_samples(), num_heads, seq_len, config.head_dim};
  std::copy(std::begin(shape), std::end(shape), out.shape);
  out.values.resize(static_cast<size_t>(num_samples() * seq_len * width));
  const auto to = row_major(out.values.data(), {shape[0], shape[1], shape[2], shape[3]});
  for (int64_t s = 0; s < num_samples(); ++s) {
    const auto& rows = rows_of(samples_[static_cast<size_t>(s)]);
    const auto length = static_cast<int64_t>(rows.size()) / width;
    check_arg(length == seq_len, "ActivationCollector: sample " + std::to_string(s) + " has " +
                                     std::to_string(length) + " tokens, the first has " +
                                     std::to_string(seq_len));
    const auto from = row_major(rows.data(), {seq_len, num_heads, config.head_dim});
    for (int64_t h = 0; h < num_heads; ++h) {
      for (int64_t t = 0; t < seq_len; ++t) {
        std::copy_n(&from(t, h, 0), config.head_dim, &to(s, h, t, 0));
      }
    }
  }
  return out;
}

}  // namespace kvquant
