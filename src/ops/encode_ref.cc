#include <cmath>

#include "formats/kv_block.h"
#include "ops/encode.h"

namespace kvquant::ref {
namespace {

bool is_outlier(const EncodeJob& job, float x, int64_t channel, int64_t token) {
  if (job.low != nullptr) return x < job.low[channel] || x > job.high[channel];
  return job.outliers != nullptr && (job.outliers[channel] >> token & 1) != 0;
}

}  // namespace

void encode_tile(const EncodeJob& job) noexcept {
  const NuqCodebook& book = *job.codebook;
  for (int64_t c = 0; job.low != nullptr && c < job.head_dim; ++c) job.outliers[c] = 0;
  for (int64_t token = 0; token < job.num_tokens; ++token) {
    const float* row = job.rows + token * job.row_stride;
    const int64_t in_tile = job.first_token + token;
    float errors[kMaxNuqHeadDim];
    for (int64_t i = 0; i < job.head_dim; ++i) {
      const int64_t c = job.feedback != nullptr ? job.feedback->order[i] : i;
      float t = row[c];
      for (int64_t j = 0; job.feedback != nullptr && j < i; ++j) {
        t = std::fma(job.feedback->coefficients[i * job.head_dim + j], errors[j], t);
      }
      const int64_t at = job.axis == ScaleAxis::kChannel ? c : in_tile;
      const float inv_scale = job.scales[at] > 0 ? 1 / job.scales[at] : 0;
      const float difference = t - job.zeros[at];
      const int code = code_of(book, difference * inv_scale);
      const float product = level_of(book, code) * job.scales[at];
      errors[i] = row[c] - (product + job.zeros[at]);
      if (is_outlier(job, row[c], c, in_tile)) {
        errors[i] = 0;
        if (job.low != nullptr) job.outliers[c] |= uint64_t{1} << in_tile;
      }
      const CodePlace place = code_place(code_side(job.axis), job.head_dim, in_tile, c);
      add_code(job.codes, book.bits, place, code);
    }
  }
}

}  // namespace kvquant::ref
