#include "quant/value_basis.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/check.h"
#include "base/half.h"
#include "base/walsh_hadamard.h"
#include "formats/codec_table.h"
#include "quant/waterfill.h"

namespace kvquant {
namespace {

// The first `rank` components of every head of [H, stored rank, D].
std::vector<float> leading(const std::vector<float>& stored, int64_t num_heads, int64_t size) {
  const auto stride = static_cast<int64_t>(stored.size()) / num_heads;
  std::vector<float> out;
  for (int64_t head = 0; head < num_heads; ++head) {
    const auto* first = stored.data() + head * stride;
    out.insert(out.end(), first, first + size);
  }
  return out;
}

// Variance of a component of values whose covariance is gram [D, D].
double component_variance(const float* component, const float* gram, int64_t dim) {
  double sum = 0;
  for (int64_t c = 0; c < dim; ++c) {
    for (int64_t e = 0; e < dim; ++e)
      sum += double{component[c]} * gram[c * dim + e] * component[e];
  }
  return sum;
}

// A power of two that makes latents along the first component about as large as the largest channel
// of values, whose covariance is gram [D, D].
float size_factor(const float* first_component, const float* gram, int64_t dim) {
  const double latents = component_variance(first_component, gram, dim);
  double values = 0;
  for (int64_t c = 0; c < dim; ++c) values = std::max(values, double{gram[c * dim + c]});
  if (!(latents > 0 && values > 0)) return 1;
  const double exponent = std::clamp(std::round(std::log2(values / latents) / 2), -60.0, 60.0);
  return static_cast<float>(std::exp2(exponent));
}

void scale(std::span<float> x, float factor) {
  for (float& value : x) value *= factor;
}

// An orthonormal basis of what is orthogonal to (1, ..., 1): row r has r + 1 equal numbers and one
// that makes up for them.
std::vector<float> nullspace_rows(int64_t dim) {
  std::vector<float> rows(static_cast<size_t>((dim - 1) * dim));
  for (int64_t r = 0; r + 1 < dim; ++r) {
    const double count = static_cast<double>(r) + 1, norm = std::sqrt(count * (count + 1));
    float* row = rows.data() + r * dim;
    std::fill_n(row, r + 1, static_cast<float>(1 / norm));
    row[r + 1] = static_cast<float>(-count / norm);
  }
  return rows;
}

ValueBasis nullspace_basis(const BasisShape& shape) {
  ValueBasis out;
  out.rank = shape.head_dim - 1;
  out.mean.resize(static_cast<size_t>(shape.num_kv_heads * shape.head_dim));
  const std::vector<float> rows = nullspace_rows(shape.head_dim);
  for (int64_t head = 0; head < shape.num_kv_heads; ++head) {
    out.decode.insert(out.decode.end(), rows.begin(), rows.end());
  }
  return out;
}

ValueBasis calibrated_basis(const Codec& codec, const BasisShape& shape,
                            const ValueCalibration& value) {
  const int64_t num_heads = shape.num_kv_heads, dim = shape.head_dim;
  const bool is_weighted = codec.transforms[0].kind == Transform::kPcaWeighted;
  const auto stored_rank = static_cast<int64_t>(value.basis.size()) / (num_heads * dim);
  ValueBasis out;
  out.rank = codec.transforms[0].rank;
  check_arg(out.rank <= stored_rank,
            fmt::format("codec '{}': the calibration has bases of rank {} only: calibrate with a "
                        "--rank of at least {}",
                        to_string(codec), stored_rank, out.rank));
  out.mean = value.channels.mean;
  const int64_t size = out.rank * dim;
  out.decode = leading(is_weighted ? value.weighted_decode : value.basis, num_heads, size);
  if (!is_weighted) return out;
  out.encode = leading(value.weighted_encode, num_heads, size);
  for (int64_t head = 0; head < num_heads; ++head) {
    const auto first = static_cast<size_t>(head * size), count = static_cast<size_t>(size);
    const float factor =
        size_factor(out.encode.data() + first, value.gram.data() + head * dim * dim, dim);
    scale(std::span(out.encode).subspan(first, count), factor);
    scale(std::span(out.decode).subspan(first, count), 1 / factor);
  }
  return out;
}

// Hadamard transform of `count` components from `first` on, rows of [.., D].
void rotate_components(std::span<float> rows, int64_t first, int64_t count, int64_t dim) {
  for (int64_t c = 0; c < dim; ++c) walsh_hadamard(rows.data() + first * dim + c, dim, count);
}

// Of all components of every head.
void rotate_components(std::vector<float>& rows, int64_t rank, int64_t dim) {
  for (int64_t first = 0; first < std::ssize(rows) / dim; first += rank) {
    rotate_components(rows, first, rank, dim);
  }
}

// Calls fn(first, count) for the components of each band, in pieces of powers of two.
template <class Fn>
void for_each_piece(const CodeBands& bands, int64_t rank, Fn&& fn) {
  for_each_band(bands, [&](const CodeBand& band) {
    const int64_t end = std::min(rank, band.first_channel + band.num_channels);
    for (int64_t first = band.first_channel; first < end;) {
      const auto count = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(end - first)));
      fn(first, count);
      first += count;
    }
  });
}

// Of the components of one head.
struct HeadEnergies {
  std::vector<double> variances;  // of the latents
  double kept = 0;                // see waterfill
};

HeadEnergies head_energies(std::span<const float> encode, const float* gram, const float* spectrum,
                           int64_t dim) {
  HeadEnergies out;
  for (int64_t first = 0; first < std::ssize(encode); first += dim) {
    out.variances.push_back(component_variance(encode.data() + first, gram, dim));
  }
  const double largest = *std::max_element(out.variances.begin(), out.variances.end());
  constexpr double kLeastShare = 1e-6;  // what is smaller says little
  out.kept = largest > 0 ? std::numeric_limits<double>::infinity() : 0;
  for (size_t r = 0; r < out.variances.size(); ++r) {
    if (out.variances[r] <= kLeastShare * largest) continue;
    out.kept = std::min(out.kept, spectrum[r] / out.variances[r]);
  }
  return out;
}

// Rotates the components of a head among those of the same width, then scales them, so that all
// latents are about equally large.
void equalise(const CodeBands& bands, std::span<const double> variances, int64_t dim,
              std::span<float> encode, std::span<float> decode) {
  const auto rank = std::ssize(encode) / dim;
  double largest = 0;
  const auto mean_variance = [&](int64_t first, int64_t count) {
    const auto from = variances.begin() + first;
    return std::accumulate(from, from + count, 0.0) / static_cast<double>(count);
  };
  for_each_piece(bands, rank, [&](int64_t first, int64_t count) {
    largest = std::max(largest, mean_variance(first, count));
  });
  for_each_piece(bands, rank, [&](int64_t first, int64_t count) {
    constexpr double kLeastShare = 1e-8;
    const double share = std::max(kLeastShare, mean_variance(first, count) / largest);
    const auto size = static_cast<float>(largest > 0 ? std::sqrt(share) : 1);
    for (const auto rows : {encode, decode}) rotate_components(rows, first, count, dim);
    scale(encode.subspan(first * dim, count * dim), 1 / size);
    scale(decode.subspan(first * dim, count * dim), size);
  });
}

// Chooses how many bits components get, leaves those out that get none, and makes the others ready
// to be coded with one scale. Errors of values from rounding are those of single tokens, of which a
// sum over many keeps a part; the component of which attention outputs keep the smallest part tells
// how much. Of keys (weights [H, D]) an error counts as its component's weight says.
void waterfill(const Codec& codec, const BasisShape& shape, const ValueCalibration& value,
               std::span<const float> weights, ValueBasis& basis) {
  const bool is_weighted = codec.transforms[0].kind == Transform::kPcaWeighted;
  const auto& spectrum = is_weighted ? value.weighted_spectrum : value.spectrum;
  const int64_t dim = shape.head_dim, num_heads = shape.num_kv_heads;
  if (basis.encode.empty()) basis.encode = basis.decode;
  const auto rows_of = [&](std::vector<float>& all, int64_t head) {
    const int64_t size = basis.rank * dim;
    return std::span(all).subspan(static_cast<size_t>(head * size), static_cast<size_t>(size));
  };
  std::vector<double> dropped(static_cast<size_t>(basis.rank)), noise(dropped.size());
  std::vector<HeadEnergies> energies;
  for (int64_t head = 0; head < num_heads; ++head) {
    const float* of_head = spectrum.data() + head * dim;
    energies.push_back(head_energies(rows_of(basis.encode, head),
                                     value.gram.data() + head * dim * dim, of_head, dim));
    const auto& [variances, kept] = energies.back();
    for (size_t r = 0; r < dropped.size(); ++r) {
      const double weight = weights.empty() ? 1 : weights[static_cast<size_t>(head * dim) + r];
      dropped[r] += weight * of_head[r];
      noise[r] += (weights.empty() ? kept : weight) * variances[r];
    }
  }
  basis.bands = choose_bands({dropped, noise}, codec.waterfill_bits);
  basis.rank = std::min(basis.rank, basis.bands.num_channels());
  basis.encode = leading(basis.encode, num_heads, basis.rank * dim);
  basis.decode = leading(basis.decode, num_heads, basis.rank * dim);
  for (int64_t head = 0; head < num_heads; ++head) {
    equalise(basis.bands, energies[static_cast<size_t>(head)].variances, dim,
             rows_of(basis.encode, head), rows_of(basis.decode, head));
  }
}

// |z_r| is at most the sum of |A_rc| times the largest channel, and |A_r mean|.
float largest_value(const ValueBasis& basis, const BasisShape& shape) {
  constexpr double kMaxHalf = 65504, kMargin = 0.999;
  const int64_t dim = shape.head_dim;
  double largest = kMaxHalf;
  for (int64_t i = 0; i < shape.num_kv_heads * basis.rank; ++i) {
    const float* row = basis.encoder().data() + i * dim;
    const float* mean = basis.mean.data() + i / basis.rank * dim;
    double sum = 0, centre = 0;
    for (int64_t c = 0; c < dim; ++c) {
      sum += std::abs(double{row[c]});
      centre += double{row[c]} * mean[c];
    }
    if (sum > 0) largest = std::min(largest, (kMaxHalf - std::abs(centre)) / sum * kMargin);
  }
  return static_cast<float>(largest);
}

}  // namespace

ValueBasis make_value_basis(const Codec& codec, const BasisShape& shape,
                            const LayerCalibration* calibration,
                            std::span<const float> key_weights) {
  const bool is_fitted = needs_calibration(codec);
  check_arg(!is_fitted || calibration != nullptr,
            fmt::format("codec '{}' needs a calibration: make one of this model with kvquant "
                        "calibrate and name it with --calib",
                        to_string(codec)));
  ValueBasis out =
      is_fitted ? calibrated_basis(codec, shape, calibration->value) : nullspace_basis(shape);
  if (codec.quantizer == Quantizer::kWaterfill) {
    waterfill(codec, shape, calibration->value, key_weights, out);
  } else if (codec.transforms.back().kind == Transform::kHadamard) {
    rotate_components(out.encode, out.rank, shape.head_dim);
    rotate_components(out.decode, out.rank, shape.head_dim);
  }
  out.largest_value = largest_value(out, shape);
  check_arg(out.largest_value >= 1,
            fmt::format("codec '{}': latents of values from {} on would be more than fp16 holds: "
                        "calibrate this model again",
                        to_string(codec), out.largest_value));
  return out;
}

Calibration identity_bases(const CalibrationShape& shape) {
  const int64_t dim = shape.head_dim;
  const auto width = static_cast<size_t>(shape.num_kv_heads * dim);
  ValueCalibration value;
  value.channels.mean.resize(width);
  value.basis.resize(width * static_cast<size_t>(dim));
  for (size_t i = 0; i < width; ++i) {
    value.basis[i * static_cast<size_t>(dim) + i % static_cast<size_t>(dim)] = 1;
  }
  value.weighted_encode = value.weighted_decode = value.gram = value.basis;
  value.spectrum.assign(width, 1);
  value.weighted_spectrum = value.spectrum;
  KeyCalibration key;
  key.rotated_mean = value.channels.mean;
  key.basis = key.gram = value.basis;
  key.spectrum = value.spectrum;
  Calibration out;
  out.info.shape = shape;
  out.info.rank = dim;
  out.layers.resize(static_cast<size_t>(shape.num_layers));
  for (LayerCalibration& layer : out.layers) {
    layer.key = key;
    layer.value = value;
  }
  return out;
}

}  // namespace kvquant
