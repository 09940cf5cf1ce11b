// A coded tile as a dense one, for kernels that read nothing else: decoded by decode.cc, keys
// rotated.
#include <algorithm>
#include <cassert>

#include "formats/code_bands_inl.h"
#include "ops/attend_kernels.h"
#include "ops/decode.h"
#include "ops/hadamard.h"

namespace kvquant {
namespace {

DecodeJob decode_job(const CodedPart& part, KvSide side, int64_t head_dim, int32_t num_tokens,
                     float* params) {
  const int64_t count = side == KvSide::kKey ? head_dim : kTileTokens;
  for (int64_t i = 0; i < count; ++i) params[i] = to_float(part.scales[i]);
  for (int64_t i = 0; i < count; ++i) params[count + i] = to_float(part.zeros[i]);
  DecodeJob job;
  job.codebook = part.codebook;
  job.codes = part.codes;
  job.scales = params;
  job.zeros = params + count;
  job.axis = side == KvSide::kKey ? ScaleAxis::kChannel : ScaleAxis::kToken;
  job.head_dim = head_dim;
  job.num_tokens = num_tokens;
  if (part.num_outliers > 0) {
    const int64_t end = part.first_outlier + part.num_outliers;
    const auto num_pages = static_cast<size_t>((end + kOutliersPerPage - 1) / kOutliersPerPage);
    job.outliers = {part.first_outlier, part.num_outliers, {part.pages, num_pages}};
  }
  return job;
}

// What is coded as values are, planar.
void decode_like_values(const CodedPart& part, int64_t head_dim, int32_t num_tokens,
                        float* planar) noexcept {
  assert(head_dim <= kMaxNuqHeadDim);
  float params[2 * kTileTokens];
  DecodeJob job = decode_job(part, KvSide::kValue, head_dim, num_tokens, params);
  alignas(64) uint8_t wide[code_tile_bytes(kByteCodeBits, kMaxNuqHeadDim)];
  if (part.bands != nullptr) {
    widen_codes(part.codes, *part.bands, wide);
    job.codes = wide;
  }
  decode_tile(job, planar);
}

}  // namespace

void decode_coded_keys(const CodedTile& tile, int64_t head_dim, int32_t num_tokens, float* scratch,
                       float* keys) noexcept {
  assert(head_dim <= kMaxNuqHeadDim);
  float params[2 * kMaxNuqHeadDim];
  float* planar = scratch;
  float* cos = planar + kTileTokens * head_dim;
  float* sin = cos + kTileTokens * head_dim;
  turn_tile(*tile.rope, tile.middle_cos, tile.middle_sin, head_dim / 2, cos, sin);
  decode_tile(decode_job(tile.keys, KvSide::kKey, head_dim, num_tokens, params), planar);
  rotate_to_key_tile(planar, cos, sin, head_dim, keys);
}

void decode_coded_values(const CodedTile& tile, int64_t head_dim, int32_t num_tokens,
                         float* scratch, float* values) noexcept {
  decode_like_values(tile.values, head_dim, num_tokens, scratch);
  if (tile.hadamard) hadamard_planar(scratch, head_dim);  // its own inverse
  planar_to_value_tile(scratch, head_dim, values);
}

void decode_latent_keys(const CodedTile& tile, int64_t width, int32_t num_tokens, float* scratch,
                        float* keys) noexcept {
  decode_like_values(tile.keys, width, num_tokens, scratch);
  planar_to_key_tile(scratch, width, keys);
}

void decode_coded_tile(const CodedTile& tile, int64_t head_dim, int32_t num_tokens, float* scratch,
                       float* keys, float* values) noexcept {
  decode_coded_keys(tile, head_dim, num_tokens, scratch, keys);
  decode_coded_values(tile, head_dim, num_tokens, scratch, values);
}

void find_biases(const AttendBlock& block, const CodedTile& tile) noexcept {
  float* biases = block.workspace.biases;
  std::fill_n(biases, block.num_rows, 0.0f);
  if (tile.logit_bias == 0) return;
  const int64_t half = block.head_dim / 2;
  float squares[kMaxNuqHeadDim / 2];
  for (int64_t c = 0; c < half; ++c) {
    const float a = to_float(tile.keys.scales[c]), b = to_float(tile.keys.scales[c + half]);
    squares[c] = a * a + b * b;
  }
  const float unit = bias_unit(tile, block.log2_scale);
  for (int64_t row = 0; row < block.num_rows; ++row) {
    const float* q =
        block.query + row / block.group * block.query_stride + row % block.group * block.head_dim;
    float sum = 0;
    for (int64_t c = 0; c < half; ++c) {
      sum += (q[c] * q[c] + q[c + half] * q[c + half]) * squares[c];
    }
    biases[row] = unit * sum;
  }
}

}  // namespace kvquant
