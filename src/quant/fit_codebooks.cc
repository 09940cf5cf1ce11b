#include "quant/fit_codebooks.h"

#include <algorithm>
#include <cassert>
#include <cmath>

#include "base/half.h"
#include "base/parallel_tasks.h"
#include "formats/codec_table.h"
#include "quant/codebook_fit.h"
#include "quant/ranges.h"

namespace kvquant {
namespace {

constexpr int64_t kMaxTokens = 8192;  // that are looked at: levels move by less than 0.3% with more

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

// The histogram's codebook; the middle level alone when every scale is zero.
std::vector<float> levels_of(const WeightedHistogram& histogram, int bits) {
  if (histogram.total_weight() > 0) return compute_nuq_codebook(histogram, bits);
  return fill_levels({0.0f}, 1 << bits);
}

void place(const std::vector<float>& levels, int64_t percent, CodebookSet& out) {
  const auto index = static_cast<size_t>(percent) * levels.size();
  for (auto& books : out) {
    if (books.size() == kNumOutlierPercents * levels.size()) {
      std::copy(levels.begin(), levels.end(), books.begin() + static_cast<std::ptrdiff_t>(index));
    }
  }
}

CodebookSet empty_set() {
  CodebookSet set;
  for (size_t i = 0; i < set.size(); ++i) set[i].resize(kNumOutlierPercents * (size_t{4} << i));
  return set;
}

void add_key_channel(const LayerActivations& a, std::span<const int64_t> tokens,
                     const KeyCalibration& key, int bits, int64_t percent, int64_t channel,
                     WeightedHistogram& histogram) {
  const int64_t width = a.num_kv_heads() * a.head_dim();
  const auto at = static_cast<size_t>(percent * width + channel);
  const auto i = static_cast<size_t>(bits - 2);
  const float scale = to_float(key.scale[i][at]), zero = to_float(key.zero[i][at]);
  if (scale == 0) return;
  const float low = to_float(key.low[i][at]), high = to_float(key.high[i][at]);
  const bool has_outliers = percent > 0;
  const float* column = &a.keys(0, channel / a.head_dim(), channel % a.head_dim());
  for (const int64_t token : tokens) {
    const float x = round_to_half(column[token * a.keys.stride[0]]);
    if (has_outliers && (x < low || x > high)) continue;
    histogram.add((x - zero) / scale, scale * scale);
  }
}

// Rotates a head's row by the normalised Walsh-Hadamard matrix.
void hadamard(std::span<float> row) {
  for (size_t half = 1; half < row.size(); half *= 2) {
    for (size_t begin = 0; begin < row.size(); begin += 2 * half) {
      for (size_t i = begin; i < begin + half; ++i) {
        const float a = row[i], b = row[i + half];
        row[i] = a + b;
        row[i + half] = a - b;
      }
    }
  }
  const float norm = 1 / std::sqrt(static_cast<float>(row.size()));
  for (float& x : row) x *= norm;
}

void add_value_rows(const LayerActivations& a, std::span<const int64_t> tokens,
                    ValueRotation rotation, int64_t percent, WeightedHistogram& histogram) {
  const int64_t d = a.head_dim(), width = a.num_kv_heads() * d;
  const int64_t num_outliers =
      num_value_outliers(width, kOutlierPercents[static_cast<size_t>(percent)]);
  std::vector<float> row(static_cast<size_t>(width));
  std::vector<uint8_t> marks(row.size());
  for (const int64_t token : tokens) {
    for (int64_t head = 0; head < a.num_kv_heads(); ++head) {
      const std::span part =
          std::span(row).subspan(static_cast<size_t>(head * d), static_cast<size_t>(d));
      const auto source = a.values.row(token, head);
      std::transform(source.begin(), source.end(), part.begin(), round_to_half);
      if (rotation == ValueRotation::kHadamard) hadamard(part);
    }
    if (width <= 2 * num_outliers) continue;
    const RowRange range = fit_row(row, num_outliers, marks);
    const float scale = to_float(range.scale), zero = to_float(range.zero);
    if (scale == 0) continue;
    for (size_t i = 0; i < row.size(); ++i) {
      if (marks[i] == 0) histogram.add((row[i] - zero) / scale, scale * scale);
    }
  }
}

}  // namespace

CodebookSet fit_key_codebooks(const LayerActivations& activations, const KeyCalibration& key,
                              ThreadPool& pool) {
  const std::vector<int64_t> tokens = chosen_tokens(activations);
  CodebookSet out = empty_set();
  parallel_for_throwing(pool, kNumCodebooks * kNumOutlierPercents, [&](int64_t task, int) {
    const int64_t percent = task % kNumOutlierPercents;
    const int bits = 2 + static_cast<int>(task / kNumOutlierPercents);
    WeightedHistogram histogram;
    for (int64_t c = 0; c < activations.num_kv_heads() * activations.head_dim(); ++c) {
      add_key_channel(activations, tokens, key, bits, percent, c, histogram);
    }
    place(levels_of(histogram, bits), percent, out);
  });
  return out;
}

CodebookSet fit_value_codebooks(const LayerActivations& activations, ValueRotation rotation,
                                ThreadPool& pool) {
  assert(rotation == ValueRotation::kNone ||
         (activations.head_dim() & (activations.head_dim() - 1)) == 0);
  const std::vector<int64_t> tokens = chosen_tokens(activations);
  CodebookSet out = empty_set();
  parallel_for_throwing(pool, kNumOutlierPercents, [&](int64_t percent, int) {
    WeightedHistogram histogram;
    add_value_rows(activations, tokens, rotation, percent, histogram);
    for (int bits = 2; bits < 2 + kNumCodebooks; ++bits) {
      place(levels_of(histogram, bits), percent, out);
    }
  });
  return out;
}

}  // namespace kvquant
