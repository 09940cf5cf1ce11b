#include "quant/value_basis.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/check.h"
#include "base/half.h"
#include "base/walsh_hadamard.h"
#include "formats/codec_table.h"

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

// A power of two that makes latents along the first component about as large as the largest channel
// of values, whose covariance is gram [D, D].
float size_factor(const float* first_component, const float* gram, int64_t dim) {
  double latents = 0, values = 0;
  for (int64_t c = 0; c < dim; ++c) {
    values = std::max(values, double{gram[c * dim + c]});
    for (int64_t e = 0; e < dim; ++e) {
      latents += double{first_component[c]} * gram[c * dim + e] * first_component[e];
    }
  }
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

// Of every column of every head, components being rows.
void rotate_components(std::vector<float>& rows, int64_t rank, int64_t dim) {
  for (size_t first = 0; first < rows.size(); first += static_cast<size_t>(rank * dim)) {
    for (int64_t c = 0; c < dim; ++c) {
      walsh_hadamard(rows.data() + first + static_cast<size_t>(c), dim, rank);
    }
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
                            const LayerCalibration* calibration) {
  const bool is_fitted = needs_calibration(codec);
  check_arg(!is_fitted || calibration != nullptr,
            fmt::format("codec '{}' needs a calibration: make one of this model with kvquant "
                        "calibrate and name it with --calib",
                        to_string(codec)));
  ValueBasis out =
      is_fitted ? calibrated_basis(codec, shape, calibration->value) : nullspace_basis(shape);
  if (codec.transforms.back().kind == Transform::kHadamard) {
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
  KeyCalibration key;
  key.rotated_mean = value.channels.mean;
  key.basis = value.basis;
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
