// For tests: the numbers that a run of a view stands for: dense, coded or rows.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include "base/buffer.h"
#include "base/half.h"
#include "formats/code_bands_inl.h"
#include "formats/dense_tile.h"
#include "ops/attend.h"
#include "ops/decode.h"
#include "ops/hadamard.h"

namespace kvquant::test {

using Row = std::vector<float>;  // [num_kv_heads * head_dim], or [head_dim]

inline float element(DenseType type, const void* tile, int64_t index) {
  switch (type) {
    case DenseType::kF16: return to_float(static_cast<const Half*>(tile)[index]);
    case DenseType::kBF16: return to_float(static_cast<const BFloat16*>(tile)[index]);
    case DenseType::kF32: return static_cast<const float*>(tile)[index];
  }
  return NAN;
}

// Planar latents [width][64] as what they stand for, [head_dim][64].
inline std::vector<float> expand_planar(const LatentMap& map, const std::vector<float>& planar,
                                        int64_t num_tokens) {
  std::vector<float> out(static_cast<size_t>(map.head_dim * kTileTokens));
  for (int64_t t = 0; t < num_tokens; ++t) {
    Row latents(static_cast<size_t>(map.width)), row(static_cast<size_t>(map.head_dim));
    for (int64_t r = 0; r < map.width; ++r) latents[r] = planar[r * kTileTokens + t];
    ref::expand_latents(map, latents.data(), 1, 1, row.data());
    for (int64_t c = 0; c < map.head_dim; ++c) out[c * kTileTokens + t] = row[c];
  }
  return out;
}

// One tile of latents of fp16, planar.
inline std::vector<float> read_halves(const Half* tile, KvSide side, int64_t width) {
  std::vector<float> planar(static_cast<size_t>(width * kTileTokens));
  for (int64_t t = 0; t < kTileTokens; ++t) {
    for (int64_t r = 0; r < width; ++r) {
      const int64_t at = side == KvSide::kKey ? key_index(t, r) : value_index(t, r, width);
      planar[r * kTileTokens + t] = to_float(tile[at]);
    }
  }
  return planar;
}

// One tile of a coded side, planar [head_dim][64]; columns past num_tokens are zero. Keys that are
// latents are rotated.
inline std::vector<float> decode_planar(const CodedSide& side, KvSide of, int64_t tile,
                                        int64_t num_tokens) {
  const KvBlockShape& shape = side.shape;
  const std::byte* block = side.blocks[tile / shape.num_tiles];
  const int64_t index = tile % shape.num_tiles, at = index * shape.num_kv_heads + side.head;
  const bool is_key = shape.side == KvSide::kKey;
  const int64_t count = is_key ? shape.head_dim : kTileTokens;
  const auto* codes = reinterpret_cast<const uint8_t*>(block) + side.layout.codes(side.head, index);
  const int64_t of_tile = shape.token_params(index, side.head);
  const auto* scales = reinterpret_cast<const Half*>(block + side.layout.scales) + of_tile;
  const auto* zeros = reinterpret_cast<const Half*>(block + side.layout.zeros) + of_tile;
  if (!shape.has_codes()) {
    const auto halves = read_halves(reinterpret_cast<const Half*>(codes), of, shape.head_dim);
    return expand_planar(*side.latents, halves, num_tokens);
  }
  const int64_t first = is_key ? side.segment_offset(tile) : 0;
  std::vector<float> scale, zero;
  for (int64_t i = 0; i < count; ++i) {
    scale.push_back(to_float(is_key ? side.scales[first + i] : scales[i]));
    zero.push_back(to_float(is_key ? side.zeros[first + i] : zeros[i]));
  }
  std::vector<uint8_t> wide(static_cast<size_t>(code_tile_bytes(8, shape.head_dim)));
  if (shape.bands.is_banded()) widen_codes(codes, shape.bands, wide.data());
  DecodeJob job{.codebook = side.codebook,
                .codes = shape.bands.is_banded() ? wide.data() : codes,
                .scales = scale.data(),
                .zeros = zero.data(),
                .axis = is_key ? ScaleAxis::kChannel : ScaleAxis::kToken,
                .head_dim = shape.head_dim,
                .num_tokens = num_tokens};
  if (shape.has_outliers) {
    job.outliers = {reinterpret_cast<const uint32_t*>(block + side.layout.starts)[at],
                    reinterpret_cast<const uint16_t*>(block + side.layout.counts)[at], side.pages};
  }
  std::vector<float> planar(static_cast<size_t>(kTileTokens * shape.head_dim));
  decode_tile(job, planar.data());
  if (side.hadamard) hadamard_planar(planar.data(), shape.head_dim);
  return side.latents == nullptr ? planar : expand_planar(*side.latents, planar, num_tokens);
}

// One tile of one side of a run of codes or rows, planar, keys not rotated.
inline std::vector<float> planar_of(const AttendRun& run, KvSide side, int64_t tile,
                                    int64_t head_dim) {
  const bool is_key = side == KvSide::kKey;
  const int64_t num_tokens = std::min<int64_t>(kTileTokens, run.num_tokens - tile * kTileTokens);
  if (run.is_coded() || run.is_half_coded()) {
    return decode_planar(is_key ? *run.coded_keys : *run.coded_values, side, tile, num_tokens);
  }
  std::vector<float> planar(static_cast<size_t>(kTileTokens * head_dim));
  const Half* rows = is_key ? run.key_rows : run.value_rows;
  for (int64_t t = 0; t < num_tokens; ++t) {
    const Half* row = rows + (tile * kTileTokens + t) * run.row_stride;
    for (int64_t c = 0; c < head_dim; ++c) planar[c * kTileTokens + t] = to_float(row[c]);
  }
  return planar;
}

// Tile `tile` of a run as an f32 tile, keys rotated.
inline Buffer<float> tile_of(const AttendRun& run, KvSide side, int64_t tile, int64_t head_dim) {
  const int64_t size = kTileTokens * head_dim;
  Buffer<float> out(size);
  const bool has_codes = run.is_coded() || run.is_half_coded();
  const bool is_key = side == KvSide::kKey;
  if (has_codes && (is_key ? run.coded_keys : run.coded_values) == nullptr) {
    const auto index = [&](int64_t t, int64_t c) {
      return is_key ? key_index(t, c) : value_index(t, c, head_dim);
    };
    const auto tiles = is_key ? run.key_tiles : run.value_tiles;
    for (int64_t t = 0; t < kTileTokens && tile * kTileTokens + t < run.num_tokens; ++t) {
      const int64_t slot = run.key_offset + run.value_offset + tile * kTileTokens + t;
      for (int64_t c = 0; c < head_dim; ++c) {
        out[index(t, c)] =
            element(run.type, tiles[slot / kTileTokens], index(slot % kTileTokens, c));
      }
    }
    return out;
  }
  if (!has_codes && !run.is_rows()) {
    const void* stored = side == KvSide::kKey ? run.key_tiles[tile] : run.value_tiles[tile];
    for (int64_t i = 0; i < size; ++i) out[i] = element(run.type, stored, i);
    return out;
  }
  const auto planar = planar_of(run, side, tile, head_dim);
  if (side == KvSide::kValue) {
    planar_to_value_tile(planar.data(), head_dim, out.data());
    return out;
  }
  if (run.key_latents() != nullptr) {
    planar_to_key_tile(planar.data(), head_dim, out.data());
    return out;
  }
  std::vector<float> cos(static_cast<size_t>(size / 2)), sin(cos.size());
  fill_rope_tile(*run.rope, run.first_position + tile * kTileTokens, cos.data(), sin.data());
  rotate_to_key_tile(planar.data(), cos.data(), sin.data(), head_dim, out.data());
  return out;
}

inline Row key_in_run(const AttendRun& run, int64_t token, int64_t head_dim) {
  const auto tile = tile_of(run, KvSide::kKey, token / kTileTokens, head_dim);
  Row row;
  for (int64_t c = 0; c < head_dim; ++c) row.push_back(tile[key_index(token % kTileTokens, c)]);
  return row;
}

inline Row value_in_run(const AttendRun& run, int64_t token, int64_t head_dim) {
  const auto tile = tile_of(run, KvSide::kValue, token / kTileTokens, head_dim);
  Row row;
  for (int64_t c = 0; c < head_dim; ++c) {
    row.push_back(tile[value_index(token % kTileTokens, c, head_dim)]);
  }
  return row;
}

// Runs of f32 tiles that hold the numbers of any runs.
class DecodedRuns {
 public:
  DecodedRuns(std::span<const AttendRun> runs, int64_t head_dim) {
    for (const AttendRun& run : runs) {
      Tiles& tiles = tiles_.emplace_back();
      for (int64_t tile = 0; tile * kTileTokens < run.num_tokens; ++tile) {
        for (const KvSide side : {KvSide::kKey, KvSide::kValue}) {
          memory_.push_back(tile_of(run, side, tile, head_dim));
          tiles[side == KvSide::kKey ? 0 : 1].push_back(memory_.back().data());
        }
      }
    }
    for (size_t i = 0; i < runs.size(); ++i) {
      AttendRun run = runs[i];
      run.type = DenseType::kF32;
      run.coded_keys = run.coded_values = nullptr;
      run.key_offset = run.value_offset = 0;
      run.key_rows = run.value_rows = nullptr;
      run.rope = nullptr;
      run.key_tiles = tiles_[i][0];
      run.value_tiles = tiles_[i][1];
      runs_.push_back(run);
    }
  }
  std::span<const AttendRun> runs() const { return runs_; }

 private:
  using Tiles = std::array<std::vector<const void*>, 2>;
  std::vector<Buffer<float>> memory_;
  std::vector<Tiles> tiles_;
  std::vector<AttendRun> runs_;
};

}  // namespace kvquant::test
