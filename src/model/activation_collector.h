// ActivationCollector: queries, keys and values of a model's layers, gathered during ordinary
// forward calls.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "kvquant/tensor_view.h"
#include "model/model.h"

namespace kvquant {

// [num_samples, heads, seq_len, head_dim]
struct CollectedActivations {
  int64_t shape[4] = {};
  std::vector<float> values;

  TensorView<const float, 4> view() const {
    return row_major<const float, 4>(values.data(), {shape[0], shape[1], shape[2], shape[3]});
  }
};

// Between two calls of increment_sample_count, the tokens of one sequence are one sample (a batch
// is as many samples as sequences), in the order in which they went through the model. Collects
// nothing more once max_samples are complete.
class ActivationCollector {
 public:
  // Throws std::invalid_argument when max_samples is not positive. `model` must outlive this.
  ActivationCollector(Model& model, int64_t max_samples);
  ~ActivationCollector();  // removes the hooks
  ActivationCollector(const ActivationCollector&) = delete;
  ActivationCollector& operator=(const ActivationCollector&) = delete;

  // Throws std::invalid_argument when something else observes the model already.
  void install_hooks();
  void remove_hooks();
  // Ends the samples that have begun.
  void increment_sample_count();

  int64_t num_samples() const { return static_cast<int64_t>(samples_.size()); }  // complete ones

  // Of the complete samples, float32, keys before RoPE. Throws std::invalid_argument when there is
  // no such layer or no sample, or when the samples' lengths differ.
  CollectedActivations get_keys(int64_t layer_idx) const;
  CollectedActivations get_queries(int64_t layer_idx) const;  // of num_q_heads, before RoPE
  CollectedActivations get_values(int64_t layer_idx) const;

 private:
  // One sample: per layer, rows [tokens, heads, head_dim].
  struct Sample {
    std::vector<std::vector<float>> queries, keys, values;
  };
  void observe(const ObservedChunk& chunk);
  CollectedActivations gather(int64_t layer, int64_t num_heads,
                              std::vector<std::vector<float>> Sample::*side) const;

  Model& model_;
  int64_t max_samples_;
  bool is_installed_ = false;
  std::map<KvCache::SequenceId, Sample> open_;
  std::vector<Sample> samples_;
};

}  // namespace kvquant
