// The kernel that encodes a tile.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "base/device_code.h"
#include "ops/cuda_fragments.h"
#include "ops/encode_cuda.h"

namespace kvquant {

struct EncodeShared {
  float* rows;     // [64][row_stride], by the tokens of the job
  float* errors;   // [head_dim][64], with feedback: by steps
  uint8_t* codes;  // [head_dim][64], by the tokens of the tile
  float* levels;
  float* midpoints;
  int64_t row_stride;
};

KVQUANT_DEVICE EncodeShared slice_encode_shared(std::byte* base, const EncodeJob& job) {
  const auto layout = encode_shared_layout(job.head_dim, job.feedback != nullptr);
  EncodeShared out{};
  out.rows = reinterpret_cast<float*>(base);
  out.errors = reinterpret_cast<float*>(base + layout.errors);
  out.codes = reinterpret_cast<uint8_t*>(base + layout.codes);
  out.levels = reinterpret_cast<float*>(base + layout.levels);
  out.midpoints = reinterpret_cast<float*>(base + layout.midpoints);
  out.row_stride = layout.row_stride;
  return out;
}

KVQUANT_DEVICE void load_rows(const EncodeJob& job, const EncodeShared& shared, int thread) {
  for (int64_t i = thread; i < job.num_tokens * job.head_dim; i += kBlockThreads) {
    const int64_t token = i / job.head_dim, channel = i % job.head_dim;
    shared.rows[token * shared.row_stride + channel] = job.rows[token * job.row_stride + channel];
  }
  for (int64_t i = thread; i < kTileTokens * job.head_dim; i += kBlockThreads) shared.codes[i] = 0;
  if (thread < kMaxLevels) {
    shared.levels[thread] = job.codebook->levels[thread];
    shared.midpoints[thread] = job.codebook->midpoints[thread];
  }
}

// code_of() of nuq_codebook.h; a table is searched by halves.
KVQUANT_DEVICE int find_code(const NuqCodebook& book, const EncodeShared& shared, float y) {
  if (book.bits == kByteCodeBits) {
    const float steps = (y + 1) * 127.5f - 0.5f;
    return static_cast<int>(std::fmin(std::fmax(std::ceil(steps), 0.0f), 255.0f));
  }
  int code = 0;
  for (int step = book.num_levels / 2; step > 0; step /= 2) {
    if (shared.midpoints[code + step - 1] < y) code += step;
  }
  return code;
}

KVQUANT_DEVICE float level_of_code(const NuqCodebook& book, const EncodeShared& shared, int code) {
  if (book.bits != kByteCodeBits) return shared.levels[code];
  return (static_cast<float>(code) - 127.5f) * (1 / 127.5f);
}

KVQUANT_DEVICE bool is_outlier(const EncodeJob& job, float x, int64_t channel, int64_t in_tile) {
  if (job.low != nullptr) return x < job.low[channel] || x > job.high[channel];
  return job.outliers != nullptr && (job.outliers[channel] >> in_tile & 1) != 0;
}

// Finds and keeps the code of x, as changed by feedback to t. Returns what it decodes to.
KVQUANT_DEVICE float encode_value(const EncodeJob& job, const EncodeShared& shared, float t,
                                  int64_t channel, int64_t in_tile) {
  const int64_t at = job.axis == ScaleAxis::kChannel ? channel : in_tile;
  const float scale = job.scales[at], zero = job.zeros[at];
  const float inv_scale = scale > 0 ? 1 / scale : 0;
  const float difference = t - zero;
  const int code = find_code(*job.codebook, shared, difference * inv_scale);
  shared.codes[channel * kTileTokens + in_tile] = static_cast<uint8_t>(code);
  const float product = level_of_code(*job.codebook, shared, code) * scale;
  return product + zero;
}

// One token a thread, its channels one after the other.
KVQUANT_DEVICE void encode_with_feedback(const EncodeJob& job, const EncodeShared& shared,
                                         int thread) {
  for (int64_t token = thread; token < job.num_tokens; token += kBlockThreads) {
    const float* row = shared.rows + token * shared.row_stride;
    float* errors = shared.errors + token;
    const int64_t in_tile = job.first_token + token;
    for (int64_t i = 0; i < job.head_dim; ++i) {
      const int64_t c = job.feedback->order[i];
      const float* coefficients = job.feedback->coefficients + i * job.head_dim;
      float t = row[c];
      for (int64_t j = 0; j < i; ++j) {
        t = std::fma(coefficients[j], errors[j * kTileTokens], t);
      }
      const float decoded = encode_value(job, shared, t, c, in_tile);
      errors[i * kTileTokens] = is_outlier(job, row[c], c, in_tile) ? 0.0f : row[c] - decoded;
    }
  }
}

KVQUANT_DEVICE void encode_values(const EncodeJob& job, const EncodeShared& shared, int thread) {
  for (int64_t i = thread; i < job.num_tokens * job.head_dim; i += kBlockThreads) {
    const int64_t token = i / job.head_dim, channel = i % job.head_dim;
    encode_value(job, shared, shared.rows[token * shared.row_stride + channel], channel,
                 job.first_token + token);
  }
}

// The code at a place of code_planes.h; 0 in channels behind head_dim.
KVQUANT_DEVICE uint32_t planar_code(const EncodeJob& job, const EncodeShared& shared,
                                    CodePlace place) {
  const int lane = place.word / 2, half = place.word % 2;
  int64_t channel, token;
  if (job.axis == ScaleAxis::kChannel) {
    if (place.row >= job.head_dim / 2) return 0;
    channel = place.row + half * (job.head_dim / 2);
    token = place.slot * 16 + lane;
  } else {
    channel = place.row / 8 * 16 + lane;
    token = place.row % 8 * 8 + place.slot * 2 + half;
    if (channel >= job.head_dim) return 0;
  }
  return shared.codes[channel * kTileTokens + token];
}

// Half `half` of word `index` of the tile, 16 bits.
KVQUANT_DEVICE uint32_t pack_half(const EncodeJob& job, const EncodeShared& shared, int64_t index,
                                  int half) {
  const int bits = job.codebook->bits;
  const int word = static_cast<int>(index % 16) * 2 + half;
  const auto code = [&](int64_t row, int slot) {
    return planar_code(job, shared, {row, slot, word});
  };
  const int64_t line = index / 16;  // of 16 words
  uint32_t out = 0;
  if (bits == 8) {
    const int first = static_cast<int>(line % 2) * 2;
    return code(line / 2, first) | code(line / 2, first + 1) << 8;
  }
  if (bits == 3) {
    const int64_t first_row = line / 3 * 4;
    const int k = static_cast<int>(line % 3);
    for (int slot = 0; slot < kRowSlots; ++slot) out |= code(first_row + k, slot) << 3 * slot;
    return out | code(first_row + 3, k) << 12 | (code(first_row + 3, 3) >> k & 1) << 15;
  }
  if (bits == 2) {
    for (int i = 0; i < 2 * kRowSlots; ++i) out |= code(2 * line + i / 4, i % 4) << 2 * i;
    return out;
  }
  for (int slot = 0; slot < kRowSlots; ++slot) out |= code(line, slot) << 4 * slot;
  return out;
}

// Adds the codes to the tile, a word a thread.
KVQUANT_DEVICE void store_codes(const EncodeJob& job, const EncodeShared& shared, int thread) {
  auto* words = reinterpret_cast<uint32_t*>(job.codes);
  const int64_t num_words = code_tile_bytes(job.codebook->bits, job.head_dim) / 4;
  for (int64_t i = thread; i < num_words; i += kBlockThreads) {
    words[i] |= pack_half(job, shared, i, 0) | pack_half(job, shared, i, 1) << 16;
  }
}

// Marks of outliers by thresholds, a channel a thread.
KVQUANT_DEVICE void store_marks(const EncodeJob& job, const EncodeShared& shared, int thread) {
  for (int64_t channel = thread; channel < job.head_dim; channel += kBlockThreads) {
    uint64_t marks = 0;
    for (int64_t token = 0; token < job.num_tokens; ++token) {
      const float x = shared.rows[token * shared.row_stride + channel];
      const bool is_out = x < job.low[channel] || x > job.high[channel];
      marks |= uint64_t{is_out} << (job.first_token + token);
    }
    job.outliers[channel] = marks;
  }
}

// Job block.index() of `jobs`.
template <class Block>
KVQUANT_DEVICE void encode_tile_on(const Block& block, const EncodeJob* jobs) {
  const EncodeJob& job = jobs[block.index()];
  const EncodeShared shared = slice_encode_shared(block.shared(), job);
  block.phase([&](int thread) { load_rows(job, shared, thread); });
  block.phase([&](int thread) {
    job.feedback != nullptr ? encode_with_feedback(job, shared, thread)
                            : encode_values(job, shared, thread);
  });
  block.phase([&](int thread) {
    store_codes(job, shared, thread);
    if (job.low != nullptr) store_marks(job, shared, thread);
  });
}

}  // namespace kvquant
