#include "quant/fit_layer.h"

#include <algorithm>
#include <string>

#include "base/check.h"
#include "base/parallel_tasks.h"
#include "kvquant/error.h"
#include "quant/fit_codebooks.h"
#include "quant/key_fit.h"
#include "quant/pca.h"
#include "quant/ranges.h"
#include "quant/rounding_feedback.h"

namespace kvquant {
namespace {

void check_activations(const LayerActivations& a, int64_t rank) {
  const auto check = [&](TensorView<const float, 3> x, int64_t num_heads, const char* name) {
    check_arg(x.shape[0] == a.num_tokens() && x.shape[1] == num_heads &&
                  x.shape[2] == a.head_dim() && x.stride[2] == 1,
              std::string("calibration: ") + name + " don't have the shape of the keys");
  };
  const int64_t num_kv = a.num_kv_heads(), num_q = a.num_q_heads();
  check(a.keys, num_kv, "keys");
  check(a.rotated_keys, num_kv, "rotated keys");
  check(a.values, num_kv, "values");
  check(a.queries, num_q, "queries");
  check(a.rotated_queries, num_q, "rotated queries");
  if (a.outputs.data != nullptr) check(a.outputs, num_q, "attention outputs");
  check_arg(num_kv > 0 && num_q > 0 && num_q % num_kv == 0,
            "calibration: query heads are not a multiple of KV heads");
  check_arg(static_cast<int64_t>(a.output_gram.size()) == num_kv * a.head_dim() * a.head_dim(),
            "calibration: output_gram is not [num_kv_heads, head_dim, head_dim]");
  check_arg(a.head_dim() <= 256, "calibration: head_dim " + std::to_string(a.head_dim()) +
                                     " is larger than 256, which no codec takes");
  check_arg(a.head_dim() % 2 == 0, "calibration: head_dim is odd");
  check_arg(0 < rank && rank <= a.head_dim(), "calibration: rank " + std::to_string(rank) +
                                                  " is not in [1, " + std::to_string(a.head_dim()) +
                                                  "], the head_dim");
}

// The rows of one head that count, sample by sample, into `sum`.
void add_head(TensorView<const float, 3> x, int64_t head, const SampleRows& rows,
              CovarianceSum& sum) {
  for (int64_t begin = 0; begin < x.shape[0]; begin += rows.seq_len) {
    sum.add({.data = &x(begin + rows.num_skipped, head, 0),
             .shape = {rows.seq_len - rows.num_skipped, x.shape[2]},
             .stride = {x.stride[0], 1}});
  }
}

template <class T>
void store(std::span<const T> source, int64_t head, std::vector<float>& out) {
  const size_t offset = static_cast<size_t>(head) * source.size();
  std::transform(source.begin(), source.end(), out.begin() + static_cast<std::ptrdiff_t>(offset),
                 [](T x) { return static_cast<float>(x); });
}

// The first `rank` components.
std::span<const float> leading(const std::vector<float>& basis, int64_t rank, int64_t dim) {
  return std::span(basis).first(static_cast<size_t>(rank * dim));
}

constexpr double kInt4RangePercent = 0.25;  // of a key channel; the rest is clamped

struct Fit {
  const LayerActivations& a;
  SampleRows rows;
  int64_t rank;
  ValueBases bases;
  ThreadPool& pool;

  // Key statistics. Returns the sorted values of all channels, [H * D, n].
  std::vector<float> key_channels(KeyCalibration& key) const {
    const int64_t n = a.num_samples * (a.seq_len - rows.num_skipped);
    std::vector<float> columns(static_cast<size_t>(a.num_kv_heads() * a.head_dim() * n));
    key.channels =
        channel_statistics(a.keys, rows, pool, [&](int64_t channel, std::span<const float> sorted) {
          std::copy(sorted.begin(), sorted.end(), columns.begin() + channel * n);
        });
    return columns;
  }

  void key_basis(int64_t head, KeyCalibration& key) const {
    const int64_t d = a.head_dim();
    CovarianceSum sum(d);
    add_head(a.rotated_keys, head, rows, sum);
    const Covariance covariance = sum.result();
    const PcaBasis basis =
        bases == ValueBases::kValues
            ? fit_pca(covariance.matrix, d)
            : fit_score_pca(covariance.matrix, group_moments(a.rotated_queries, head), d);
    store<double>(covariance.mean, head, key.rotated_mean);
    store<double>(covariance.matrix, head, key.gram);
    store(leading(basis.encode, rank, d), head, key.basis);
    store<float>(basis.spectrum, head, key.spectrum);
  }

  // E[x x^T] over all query heads that read the KV head.
  std::vector<double> group_moments(TensorView<const float, 3> x, int64_t head) const {
    const int64_t group = a.num_q_heads() / a.num_kv_heads();
    CovarianceSum sum(a.head_dim());
    for (int64_t i = 0; i < group; ++i) add_head(x, head * group + i, rows, sum);
    std::vector<double> gram = sum.sum_of_products();
    for (double& value : gram) value /= static_cast<double>(sum.count());
    return gram;
  }

  Covariance value_covariance(int64_t head) const {
    CovarianceSum sum(a.head_dim());
    add_head(a.values, head, rows, sum);
    return sum.result();
  }

  // What bases of values are fitted to.
  std::vector<double> value_moments(int64_t head) const {
    return a.outputs.data == nullptr ? value_covariance(head).matrix
                                     : group_moments(a.outputs, head);
  }

  std::vector<double> pooled_value_moments() const {
    std::vector<double> mean = value_moments(0);
    for (int64_t head = 1; head < a.num_kv_heads(); ++head) {
      const std::vector<double> moments = value_moments(head);
      for (size_t i = 0; i < mean.size(); ++i) mean[i] += moments[i];
    }
    for (double& x : mean) x /= static_cast<double>(a.num_kv_heads());
    return mean;
  }

  void value_basis(int64_t head, ValueCalibration& value) const {
    const int64_t d = a.head_dim();
    const Covariance covariance = value_covariance(head);
    const bool is_pooled = bases == ValueBases::kPooled;
    const std::vector<double> moments = is_pooled ? pooled_value_moments() : value_moments(head);
    const PcaBasis basis = fit_pca(moments, d);
    const auto output_gram =
        a.output_gram.subspan(static_cast<size_t>(head * d * d), static_cast<size_t>(d * d));
    const PcaBasis weighted = fit_weighted_pca(moments, output_gram, d);
    store<double>(covariance.matrix, head, value.gram);
    store(leading(basis.encode, rank, d), head, value.basis);
    store<float>(basis.spectrum, head, value.spectrum);
    store(output_gram, head, value.output_gram);
    store(leading(weighted.encode, rank, d), head, value.weighted_encode);
    store(leading(weighted.decode, rank, d), head, value.weighted_decode);
    store<float>(weighted.spectrum, head, value.weighted_spectrum);
  }

  void query_gram(int64_t head, QueryCalibration& query) const {
    store<double>(group_moments(a.queries, head), head, query.gram);
  }

  // The order in which the channels of a key are rounded, and what they make up for. Returns the
  // cost of a squared error per channel, [H * D]: with feedback, what is left of it; without a
  // metric, 1.
  std::vector<float> rounding(const FitOptions& options, std::span<const float> scales,
                              LayerCalibration& out) const {
    const int64_t num_heads = a.num_kv_heads(), d = a.head_dim();
    out.key.order.resize(static_cast<size_t>(num_heads * d));
    out.key.feedback.resize(static_cast<size_t>(num_heads * d * d));
    std::vector<float> weights(static_cast<size_t>(num_heads * d), 1.0f);
    parallel_for_throwing(pool, num_heads, [&](int64_t head, int) {
      std::vector<double> metric(static_cast<size_t>(d * d));
      float* const head_weights = weights.data() + head * d;
      if (options.lag_metric != nullptr) {
        const auto* gram = out.query.gram.data() + head * d * d;
        metric = (*options.lag_metric)(std::vector<double>(gram, gram + d * d));
        for (int64_t c = 0; c < d; ++c) {
          const double cost = metric[static_cast<size_t>(c * d + c)];
          head_weights[c] = static_cast<float>(std::max(cost, 0.0));
        }
      }
      const bool has_feedback = options.choices.has_feedback && options.lag_metric != nullptr;
      if (!has_feedback) std::fill(metric.begin(), metric.end(), 0.0);
      const auto head_scales =
          scales.subspan(static_cast<size_t>(head * d), static_cast<size_t>(d));
      const RoundingSteps steps = fit_rounding_steps(metric, head_scales);
      std::copy(steps.order.begin(), steps.order.end(), out.key.order.begin() + head * d);
      std::copy(steps.coefficients.begin(), steps.coefficients.end(),
                out.key.feedback.begin() + head * d * d);
      if (has_feedback) std::copy(steps.weights.begin(), steps.weights.end(), head_weights);
    });
    return weights;
  }

  // Ranges and thresholds of every width and outlier percent, and those of uniform codes.
  void key_ranges(std::span<const float> columns, std::span<const float> weights,
                  KeyOutliers outliers, KeyCalibration& key) const {
    const size_t width = weights.size(), n = columns.size() / width;
    const auto sorted = [&](int64_t c) { return columns.subspan(static_cast<size_t>(c) * n, n); };
    for (auto* set : {&key.scale, &key.zero, &key.low, &key.high}) {
      for (auto& field : *set) field.resize(kNumOutlierPercents * width);
    }
    parallel_for_throwing(pool, kNumCodebooks * kNumOutlierPercents, [&](int64_t task, int) {
      const auto i = static_cast<size_t>(task / kNumOutlierPercents);
      const auto p = static_cast<size_t>(task % kNumOutlierPercents);
      std::vector<ChannelRange> ranges;
      if (outliers == KeyOutliers::kPercentile) {
        for (size_t c = 0; c < width; ++c) {
          ranges.push_back(
              fit_sorted_channel(sorted(static_cast<int64_t>(c)), kOutlierPercents[p]));
        }
      } else {
        ranges = fit_key_ranges(sorted, weights, 2 + static_cast<int>(i), kOutlierPercents[p]);
      }
      for (size_t c = 0; c < width; ++c) {
        key.scale[i][p * width + c] = ranges[c].scale;
        key.zero[i][p * width + c] = ranges[c].zero;
        key.low[i][p * width + c] = ranges[c].low;
        key.high[i][p * width + c] = ranges[c].high;
      }
    });
    key.uniform_scale.resize(2 * width);
    key.uniform_zero.resize(2 * width);
    for (size_t c = 0; c < 2 * width; ++c) {  // 4 bits, then 8
      const bool is_byte = c >= width || outliers == KeyOutliers::kPercentile;
      const ChannelRange range = fit_sorted_channel(sorted(static_cast<int64_t>(c % width)),
                                                    is_byte ? 0 : kInt4RangePercent);
      key.uniform_scale[c] = range.scale;
      key.uniform_zero[c] = range.zero;
    }
  }

  void matrices(LayerCalibration& out) const {
    const int64_t num_heads = a.num_kv_heads(), d = a.head_dim();
    const auto resize = [&](std::vector<float>& field, int64_t per_head) {
      field.resize(static_cast<size_t>(num_heads * per_head));
    };
    for (auto* field : {&out.key.rotated_mean, &out.key.spectrum, &out.value.spectrum,
                        &out.value.weighted_spectrum}) {
      resize(*field, d);
    }
    for (auto* field : {&out.key.gram, &out.query.gram, &out.value.gram, &out.value.output_gram}) {
      resize(*field, d * d);
    }
    for (auto* field : {&out.key.basis, &out.value.basis, &out.value.weighted_encode,
                        &out.value.weighted_decode}) {
      resize(*field, rank * d);
    }
    parallel_for_throwing(pool, 3 * num_heads, [&](int64_t task, int) {
      const int64_t head = task % num_heads;
      switch (task / num_heads) {
        case 0: return query_gram(head, out.query);  // the longest first
        case 1: return value_basis(head, out.value);
        default: return key_basis(head, out.key);
      }
    });
  }
};

// Runs `fit`, and says of which side its data are when they are not finite.
template <class Fn>
auto of_side(const char* side, const Fn& fit) {
  try {
    return fit();
  } catch (const FormatError& error) {
    throw FormatError(std::string(side) + ", " + error.what());
  }
}

// What the scale's square is multiplied with in the fit of key codebooks, [H * D]; empty: nothing.
std::vector<float> key_codebook_factors(const LayerActivations& a, const FitOptions& options,
                                        const QueryCalibration& query) {
  if (options.choices.weights == CodebookWeighting::kFisher) return options.key_fisher;
  if (options.choices.weights != CodebookWeighting::kQuery) return {};
  const std::vector<double> moments(query.second_moment.begin(), query.second_moment.end());
  const std::vector<float> ones(static_cast<size_t>(a.num_kv_heads() * a.head_dim()), 1.0f);
  return query_weights(ones, {moments, a.num_q_heads(), a.num_kv_heads(), a.head_dim()});
}

}  // namespace

LayerCalibration fit_layer(const LayerActivations& activations, const FitOptions& options,
                           ThreadPool& pool) {
  const int64_t rank = options.rank == 0 ? activations.head_dim() : options.rank;
  check_activations(activations, rank);
  const bool is_fisher = options.choices.weights == CodebookWeighting::kFisher;
  const auto num_channels =
      static_cast<size_t>(activations.num_kv_heads() * activations.head_dim());
  check_arg(!is_fisher || (options.key_fisher.size() == num_channels &&
                           options.value_fisher.size() == num_channels),
            "calibration: codebook weights 'fisher' need squared gradients per channel");
  const SampleRows rows{activations.seq_len, kCalibrationSinks};
  const Fit fit{activations, rows, rank, options.choices.bases, pool};
  LayerCalibration out;
  const std::vector<float> columns = of_side("keys", [&] { return fit.key_channels(out.key); });
  out.value.channels =
      of_side("values", [&] { return channel_statistics(activations.values, rows, pool); });
  out.query.second_moment = second_moments(activations.queries, rows, pool);
  out.query.rotated_second_moment = second_moments(activations.rotated_queries, rows, pool);
  fit.matrices(out);
  const size_t width = out.key.channels.mean.size(), n = columns.size() / width;
  std::vector<float> scales(width);
  for (size_t c = 0; c < width; ++c) {
    scales[c] = to_float(fit_sorted_channel(std::span(columns).subspan(c * n, n), 1).scale);
  }
  const FitChoices& choices = options.choices;
  const std::vector<float> weights = fit.rounding(options, scales, out);
  fit.key_ranges(columns, weights, choices.outliers, out.key);
  const std::vector<float> key_factors = key_codebook_factors(activations, options, out.query);
  const std::span<const float> value_factors =
      is_fisher ? std::span<const float>(options.value_fisher) : std::span<const float>();
  out.key.codebooks = fit_key_codebooks(activations, {out.key, key_factors}, choices, pool);
  out.value.codebooks =
      fit_value_codebooks(activations, {ValueRotation::kNone, value_factors}, choices, pool);
  const int64_t d = activations.head_dim();
  const bool can_rotate = (d & (d - 1)) == 0;  // else these codebooks have no codec to serve
  out.value.hadamard_codebooks =
      can_rotate ? fit_value_codebooks(activations, {ValueRotation::kHadamard, value_factors},
                                       choices, pool)
                 : out.value.codebooks;
  return out;
}

}  // namespace kvquant
