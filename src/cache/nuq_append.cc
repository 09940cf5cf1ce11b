// How tokens come to a NuqSide: transformed where the codec says so, their ranges and outliers
// found, encoded tile by tile and head by head, outliers put into pages.
#include <algorithm>
#include <bit>
#include <cassert>
#include <cstring>
#include <utility>

#include "base/finite_half.h"
#include "cache/nuq_side.h"
#include "formats/codec_table.h"
#include "ops/hadamard.h"
#include "ops/rows.h"

namespace kvquant {
namespace {

// Entries whose channels ascend, one token after the other.
void sort_by_token(std::vector<OutlierEntry>& entries) {
  int64_t next[kTileTokens] = {};  // first counts, then the next entry of a token
  for (const OutlierEntry& entry : entries) ++next[entry.place % kTileTokens];
  int64_t count = 0;
  for (int64_t& of_token : next) count += std::exchange(of_token, count);
  std::vector<OutlierEntry> sorted(entries.size());
  for (const OutlierEntry& entry : entries) sorted[next[entry.place % kTileTokens]++] = entry;
  entries = std::move(sorted);
}

}  // namespace

struct NuqSide::Chunk {
  HalfRows given;  // [num_rows, input_size]
  int64_t num_rows = 0;
  std::vector<float>
      transformed{};             // rotated values, latents: as they are coded, [num_rows, row_size]
  std::vector<uint8_t> marks{};  // values: 1 where an outlier is, [num_rows, row_size]
  std::vector<uint64_t> masks{};                      // keys: [pieces][head_dim], see EncodeJob
  std::vector<std::vector<OutlierEntry>> outliers{};  // of the pieces, token after token
};

int64_t NuqSide::num_pieces(const Chunk& chunk) const {
  const int64_t end = num_tokens_ + chunk.num_rows;
  const int64_t num_tiles = (end + kTileTokens - 1) / kTileTokens - num_tokens_ / kTileTokens;
  return num_tiles * plan_->shape.num_kv_heads;
}

NuqSide::Piece NuqSide::piece_of(const Chunk& chunk, int64_t index) const {
  const int64_t num_heads = plan_->shape.num_kv_heads;
  Piece piece;
  piece.tile = num_tokens_ / kTileTokens + index / num_heads;
  piece.head = index % num_heads;
  const int64_t first = std::max(num_tokens_, piece.tile * kTileTokens);
  const int64_t end = std::min(num_tokens_ + chunk.num_rows, (piece.tile + 1) * kTileTokens);
  piece.first_token = first % kTileTokens;
  piece.num_tokens = end - first;
  piece.first_row = first - num_tokens_;
  return piece;
}

// The latents of rows of keys, of which the first is that of token first_token.
void NuqSide::encode_rotated(const LatentMap& map, LatentRows job, int64_t first_token) const {
  constexpr int64_t kRows = 16;
  float rotated[kRows * kMaxNuqHeadDim];
  for (int64_t done = 0; done < job.num_rows; done += kRows) {
    const int64_t count = std::min(kRows, job.num_rows - done);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t position = plan_->first_position + first_token + done + i;
      float* row = rotated + i * map.head_dim;
      std::copy_n(job.rows + (done + i) * job.row_stride, map.head_dim, row);
      rope_row(row, plan_->rope->cos(position), plan_->rope->sin(position), map.head_dim);
    }
    encode_latents(map, {.rows = rotated,
                         .row_stride = map.head_dim,
                         .num_rows = count,
                         .latents = job.latents + done * job.latent_stride,
                         .latent_stride = job.latent_stride});
  }
}

// Rows [first, end), at most kRowsPerTask, as they are coded: of values, and of latents.
void NuqSide::transform_rows(Chunk& chunk, int64_t first, int64_t end) const {
  const int64_t size = plan_->row_size(), width = plan_->shape.head_dim;
  const int64_t num_heads = plan_->shape.num_kv_heads;
  for (int64_t i = first; i < end && plan_->hadamard; ++i) {
    float* row = chunk.transformed.data() + i * size;
    widen(chunk.given.row(i), row);
    hadamard_rows(row, width, num_heads, width);
  }
  for (size_t head = 0; head < plan_->latents.size(); ++head) {
    const LatentMap& map = plan_->latents[head];
    const auto h = static_cast<int64_t>(head);
    float rows[kRowsPerTask * kMaxNuqHeadDim];
    chunk.given.widen_block(first, end - first, h * map.head_dim, map.head_dim, rows);
    const LatentRows job{.rows = rows,
                         .row_stride = map.head_dim,
                         .num_rows = end - first,
                         .latents = chunk.transformed.data() + first * size + h * width,
                         .latent_stride = size};
    plan_->rope == nullptr ? encode_latents(map, job)
                           : encode_rotated(map, job, num_tokens_ + first);
  }
}

// Scale and zero point of one token, of latents those of each head; marks its outliers. row
// [row_size]: as it is coded.
void NuqSide::fit_token(Chunk& chunk, int64_t index, std::span<const float> row) const {
  const KvBlockShape& shape = plan_->shape;
  const bool per_head = shape.has_latents;
  const int64_t num_parts = per_head ? shape.num_kv_heads : 1;
  const int64_t part = per_head ? plan_->latents[0].rank : plan_->row_size();
  const int64_t num_outliers = per_head ? num_latent_outliers(part, plan_->outlier_percent)
                                        : num_value_outliers(part, plan_->outlier_percent);
  const int64_t token = num_tokens_ + index, tile = token / kTileTokens;
  for (int64_t p = 0; p < num_parts; ++p) {
    const int64_t at = index * plan_->row_size() + p * shape.head_dim;
    const auto marks =
        std::span(chunk.marks).subspan(num_outliers > 0 ? at : 0, num_outliers > 0 ? part : 0);
    const RowRange range = fit_row(row.subspan(p * shape.head_dim, part), num_outliers, marks);
    token_params(tile, p, plan_->layout.scales)[token % kTileTokens] = range.scale;
    token_params(tile, p, plan_->layout.zeros)[token % kTileTokens] = range.zero;
  }
}

// Of values and latents: transforms them, finds the outliers of every token, its scale and its zero
// point.
void NuqSide::fit_rows(Chunk& chunk, ThreadPool& pool) const {
  const int64_t size = plan_->row_size();
  const auto num_values = static_cast<size_t>(chunk.num_rows * size);
  const bool transforms = plan_->hadamard || !plan_->latents.empty();
  if (transforms) chunk.transformed.resize(num_values);
  if (plan_->shape.has_outliers) chunk.marks.resize(num_values);
  for_row_ranges(chunk.num_rows, pool, [&](int64_t first, int64_t end) {
    transform_rows(chunk, first, end);
    std::vector<float> widened(transforms ? 0 : size);
    for (int64_t i = first; i < end && plan_->shape.has_codes(); ++i) {
      if (!transforms) widen(chunk.given.row(i), widened.data());
      fit_token(chunk, i,
                transforms ? std::span(chunk.transformed).subspan(i * size, size) : widened);
    }
  });
}

// A piece's rows as they are coded; scratch [num_tokens][head_dim].
NuqSide::PieceRows NuqSide::rows_of(const Chunk& chunk, const Piece& piece, float* scratch) const {
  const int64_t size = plan_->row_size(), head_dim = plan_->shape.head_dim;
  const int64_t column = piece.head * head_dim;
  if (!chunk.transformed.empty()) {
    return {chunk.transformed.data() + piece.first_row * size + column, size};
  }
  chunk.given.widen_block(piece.first_row, piece.num_tokens, column, head_dim, scratch);
  return {scratch, head_dim};
}

// fp16 numbers in a tile of the side.
void NuqSide::store_latents(const Piece& piece, PieceRows rows) const {
  const int64_t width = plan_->shape.head_dim;
  auto* tile = reinterpret_cast<Half*>(codes(piece.tile, piece.head));
  for (int64_t t = 0; t < piece.num_tokens; ++t) {
    const float* row = rows.data + t * rows.stride;
    for (int64_t r = 0; r < width; ++r) {
      const int64_t token = piece.first_token + t;
      tile[plan_->rope != nullptr ? key_index(token, r) : value_index(token, r, width)] =
          finite_to_half(row[r]);
    }
  }
}

// Each band is a tile of its own; scales and zero points are those of all.
void NuqSide::encode_bands(const EncodeJob& all) const {
  static const NuqCodebook kTwo = make_uniform_codebook(2), kFour = make_uniform_codebook(4);
  for_each_band(plan_->shape.bands, [&](const CodeBand& band) {
    EncodeJob job = all;
    if (band.bits != kByteCodeBits) job.codebook = band.bits == 2 ? &kTwo : &kFour;
    job.rows += band.first_channel;
    job.head_dim = band.num_channels;
    job.codes += band.offset;
    encode_tile(job);
  });
}

void NuqSide::encode_piece(Chunk& chunk, int64_t index) const {
  const Piece piece = piece_of(chunk, index);
  const int64_t size = plan_->row_size(), head_dim = plan_->shape.head_dim;
  float scratch[kTileTokens * kMaxNuqHeadDim];
  const PieceRows rows = rows_of(chunk, piece, scratch);
  if (!plan_->shape.has_codes()) return store_latents(piece, rows);
  float scales[kMaxNuqHeadDim], zeros[kMaxNuqHeadDim], low[kMaxNuqHeadDim], high[kMaxNuqHeadDim];
  const ScaleAxis axis = load_params(piece.tile, piece.head, scales, zeros);
  EncodeJob job{.codebook = &plan_->codebook(piece.head),
                .rows = rows.data,
                .row_stride = rows.stride,
                .scales = scales,
                .zeros = zeros,
                .axis = axis,
                .head_dim = head_dim,
                .first_token = piece.first_token,
                .num_tokens = piece.num_tokens,
                .codes = codes(piece.tile, piece.head)};
  if (plan_->shape.bands.is_banded()) return encode_bands(job);
  if (!plan_->feedback.empty()) job.feedback = &plan_->feedback[piece.head];
  if (!chunk.masks.empty()) {
    const Half* thresholds = key_ranges(piece.tile).data() + 2 * size + piece.head * head_dim;
    for (int64_t c = 0; c < head_dim; ++c) low[c] = to_float(thresholds[c]);
    for (int64_t c = 0; c < head_dim; ++c) high[c] = to_float(thresholds[size + c]);
    job.low = low;
    job.high = high;
    job.outliers = &chunk.masks[index * head_dim];
  }
  encode_tile(job);
  if (plan_->shape.has_outliers) take_outliers(chunk, index, rows);
}

// Calls fn(token within the tile, channel): of keys one channel after the other, of values one
// token.
template <class Fn>
void NuqSide::for_each_outlier(const Chunk& chunk, int64_t index, Fn&& fn) const {
  const int64_t head_dim = plan_->shape.head_dim;
  if (!chunk.masks.empty()) {
    for (int64_t c = 0; c < head_dim; ++c) {
      for (uint64_t bits = chunk.masks[index * head_dim + c]; bits != 0; bits &= bits - 1) {
        fn(std::countr_zero(bits), c);
      }
    }
    return;
  }
  const Piece piece = piece_of(chunk, index);
  for (int64_t t = 0; t < piece.num_tokens; ++t) {
    const uint8_t* marks =
        &chunk.marks[(piece.first_row + t) * plan_->row_size() + piece.head * head_dim];
    for (int64_t c = 0; c < head_dim; c += 8) {
      uint64_t eight = 0;
      std::memcpy(&eight, marks + c, 8);
      for (; eight != 0; eight &= eight - 1) {  // a mark is 1: one bit per byte
        fn(piece.first_token + t, c + std::countr_zero(eight) / 8);
      }
    }
  }
}

// The entries of one piece, while its rows are in the core's cache. Codes under outliers
// become 0: then attention knows what the dense codes say there without looking.
void NuqSide::take_outliers(Chunk& chunk, int64_t index, PieceRows rows) const {
  const Piece piece = piece_of(chunk, index);
  const int64_t head_dim = plan_->shape.head_dim;
  uint8_t* tile = codes(piece.tile, piece.head);
  std::vector<OutlierEntry>& out = chunk.outliers[index];
  out.reserve(static_cast<size_t>(piece.num_tokens * head_dim) / 64);
  for_each_outlier(chunk, index, [&](int64_t token, int64_t channel) {
    const float value = rows.data[(token - piece.first_token) * rows.stride + channel];
    out.push_back({outlier_place(token, channel), to_half(value)});
    clear_code(tile, plan_->shape.bits, code_place(plan_->side, head_dim, token, channel));
  });
  if (!chunk.masks.empty()) sort_by_token(out);
}

// On one thread: the heads share the pool of pages.
void NuqSide::store_outliers(const Chunk& chunk) {
  for (size_t index = 0; index < chunk.outliers.size(); ++index) {
    const Piece piece = piece_of(chunk, static_cast<int64_t>(index));
    const std::vector<OutlierEntry>& entries = chunk.outliers[index];
    Chain& chain = chains_[piece.head];
    const int64_t first = chain.num_entries, end = first + static_cast<int64_t>(entries.size());
    if (piece.first_token == 0) {
      *outlier_start(piece.tile, piece.head) = static_cast<uint32_t>(first);
    }
    *outlier_count(piece.tile, piece.head) += static_cast<uint16_t>(end - first);
    if (entries.empty()) continue;  // the last page stays shared
    chain.pages.own(first / kOutliersPerPage, (end + kOutliersPerPage - 1) / kOutliersPerPage);
    chain.num_entries = end;
    for (int64_t i = first; i < end; ++i) {
      chain.pages[i / kOutliersPerPage]->entries[i % kOutliersPerPage] = entries[i - first];
    }
  }
}

void NuqSide::append(HalfRows rows, ThreadPool& pool) {
  if (fits_keys()) {  // what fills up the last tile has its ranges
    const int64_t tile = (num_tokens_ + kTileTokens - 1) / kTileTokens;
    const int64_t num_old = std::min(rows.num_rows(), tile * kTileTokens - num_tokens_);
    const HalfRows fresh = rows.behind(num_old);
    if (segments_.have_drifted(tile, fresh, pool)) {
      append_rows(rows.head(num_old), pool);
      segments_.begin(tile, fresh, pool);
      rows = fresh;
    }
  }
  append_rows(rows, pool);
}

void NuqSide::append_rows(const HalfRows& rows, ThreadPool& pool) {
  Chunk chunk{.given = rows, .num_rows = rows.num_rows()};
  if (chunk.num_rows == 0) return;
  assert(is_fitted() && rows.row_size == plan_->input_size());
  take_blocks(num_tokens_ + chunk.num_rows);
  const int64_t count = num_pieces(chunk);
  if (plan_->side == KvSide::kValue) {
    fit_rows(chunk, pool);
  } else if (plan_->shape.has_outliers) {
    chunk.masks.resize(count * plan_->shape.head_dim);
  }
  if (plan_->shape.has_outliers) chunk.outliers.resize(count);
  pool.parallel_for(count, [&](int64_t index, int) { encode_piece(chunk, index); });
  store_outliers(chunk);
  num_tokens_ += chunk.num_rows;
}

}  // namespace kvquant
