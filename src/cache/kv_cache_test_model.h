// For tests: a cache of plain vectors that follows the words of docs/formats.md token by token,
// without tiles, blocks, packing or threads.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "base/half.h"
#include "cache/kv_cache.h"
#include "cache/kv_cache_test_rows.h"
#include "formats/codec_table.h"
#include "formats/nuq_codebook.h"
#include "kvquant/codebook.h"
#include "ops/hadamard.h"
#include "ops/latent.h"
#include "quant/ranges.h"
#include "quant/value_basis.h"

namespace kvquant::test {

// Of a codec's exact values: those of compressed codecs are fp16.
inline float round_as_stored(const Codec& codec, float x) {
  if (codec.quantizer == Quantizer::kF32) return x;
  return codec.quantizer == Quantizer::kBF16 ? round_to_bfloat16(x) : round_to_half(x);
}

inline NuqCodebook codebook_of(const Codec& codec) {
  const int bits = nuq_bits(codec.quantizer);
  if (bits == 0) return make_uniform_codebook(code_bits(codec.quantizer));
  return make_codebook(create_heuristic_codebook("nuq" + std::to_string(bits)));
}

inline float nearest(const NuqCodebook& book, float x, float scale, float zero) {
  const float y = (x - zero) * (scale > 0 ? 1 / scale : 0.0f);
  int best = book.bits == 8 ? code_of(book, y) : 0;
  for (int l = 1; book.bits != 8 && l < book.num_levels; ++l) {
    if (y > 0.5f * (book.levels[l - 1] + book.levels[l])) best = l;
  }
  const float product = level_of(book, best) * scale;
  return product + zero;
}

// One side of one layer of one sequence.
struct ModelSide {
  Codec codec;
  bool is_key = false;
  int64_t head_dim = 0;
  std::vector<Row> rows{};                       // rounded to what is stored, before RoPE
  std::vector<Row> decoded{};                    // what the codec makes of them
  std::vector<std::vector<uint8_t>> outliers{};  // 1 where exact
  std::vector<ChannelRange> ranges{};            // keys
  ValueBasis basis{};                            // of latents
  const RopeTable* rope = nullptr;               // of latents of keys, which are decoded rotated

  // Channels of a head as they are coded.
  int64_t coded_dim() const { return basis.rank > 0 ? latent_width(basis.rank) : head_dim; }

  void fit(size_t first) {
    for (size_t c = 0; c < rows[0].size(); ++c) {
      std::vector<float> column;
      for (size_t t = first; t < rows.size(); ++t) column.push_back(rows[t][c]);
      std::sort(column.begin(), column.end());
      const auto left_out =
          static_cast<size_t>(static_cast<double>(column.size()) * codec.outlier_percent / 200);
      const float low = column[left_out], high = column[column.size() - 1 - left_out];
      ranges.push_back(
          {to_half((high - low) / 2), to_half((low + high) / 2), to_half(low), to_half(high)});
    }
  }

  // Hadamard rotation per head, its own inverse.
  void rotate(Row& row) const {
    if (codec.transforms.empty()) return;
    const auto num_heads = static_cast<int64_t>(row.size()) / head_dim;
    ref::hadamard_rows(row.data(), head_dim, num_heads, head_dim);
  }

  Row rotated(Row row, int64_t position) const {
    for (size_t c = 0; c < row.size(); c += static_cast<size_t>(head_dim)) {
      rope_row(row.data() + c, rope->cos(position), rope->sin(position), head_dim);
    }
    return row;
  }

  // Of all heads; outliers are marked in the coded row.
  Row decode_latents(const Row& row, std::vector<uint8_t>& marks) const {
    const auto num_heads = static_cast<int64_t>(row.size()) / head_dim;
    const int64_t rank = basis.rank;
    marks.assign(static_cast<size_t>(num_heads * coded_dim()), 0);
    Row out(row.size());
    for (int64_t head = 0; head < num_heads; ++head) {
      const auto* decode = basis.decode.data() + head * rank * head_dim;
      const auto* mean = basis.mean.data() + head * head_dim;
      const LatentMap map{rank,
                          latent_width(rank),
                          head_dim,
                          mean,
                          basis.encoder().data() + head * rank * head_dim,
                          decode};
      Row z(static_cast<size_t>(map.width));
      ref::encode_latents(map, {row.data() + head * head_dim, 0, 1, z.data(), 0});
      quantize(std::span(z).first(static_cast<size_t>(rank)), marks.data() + head * map.width);
      ref::expand_latents(map, z.data(), 1, 1, out.data() + head * head_dim);
    }
    return out;
  }

  void quantize(std::span<float> z, uint8_t* marks) const {
    if (codec.quantizer == Quantizer::kF16) {
      for (float& x : z) x = round_to_half(x);
      return;
    }
    const NuqCodebook book = codebook_of(codec);
    const int64_t count =
        num_latent_outliers(static_cast<int64_t>(z.size()), codec.outlier_percent);
    std::vector<uint8_t> chosen(count > 0 ? z.size() : 0);
    const RowRange range = fit_row(z, count, chosen);
    for (size_t r = 0; r < z.size(); ++r) {
      const bool is_outlier = count > 0 && chosen[r] != 0;
      if (is_outlier) marks[r] = 1;
      z[r] = is_outlier ? round_to_half(z[r])
                        : nearest(book, z[r], to_float(range.scale), to_float(range.zero));
    }
  }

  // Decodes the rows that are not yet.
  void decode_new() {
    if (!is_compressed(codec)) return;
    if (has_latents(codec)) {
      for (size_t t = decoded.size(); t < rows.size(); ++t) {
        const Row row = is_key ? rotated(rows[t], static_cast<int64_t>(t)) : rows[t];
        decoded.push_back(decode_latents(row, outliers.emplace_back()));
      }
      return;
    }
    const NuqCodebook book = codebook_of(codec);
    for (size_t t = decoded.size(); t < rows.size(); ++t) {
      Row row = rows[t];
      rotate(row);
      Row out(row.size());
      std::vector<uint8_t> marks(row.size(), 0);
      RowRange token;
      if (!is_key) {
        token = fit_row(row,
                        num_value_outliers(static_cast<int64_t>(row.size()), codec.outlier_percent),
                        marks);
      }
      for (size_t c = 0; c < row.size(); ++c) {
        if (is_key && codec.outlier_percent > 0) {
          marks[c] = row[c] < to_float(ranges[c].low) || row[c] > to_float(ranges[c].high);
        }
        const float scale = to_float(is_key ? ranges[c].scale : token.scale);
        const float zero = to_float(is_key ? ranges[c].zero : token.zero);
        // An outlier is an fp16 number: of rotated values the nearest.
        out[c] = marks[c] != 0 ? round_to_half(row[c]) : nearest(book, row[c], scale, zero);
      }
      rotate(out);  // back
      decoded.push_back(out);
      outliers.push_back(marks);
    }
  }
};

// One layer of one sequence.
struct ModelLayer {
  ModelSide key, value;
  int64_t sink = 0, recent = 0;
  CacheMode mode = CacheMode::kStrict;
  int64_t num_encoded = 0;
  int64_t last_chunk = 0;

  int64_t length() const { return static_cast<int64_t>(key.rows.size()); }

  void append(const std::vector<Row>& keys, const std::vector<Row>& values) {
    settle();
    for (auto* side : {&key, &value}) {
      const auto& rows = side == &key ? keys : values;
      for (Row row : rows) {
        const bool rotated = side->is_key && !is_compressed(side->codec);  // rounded later
        for (float& x : row) x = rotated ? x : round_as_stored(side->codec, x);
        side->rows.push_back(row);
      }
    }
    if (mode == CacheMode::kStrict) fit_and_decode();
    last_chunk = static_cast<int64_t>(keys.size());
    if (mode == CacheMode::kStrict) num_encoded = std::max<int64_t>(0, length() - sink);
  }

  // As served: whole tiles leave the tail when the chunk has been read.
  void settle() {
    if (mode != CacheMode::kAsServed) return;
    if (length() - sink - num_encoded < recent + 64) return;
    fit_and_decode();
    while (length() - sink - num_encoded >= recent + 64) num_encoded += 64;
  }

  // Key parameters come from all tokens that are there when the first ones are encoded.
  void fit_and_decode() {
    if (length() <= sink) return;
    for (auto* side : {&key, &value}) {
      const bool has_ranges = side->is_key && is_compressed(side->codec) && side->rope == nullptr;
      if (has_ranges && side->ranges.empty()) {
        side->fit(static_cast<size_t>(sink));
      }
      side->decode_new();
    }
  }

  bool can_truncate(int64_t to) const {
    const bool none =
        num_encoded == 0 || (!is_compressed(key.codec) && !is_compressed(value.codec));
    return 0 <= to && to <= length() && (none || to >= std::min(sink, length()) + num_encoded);
  }

  void truncate(int64_t to) {
    for (auto* side : {&key, &value}) {
      const auto count = static_cast<size_t>(to),
                 num_decoded = std::min(count, side->decoded.size());
      side->rows.resize(count);
      side->decoded.resize(num_decoded);
      side->outliers.resize(num_decoded);
    }
    if (mode == CacheMode::kStrict) num_encoded = std::max<int64_t>(0, length() - sink);
  }

  bool sees_exactly(int64_t query, int64_t token) const {
    if (token < sink) return true;
    if (mode == CacheMode::kStrict) return query - token < recent;
    return token >= sink + num_encoded;
  }
};

}  // namespace kvquant::test
