// Non-uniform codebooks: what the names nuq2, nuq3, nuq4 mean, levels from a formula or fitted to
// data, coding with them, scales per channel, and the files that hold them layer by layer.
// All functions may be called from several threads at once.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvquant/tensor_view.h"

namespace kvquant {

// Throw std::invalid_argument for names other than nuq2, nuq3, nuq4 with or without "-P%".
int get_nuq_bitwidth(std::string_view name);  // "nuq3" and "nuq3-1%" are 3
int get_num_levels(std::string_view name);    // 2^bits

// Ascending levels in [-1, 1], symmetric, for data normalised to the range that is left after 1% of
// outliers. The levels of a normal distribution clipped at a = 2.5758 standard deviations, spread
// with the density that is optimal for the squared error of many levels, the cube root of the
// data's (Panter and Dite 1951), which is again normal, sqrt(3) times as wide: with Q the normal
// quantile function, b = a / sqrt(3) and p = Phi(-b),
//
//   level i of L = Q(p + (1 - 2 p) (i + 1/2) / L) / b
//
// Mean squared error on standard normal data with 1% of outliers kept exactly: 0.0068, 0.0266,
// 0.1014 at 4, 3, 2 bits (the optimum: 0.0068, 0.0263, 0.0966).
// Throws std::invalid_argument as get_nuq_bitwidth does.
std::vector<float> create_heuristic_codebook(std::string_view name);

// The same levels, computed once per process.
std::vector<float> get_cached_codebook(std::string_view name);

// The 2^bits levels that minimise sum w_i (x_i - nearest level)^2, ascending: weighted k-means in
// one dimension, solved exactly (src/quant/codebook_fit.h says how). With more than 4096 distinct
// values their order is cut at up to 4096 places only. Values are normalised: those outside [-1, 1]
// count as -1 or 1. With fewer distinct values than levels every value is a level, and the widest
// gaps of [-1, 1] are filled up. Same input, same levels.
//
// `values` [n > 0]; `weights` [n], or empty: all 1. Throws std::invalid_argument for bits outside
// 2-4, values or weights that are not finite, weights that are negative or all zero, sizes that
// differ or are 0.
std::vector<float> compute_nuq_codebook(std::span<const float> values,
                                        std::span<const float> weights, int bits);

// codes[i] = the nearest level of x[i] (normalised), ties to the lower index: the number of
// midpoints fl(0.5 * fl(a + b)) below x[i]. What lies outside the levels gets the first or last.
// Throws std::invalid_argument when the sizes differ, x is not finite, or the codebook is not 4, 8
// or 16 ascending levels in [-1, 1].
void quantize_to_nuq(std::span<const float> x, std::span<const float> codebook,
                     std::span<uint8_t> codes);

// out[i] = codebook[codes[i]]. Throws std::invalid_argument as above, and for codes past the end.
void dequantize_from_nuq(std::span<const uint8_t> codes, std::span<const float> codebook,
                         std::span<float> out);

// Which statistic of the magnitudes |x| of a channel is its scale.
struct ScaleRule {
  enum class Statistic { kMeanAbs, kMaxAbs, kPercentile };
  Statistic statistic = Statistic::kMeanAbs;
  double percent = 0;  // kPercentile only: in (0, 100]

  static const ScaleRule kMeanAbs;  // the published choice
  static const ScaleRule kMaxAbs;
  // The ceil(n * percent / 100)-th smallest of n magnitudes; 100 is the maximum, 50 the median.
  static constexpr ScaleRule percentile(double percent) {
    return {Statistic::kPercentile, percent};
  }
};
inline constexpr ScaleRule ScaleRule::kMeanAbs{Statistic::kMeanAbs, 0};
inline constexpr ScaleRule ScaleRule::kMaxAbs{Statistic::kMaxAbs, 0};

// One scale per (head, channel): [num_heads * head_dim]. `x` [batch, num_heads, seq_len, head_dim];
// `mask` [batch, seq_len], 0 is padding, which is never read; mask.data null: all tokens are real.
// A channel of zeros has scale 0, which normalises to 0 and decodes to its zero point, 0; a
// constant channel has its magnitude. Throws std::invalid_argument, naming the place, for values
// that are not finite, and for shapes that differ, a percentile outside (0, 100], or no real token.
std::vector<float> estimate_scaling_factors(TensorView<const float, 4> x,
                                            TensorView<const uint8_t, 2> mask,
                                            ScaleRule rule = ScaleRule::kMeanAbs);

// Levels of one layer: one codebook, or one for each head.
struct LayerCodebook {
  int64_t num_heads = 0;      // 0: one codebook for all heads
  int64_t num_levels = 0;     // 4, 8 or 16
  std::vector<float> levels;  // [num_levels] or [num_heads, num_levels], ascending, in [-1, 1]
  friend bool operator==(const LayerCodebook&, const LayerCodebook&) = default;
};

// Scales of one layer.
struct LayerScalingFactors {
  int64_t num_heads = 0;
  int64_t head_dim = 0;
  std::vector<float> scales;  // [num_heads, head_dim], finite, >= 0
  friend bool operator==(const LayerScalingFactors&, const LayerScalingFactors&) = default;
};

// Element i belongs to layer i; there is at least one. Files in the folder `dir`, which is made
// when there is none:
//
//   codebooks.safetensors         codebook_layer<N>  F32 [num_levels] or [num_heads, num_levels]
//   scaling_factors.safetensors   scales_layer<N>    F32 [num_heads, head_dim], the same in all
//
// Saving throws std::invalid_argument for layers that break these rules, IoError or OutOfMemory.
// Loading throws IoError, or FormatError naming the path and the tensor: layers that are missing,
// other tensors, types, shapes or values than these.
void save_per_layer_codebooks(const std::string& dir, std::span<const LayerCodebook> layers);
std::vector<LayerCodebook> load_per_layer_codebooks(const std::string& dir);
void save_per_layer_scaling_factors(const std::string& dir,
                                    std::span<const LayerScalingFactors> layers);
std::vector<LayerScalingFactors> load_per_layer_scaling_factors(const std::string& dir);

}  // namespace kvquant
