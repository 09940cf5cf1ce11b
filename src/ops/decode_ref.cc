#include "formats/dense_tile.h"
#include "ops/decode.h"

namespace kvquant::ref {
void decode_tile(const DecodeJob& job, float* planar) noexcept {
  const NuqCodebook& book = *job.codebook;
  for (int64_t c = 0; c < job.head_dim; ++c) {
    for (int64_t t = 0; t < kTileTokens; ++t) {
      const int64_t at = job.axis == ScaleAxis::kChannel ? c : t;
      const int code =
          code_at(job.codes, book.bits, code_place(code_side(job.axis), job.head_dim, t, c));
      const float product = level_of(book, code) * job.scales[at];
      planar[c * kTileTokens + t] = t < job.num_tokens ? product + job.zeros[at] : 0.0f;
    }
  }
  place_outliers(job.outliers, planar);
}

void rotate_to_key_tile(const float* planar, const float* cos, const float* sin, int64_t head_dim,
                        float* tile) noexcept {
  const int64_t half = head_dim / 2;
  for (int64_t c = 0; c < half; ++c) {
    for (int64_t t = 0; t < kTileTokens; ++t) {
      const double a = planar[c * kTileTokens + t];
      const double b = planar[(c + half) * kTileTokens + t];
      const double cos_t = cos[c * kTileTokens + t], sin_t = sin[c * kTileTokens + t];
      tile[key_index(t, c)] = static_cast<float>(a * cos_t - b * sin_t);
      tile[key_index(t, c + half)] = static_cast<float>(b * cos_t + a * sin_t);
    }
  }
}

}  // namespace kvquant::ref
