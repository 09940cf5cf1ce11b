#include "eval/sensitivity.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "base/check.h"
#include "base/hash.h"
#include "kvquant/error.h"
#include "model/calibration_source.h"
#include "ops/log_softmax.h"

namespace kvquant {
namespace {

constexpr int64_t kLogitRows = 32;  // rows of logits held at once per candidate

// A calibration for a cache of one layer.
std::shared_ptr<const Calibration> of_layer(const Calibration* calibration, int64_t layer) {
  if (calibration == nullptr) return nullptr;
  auto out = std::make_shared<Calibration>();
  out->info = calibration->info;
  out->info.shape.num_layers = 1;
  out->path = calibration->path;
  out->layers = {calibration->layers[static_cast<size_t>(layer)]};
  return out;
}

// The spec of a cache of one layer.
CacheSpec one_side(const SensitivityOptions& options, KvSide side, const Codec& codec) {
  CacheSpec spec;  // fp16
  spec.sink = options.windows.sink;
  spec.recent = options.windows.recent;
  spec.block = options.windows.block;
  (side == KvSide::kKey ? spec.key : spec.value) = codec;
  spec.text = resolved(spec);
  return spec;
}

void check_input(const Model& model, std::span<const std::vector<int32_t>> samples,
                 const SensitivityOptions& options) {
  const ModelConfig& config = model.config();
  check_arg(!samples.empty(), "sensitivity: there is no sample");
  const auto length = static_cast<int64_t>(samples[0].size());
  check_arg(length >= 2 && length <= config.max_context,
            fmt::format("sensitivity: samples of {} tokens, not in [2, {}], the model's context",
                        length, config.max_context));
  for (const auto& sample : samples) {
    check_arg(std::ssize(sample) == length,
              fmt::format("sensitivity: samples of {} and {} tokens", length, sample.size()));
  }
  check_arg(!options.keys.empty() && !options.values.empty(),
            "sensitivity: there is no candidate for keys or none for values");
  check_arg(options.ubatch > 0, "sensitivity: ubatch must be positive");
  for (const KvSide side : {KvSide::kKey, KvSide::kValue}) {
    for (const Codec& codec : side == KvSide::kKey ? options.keys : options.values) {
      const CacheSpec spec = one_side(options, side, codec);
      check_spec_fits(spec, static_cast<int>(config.num_layers), static_cast<int>(config.head_dim));
      check_spec_built(spec);
    }
  }
}

class Measurement {
 public:
  Measurement(Model& model, std::span<const std::vector<int32_t>> samples,
              const SensitivityOptions& options, const Progress& progress)
      : model_(model),
        transformer_(model.transformer()),
        config_(model.config()),
        samples_(samples),
        options_(options),
        progress_(progress),
        seq_len_(std::ssize(samples[0])),
        sample_size_(seq_len_ * config_.hidden),
        inputs_(std::ssize(samples) * sample_size_),
        fp16_(one_layer_cache(one_side(options, KvSide::kKey, Codec()), 0)) {
    const int64_t heads = config_.num_q_heads * config_.head_dim;
    layer_work_ = config_.hidden * (2 * heads + 2 * config_.kv_dim() + 3 * config_.ffn);
    head_work_ = 2 * config_.hidden * config_.vocab_size;  // what follows the product counts, too
  }

  SensitivityTable run(const std::vector<Sensitivity>& known, const SensitivityObserver& observer) {
    SensitivityTable table;
    table.num_layers = config_.num_layers;
    table.num_values = 2 * config_.num_layers * config_.kv_dim() * seq_len_;
    table.tokens = std::ssize(samples_) * (seq_len_ - 1);
    table.rows = known;
    plan(table);
    if (num_todo_ == 0) return table;
    run_baseline();
    for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
      const auto todo = missing(table, layer);
      if (!todo.empty()) {
        measure_layer(layer, todo, table);
        if (observer) observer(table);
      }
      for (int64_t s = 0; s < std::ssize(samples_); ++s) {
        run_fp16_layer(layer, s, inputs_.data() + s * sample_size_);
      }
    }
    return table;
  }

 private:
  struct Candidate {
    KvSide side;
    Codec codec;
  };

  std::vector<Candidate> missing(const SensitivityTable& table, int64_t layer) const {
    std::vector<Candidate> out;
    for (const KvSide side : {KvSide::kKey, KvSide::kValue}) {
      for (const Codec& codec : side == KvSide::kKey ? options_.keys : options_.values) {
        if (table.find(layer, side, codec) == nullptr) out.push_back({side, codec});
      }
    }
    return out;
  }

  void plan(const SensitivityTable& table) {
    const auto num_samples = std::ssize(samples_);
    total_work_ = 2 * num_samples * config_.num_layers * layer_work_;
    for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
      const auto count = std::ssize(missing(table, layer));
      num_todo_ += count;
      if (count == 0) continue;
      total_work_ += num_samples * count * (config_.num_layers - layer) * layer_work_ +
                     num_samples * (count + 1) * head_work_;
    }
  }

  void work_done(int64_t work) { report(progress_, done_work_ += work, total_work_); }

  KvCache one_layer_cache(const CacheSpec& spec, int64_t layer) {
    KvShape shape = transformer_.kv_shape();
    shape.num_layers = 1;
    return {shape,         spec,
            options_.mode, transformer_.rope_table(),
            model_.pool(), of_layer(model_.calibration().get(), layer)};
  }

  // One sample through one layer; residual [seq_len, hidden] in place. Returns the cache's bytes.
  int64_t run_layer(int64_t layer, int64_t sample, KvCache& cache, float* residual) {
    const auto sequence = cache.add_sequence();
    const std::span tokens(samples_[static_cast<size_t>(sample)]);
    for (int64_t begin = 0; begin < seq_len_; begin += options_.ubatch) {
      const int64_t size = std::min(options_.ubatch, seq_len_ - begin);
      const ForwardChunk chunk{
          sequence, tokens.subspan(static_cast<size_t>(begin), static_cast<size_t>(size))};
      try {
        transformer_.run_layer(
            layer, chunk, cache, 0,
            row_major(residual + begin * config_.hidden, {size, config_.hidden}));
      } catch (const FormatError& error) {  // of a cache that knows one layer only
        throw FormatError(fmt::format("layer {}, run alone: {}", layer, error.what()));
      }
    }
    const int64_t bytes = cache.memory_bytes();
    cache.drop(sequence);
    work_done(layer_work_);
    return bytes;
  }

  int64_t run_fp16_layer(int64_t layer, int64_t sample, float* residual) {
    return run_layer(layer, sample, fp16_, residual);
  }

  // Fills inputs_ with embeddings, baseline_ with what comes out of the last norm.
  void run_baseline() {
    for (int64_t s = 0; s < std::ssize(samples_); ++s) {
      const auto input = row_major(inputs_.data() + s * sample_size_, {seq_len_, config_.hidden});
      transformer_.embed(samples_[static_cast<size_t>(s)], input);
      Buffer<float> residual(sample_size_);
      std::copy_n(input.data, sample_size_, residual.data());
      for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
        fp16_bytes_ = std::max(fp16_bytes_, run_fp16_layer(layer, s, residual.data()));
      }
      baseline_.push_back(finish(residual));
    }
  }

  Buffer<float> finish(const Buffer<float>& residual) {
    Buffer<float> out(sample_size_);
    transformer_.final_norm(row_major<const float, 2>(residual.data(), {seq_len_, config_.hidden}),
                            row_major(out.data(), {seq_len_, config_.hidden}));
    return out;
  }

  void measure_layer(int64_t layer, const std::vector<Candidate>& candidates,
                     SensitivityTable& table) {
    std::vector<double> kl(candidates.size(), 0);
    std::vector<int64_t> bytes(candidates.size(), 0);
    for (int64_t s = 0; s < std::ssize(samples_); ++s) {
      std::vector<Buffer<float>> hidden;  // of each candidate, [seq_len, hidden]
      for (size_t c = 0; c < candidates.size(); ++c) {
        Buffer<float> residual(sample_size_);
        std::copy_n(inputs_.data() + s * sample_size_, sample_size_, residual.data());
        KvCache cache =
            one_layer_cache(one_side(options_, candidates[c].side, candidates[c].codec), layer);
        bytes[c] = std::max(bytes[c], run_layer(layer, s, cache, residual.data()));
        for (int64_t after = layer + 1; after < config_.num_layers; ++after) {
          run_fp16_layer(after, s, residual.data());
        }
        hidden.push_back(finish(residual));
      }
      add_divergences(baseline_[static_cast<size_t>(s)], hidden, kl);
    }
    for (size_t c = 0; c < candidates.size(); ++c) {
      // The other side is as in an fp16 cache, whose sides are equally large.
      table.rows.push_back({.layer = layer,
                            .side = candidates[c].side,
                            .codec = candidates[c].codec,
                            .kl_mean = kl[c] / static_cast<double>(table.tokens),
                            .bytes = bytes[c] - fp16_bytes_ / 2});
    }
  }

  // Adds the sum over all tokens but the last, which has no successor in the text.
  void add_divergences(const Buffer<float>& baseline, const std::vector<Buffer<float>>& hidden,
                       std::vector<double>& kl) {
    const int64_t vocab = config_.vocab_size;
    base_logits_.reserve_discarding(kLogitRows * vocab);
    logits_.reserve_discarding(kLogitRows * vocab);
    std::vector<double> base_sums(kLogitRows), row_kl(kLogitRows);
    for (int64_t first = 0; first < seq_len_ - 1; first += kLogitRows) {
      const int64_t count = std::min(kLogitRows, seq_len_ - 1 - first);
      compute_logits(baseline, first, count, base_logits_);
      model_.pool().parallel_for(count, [&](int64_t i, int) {
        base_sums[static_cast<size_t>(i)] = log_sum_exp(row(base_logits_, i));
      });
      for (size_t c = 0; c < hidden.size(); ++c) {
        compute_logits(hidden[c], first, count, logits_);
        model_.pool().parallel_for(count, [&](int64_t i, int) {
          const auto at = static_cast<size_t>(i);
          const auto changed = row(logits_, i);
          row_kl[at] =
              kl_divergence(row(base_logits_, i), base_sums[at], changed, log_sum_exp(changed));
        });
        for (int64_t i = 0; i < count; ++i) kl[c] += row_kl[static_cast<size_t>(i)];
      }
      work_done((std::ssize(hidden) + 1) * head_work_ * count / (seq_len_ - 1));
    }
  }

  std::span<const float> row(const Buffer<float>& logits, int64_t i) const {
    return {logits.data() + i * config_.vocab_size, static_cast<size_t>(config_.vocab_size)};
  }

  void compute_logits(const Buffer<float>& hidden, int64_t first, int64_t count,
                      Buffer<float>& out) {
    transformer_.logits(
        row_major<const float, 2>(hidden.data() + first * config_.hidden, {count, config_.hidden}),
        row_major(out.data(), {count, config_.vocab_size}));
  }

  Model& model_;
  Transformer& transformer_;
  const ModelConfig& config_;
  std::span<const std::vector<int32_t>> samples_;
  const SensitivityOptions& options_;
  const Progress& progress_;
  int64_t seq_len_;
  int64_t sample_size_;   // seq_len * hidden
  Buffer<float> inputs_;  // [num_samples, seq_len, hidden], of the layer that is measured
  std::vector<Buffer<float>> baseline_;  // of each sample, [seq_len, hidden], after the last norm
  Buffer<float> base_logits_, logits_;   // [kLogitRows, vocab_size]
  KvCache fp16_;                         // of one layer
  int64_t fp16_bytes_ = 0;               // of both its sides at a full window
  int64_t layer_work_ = 0, head_work_ = 0;  // multiply-adds of a token
  int64_t done_work_ = 0, total_work_ = 0, num_todo_ = 0;
};

}  // namespace

const Sensitivity* SensitivityTable::find(int64_t layer, KvSide side, const Codec& codec) const {
  const auto found = std::find_if(rows.begin(), rows.end(), [&](const Sensitivity& row) {
    return row.layer == layer && row.side == side && row.codec == codec;
  });
  return found == rows.end() ? nullptr : &*found;
}

SensitivityTable measure_sensitivity(Model& model, std::span<const std::vector<int32_t>> samples,
                                     const SensitivityOptions& options,
                                     const std::vector<Sensitivity>& known,
                                     const SensitivityObserver& observer,
                                     const Progress& progress) {
  check_input(model, samples, options);
  return Measurement(model, samples, options, progress).run(known, observer);
}

SensitivityTable of_candidates(const SensitivityTable& table, const SensitivityOptions& options) {
  SensitivityTable out = table;
  std::erase_if(out.rows, [&](const Sensitivity& row) {
    const auto& codecs = row.side == KvSide::kKey ? options.keys : options.values;
    return std::find(codecs.begin(), codecs.end(), row.codec) == codecs.end();
  });
  return out;
}

std::string sensitivity_key(Model& model, std::span<const std::vector<int32_t>> samples,
                            const SensitivityOptions& options) {
  Hash64 hash;
  hash.add_text(model.checkpoint().fingerprint());
  const Calibration* calibration = model.calibration().get();
  hash.add_text(calibration == nullptr ? "" : calibration_hash(*calibration));
  for (const auto& sample : samples) hash.add_text(hash_of_tokens(sample));
  hash.add_text(resolved(with_windows(one_side(options, KvSide::kKey, Codec()), options.mode)));
  hash.add_integer(options.mode == CacheMode::kStrict ? 0 : 1);
  hash.add_integer(options.ubatch);
  hash.add_integer(static_cast<int64_t>(model.transformer().precision()));
  return hash.hex();
}

}  // namespace kvquant
