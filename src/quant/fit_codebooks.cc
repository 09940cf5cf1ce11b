#include "quant/fit_codebooks.h"

#include <algorithm>
#include <cassert>
#include <numeric>

#include "base/half.h"
#include "base/parallel_tasks.h"
#include "base/walsh_hadamard.h"
#include "formats/codec_table.h"
#include "quant/codebook_fit.h"
#include "quant/ranges.h"

namespace kvquant {
namespace {

constexpr int64_t kMaxTokens = 8192;  // that are looked at, to bound the time

// Tokens behind the sinks, evenly spread.
std::vector<int64_t> chosen_tokens(const LayerActivations& a) {
  const int64_t per_sample = a.seq_len - kCalibrationSinks;
  const int64_t total = a.num_samples * per_sample;
  const int64_t step = (total + kMaxTokens - 1) / kMaxTokens;
  std::vector<int64_t> tokens;
  for (int64_t i = 0; i < total; i += step) {
    tokens.push_back(i / per_sample * a.seq_len + kCalibrationSinks + i % per_sample);
  }
  return tokens;
}

// The histogram's codebook; the middle level alone when nothing weighs anything.
std::vector<float> levels_of(const WeightedHistogram& histogram, int bits, CodebookMethod method) {
  const double total = histogram.total_weight();
  if (!(total > 0)) return fill_levels({0.0f}, 1 << bits);
  if (method == CodebookMethod::kExact) return compute_nuq_codebook(histogram, bits);
  std::vector<float> means, weights;  // of the cells, finer than levels can tell apart
  for (const HistogramCell& cell : histogram.cells()) {
    if (cell.weight <= 0) continue;
    means.push_back(static_cast<float>(cell.sum / cell.weight));
    weights.push_back(static_cast<float>(cell.weight / total));
  }
  return fit_codebook(method, {means, weights}, bits);
}

// The codebooks of a layer for a width and percent: each is of as many neighbouring channels.
struct Groups {
  int64_t count = 1;     // 1, or one per KV head
  int64_t channels = 0;  // of each

  Groups(const LayerActivations& a, CodebookScope scope)
      : count(scope == CodebookScope::kHead ? a.num_kv_heads() : 1),
        channels(a.num_kv_heads() * a.head_dim() / count) {}

  CodebookSet empty_set() const {
    CodebookSet set;
    for (size_t i = 0; i < set.size(); ++i) {
      set[i].resize(static_cast<size_t>(kNumOutlierPercents * count * (int64_t{4} << i)));
    }
    return set;
  }

  void place(const std::vector<float>& levels, int64_t percent, int64_t group,
             CodebookSet& out) const {
    const size_t i = levels.size() / 8;  // 4, 8 or 16 levels
    const auto first = (percent * count + group) * static_cast<int64_t>(levels.size());
    std::copy(levels.begin(), levels.end(), out[i].begin() + first);
  }
};

struct KeySource {
  const LayerActivations& a;
  std::span<const int64_t> tokens;
  const KeyFit& fit;
  CodebookWeighting weighting;

  float weight_of(int64_t channel, float scale) const {
    switch (weighting) {
      case CodebookWeighting::kNone: return 1;
      case CodebookWeighting::kScale: return scale * scale;
      default: return scale * scale * fit.channel_weights[static_cast<size_t>(channel)];
    }
  }

  void add_channel(int bits, int64_t percent, int64_t channel, WeightedHistogram& histogram) const {
    const int64_t width = a.num_kv_heads() * a.head_dim();
    const auto at = static_cast<size_t>(percent * width + channel);
    const auto i = static_cast<size_t>(bits - 2);
    const KeyCalibration& key = fit.key;
    const float scale = to_float(key.scale[i][at]), zero = to_float(key.zero[i][at]);
    if (scale == 0) return;
    const float low = to_float(key.low[i][at]), high = to_float(key.high[i][at]);
    const float weight = weight_of(channel, scale);
    const bool has_outliers = percent > 0;
    const float* column = &a.keys(0, channel / a.head_dim(), channel % a.head_dim());
    for (const int64_t token : tokens) {
      const float x = round_to_half(column[token * a.keys.stride[0]]);
      if (has_outliers && (x < low || x > high)) continue;
      histogram.add((x - zero) / scale, weight);
    }
  }
};

struct ValueSource {
  const LayerActivations& a;
  std::span<const int64_t> tokens;
  ValueRotation rotation;
  std::vector<float> factors;  // [H * D], or empty
  CodebookWeighting weighting;

  // One token's values, [H * D].
  void read(int64_t token, std::span<float> row) const {
    const int64_t d = a.head_dim();
    for (int64_t head = 0; head < a.num_kv_heads(); ++head) {
      const std::span part = row.subspan(static_cast<size_t>(head * d), static_cast<size_t>(d));
      const auto source = a.values.row(token, head);
      std::transform(source.begin(), source.end(), part.begin(), round_to_half);
      if (rotation == ValueRotation::kHadamard) walsh_hadamard(part.data(), 1, d);
    }
  }

  // A histogram for each of as many neighbouring channels.
  void add_rows(int64_t percent, std::span<WeightedHistogram> histograms) const {
    const int64_t width = a.num_kv_heads() * a.head_dim();
    const int64_t num_outliers =
        num_value_outliers(width, kOutlierPercents[static_cast<size_t>(percent)]);
    if (width <= 2 * num_outliers) return;
    const size_t group_size = static_cast<size_t>(width) / histograms.size();
    std::vector<float> row(static_cast<size_t>(width));
    std::vector<uint8_t> marks(row.size());
    for (const int64_t token : tokens) {
      read(token, row);
      const RowRange range = fit_row(row, num_outliers, marks);
      const float scale = to_float(range.scale), zero = to_float(range.zero);
      if (scale == 0) continue;
      const float weight = weighting == CodebookWeighting::kNone ? 1 : scale * scale;
      for (size_t i = 0; i < row.size(); ++i) {
        if (marks[i] != 0) continue;
        histograms[i / group_size].add((row[i] - zero) / scale,
                                       factors.empty() ? weight : weight * factors[i]);
      }
    }
  }
};

std::vector<float> value_factors(const ValueFit& fit, const FitChoices& choices, int64_t head_dim) {
  if (choices.weights != CodebookWeighting::kFisher) return {};
  std::vector<float> factors(fit.channel_weights.begin(), fit.channel_weights.end());
  if (fit.rotation == ValueRotation::kNone) return factors;
  for (auto head = factors.begin(); head != factors.end(); head += head_dim) {
    const double sum = std::accumulate(head, head + head_dim, 0.0);
    std::fill(head, head + head_dim, static_cast<float>(sum / static_cast<double>(head_dim)));
  }
  return factors;
}

}  // namespace

CodebookSet fit_key_codebooks(const LayerActivations& activations, const KeyFit& fit,
                              const FitChoices& choices, ThreadPool& pool) {
  const std::vector<int64_t> tokens = chosen_tokens(activations);
  const KeySource source{activations, tokens, fit, choices.weights};
  const Groups groups(activations, choices.codebooks);
  CodebookSet out = groups.empty_set();
  const int64_t num_sets = kNumCodebooks * kNumOutlierPercents;
  parallel_for_throwing(pool, num_sets * groups.count, [&](int64_t task, int) {
    const int64_t group = task / num_sets, percent = task % kNumOutlierPercents;
    const int bits = 2 + static_cast<int>(task % num_sets / kNumOutlierPercents);
    WeightedHistogram histogram;
    for (int64_t c = 0; c < groups.channels; ++c) {
      source.add_channel(bits, percent, group * groups.channels + c, histogram);
    }
    groups.place(levels_of(histogram, bits, choices.codebook), percent, group, out);
  });
  return out;
}

CodebookSet fit_value_codebooks(const LayerActivations& activations, const ValueFit& fit,
                                const FitChoices& choices, ThreadPool& pool) {
  assert(fit.rotation == ValueRotation::kNone ||
         (activations.head_dim() & (activations.head_dim() - 1)) == 0);
  const std::vector<int64_t> tokens = chosen_tokens(activations);
  const ValueSource source{activations, tokens, fit.rotation,
                           value_factors(fit, choices, activations.head_dim()), choices.weights};
  const Groups groups(activations, choices.codebooks);
  CodebookSet out = groups.empty_set();
  parallel_for_throwing(pool, kNumOutlierPercents, [&](int64_t percent, int) {
    std::vector<WeightedHistogram> histograms(static_cast<size_t>(groups.count));
    source.add_rows(percent, histograms);
    for (int64_t group = 0; group < groups.count; ++group) {
      const WeightedHistogram& histogram = histograms[static_cast<size_t>(group)];
      for (int bits = 2; bits < 2 + kNumCodebooks; ++bits) {
        groups.place(levels_of(histogram, bits, choices.codebook), percent, group, out);
      }
    }
  });
  return out;
}

}  // namespace kvquant
