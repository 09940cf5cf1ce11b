#include "ops/encode.h"

namespace kvquant::ref {
namespace {

// Sets bits of a code that is zero so far; code_planes.h has the byte table.
void set_code(uint8_t* tile, int bits, int64_t head_dim, int64_t channel, int64_t token, int code) {
  if (bits == 4) {
    tile[channel * 32 + token % 32] |= static_cast<uint8_t>(code << (token < 32 ? 0 : 4));
    return;
  }
  tile[channel * 16 + token % 16] |= static_cast<uint8_t>((code & 3) << (2 * (token / 16)));
  if (bits == 3) {
    tile[head_dim * 16 + channel * 8 + token / 8] |=
        static_cast<uint8_t>((code >> 2) << (token % 8));
  }
}

}  // namespace

void encode_tile(const EncodeJob& job) noexcept {
  const NuqCodebook& book = *job.codebook;
  for (int64_t c = 0; c < job.head_dim; ++c) {
    for (int64_t t = job.first_token; t < job.first_token + job.num_tokens; ++t) {
      const int64_t at = job.axis == ScaleAxis::kChannel ? c : t;
      const float inv_scale = job.scales[at] > 0 ? 1 / job.scales[at] : 0;
      const float difference = job.planar[c * kTileTokens + t] - job.zeros[at];
      const float y = difference * inv_scale;
      int code = 0;
      while (code < book.num_levels - 1 && book.midpoints[code] < y) ++code;
      set_code(job.codes, book.bits, job.head_dim, c, t, code);
    }
  }
}

}  // namespace kvquant::ref
