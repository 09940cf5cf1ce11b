#include "ops/encode.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/check.h"

namespace kvquant {
namespace {

// A piece this short (a decode step in strict mode) costs less value by value than whole rows
// of 64.
constexpr int64_t kShortPiece = 4;  // tokens

// y [64] to codes [64].
template <int kLevels>
void find_levels(const float* midpoints, const float* y, uint8_t* codes) {
  int32_t below[kTileTokens] = {};
  for (int m = 0; m < kLevels - 1; ++m) {
    const float midpoint = midpoints[m];
    for (int t = 0; t < kTileTokens; ++t) below[t] += midpoint < y[t] ? 1 : 0;
  }
  for (int t = 0; t < kTileTokens; ++t) codes[t] = static_cast<uint8_t>(below[t]);
}

float inverse(float scale) { return scale > 0 ? 1 / scale : 0.0f; }

void normalise_by_channel(const float* x, float zero, float inv_scale, float* y) {
  for (int t = 0; t < kTileTokens; ++t) {
    const float difference = x[t] - zero;
    y[t] = difference * inv_scale;
  }
}

void normalise_by_token(const float* x, const float* zeros, const float* inv_scales, float* y) {
  for (int t = 0; t < kTileTokens; ++t) {
    const float difference = x[t] - zeros[t];
    y[t] = difference * inv_scales[t];
  }
}

template <int kLevels>
void encode_levels(const EncodeJob& job) noexcept {
  const int64_t end = job.first_token + job.num_tokens;
  float zeros[kTileTokens] = {}, inv_scales[kTileTokens] = {}, x[kTileTokens] = {};
  float y[kTileTokens];
  uint8_t codes[kTileTokens];
  if (job.axis == ScaleAxis::kToken) {
    for (int64_t t = job.first_token; t < end; ++t) {
      zeros[t] = job.zeros[t];
      inv_scales[t] = inverse(job.scales[t]);
    }
  }
  for (int64_t c = 0; c < job.head_dim; ++c) {
    const float* row = job.planar + c * kTileTokens;
    if (job.num_tokens < kTileTokens) {  // the other tokens may not even be written yet
      std::copy(row + job.first_token, row + end, x + job.first_token);
      row = x;
    }
    if (job.axis == ScaleAxis::kChannel) {
      normalise_by_channel(row, job.zeros[c], inverse(job.scales[c]), y);
    } else {
      normalise_by_token(row, zeros, inv_scales, y);
    }
    find_levels<kLevels>(job.codebook->midpoints, y, codes);
    std::fill(codes, codes + job.first_token, uint8_t{0});
    std::fill(codes + end, codes + kTileTokens, uint8_t{0});
    add_code_row(job.codes, job.codebook->bits, job.head_dim, c, codes);
  }
}

}  // namespace

void encode_tile(const EncodeJob& job, Backend backend) {
  check_arg(job.first_token >= 0 && job.num_tokens >= 0 &&
                job.first_token + job.num_tokens <= kTileTokens,
            fmt::format("encode: tokens {} + {} don't fit a tile of {}", job.first_token,
                        job.num_tokens, kTileTokens));
  const bool is_short = job.num_tokens <= kShortPiece;
  if (backend == Backend::kReference || is_short) return ref::encode_tile(job);
  switch (job.codebook->bits) {
    case 2: return encode_levels<4>(job);
    case 3: return encode_levels<8>(job);
    case 4: return encode_levels<16>(job);
    default: check_arg(false, fmt::format("encode: {} bits", job.codebook->bits));
  }
}

}  // namespace kvquant
