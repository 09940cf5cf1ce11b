#include "cache/nuq_side.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <cstring>
#include <utility>

#include "base/finite_half.h"
#include "formats/codec_table.h"
#include "ops/hadamard.h"

namespace kvquant {

NuqSide::NuqSide(const NuqPlan& plan)
    : plan_(&plan), blocks_(*plan.pool), segments_(plan.row_size(), plan.outlier_percent) {
  if (!plan.shape.has_outliers) return;
  for (int64_t head = 0; head < plan.shape.num_kv_heads; ++head) {
    chains_.push_back({.pages = BlockList<OutlierPage>(*plan.pages)});
  }
}

NuqSide NuqSide::fork() const {
  NuqSide out(*plan_);
  out.num_tokens_ = num_tokens_;
  out.blocks_ = blocks_.fork();
  out.segments_ = segments_;
  for (size_t head = 0; head < chains_.size(); ++head) {
    out.chains_[head].num_entries = chains_[head].num_entries;
    out.chains_[head].pages = chains_[head].pages.fork();
  }
  return out;
}

NuqSide::TileRef NuqSide::tile_ref(int64_t tile) const {
  return {blocks_[tile / plan_->shape.num_tiles], tile % plan_->shape.num_tiles};
}

Half* NuqSide::token_params(int64_t tile, int64_t head, int64_t offset) const {
  const TileRef at = tile_ref(tile);
  return reinterpret_cast<Half*>(at.block + offset) + plan_->shape.token_params(at.index, head);
}

uint32_t* NuqSide::outlier_start(int64_t tile, int64_t head) const {
  const TileRef at = tile_ref(tile);
  return reinterpret_cast<uint32_t*>(at.block + plan_->layout.starts) +
         at.index * plan_->shape.num_kv_heads + head;
}

uint16_t* NuqSide::outlier_count(int64_t tile, int64_t head) const {
  const TileRef at = tile_ref(tile);
  return reinterpret_cast<uint16_t*>(at.block + plan_->layout.counts) +
         at.index * plan_->shape.num_kv_heads + head;
}

uint8_t* NuqSide::codes(int64_t tile, int64_t head) const {
  const TileRef at = tile_ref(tile);
  return reinterpret_cast<uint8_t*>(at.block) + plan_->layout.codes(head, at.index);
}

void NuqSide::fit(std::span<const float> rows, ThreadPool& pool) {
  assert(!is_fitted());
  segments_.begin(0, rows, pool);
}

ScaleAxis NuqSide::load_params(int64_t tile, int64_t head, float* scales, float* zeros) const {
  const bool is_key = plan_->side == KvSide::kKey;
  const int64_t count = is_key ? plan_->shape.head_dim : kTileTokens;
  const Half* scale = is_key ? key_ranges(tile).data() + head * count
                             : token_params(tile, head, plan_->layout.scales);
  const Half* zero =
      is_key ? scale + plan_->row_size() : token_params(tile, head, plan_->layout.zeros);
  for (int64_t i = 0; i < count; ++i) scales[i] = to_float(scale[i]);
  for (int64_t i = 0; i < count; ++i) zeros[i] = to_float(zero[i]);
  return is_key ? ScaleAxis::kChannel : ScaleAxis::kToken;
}

struct NuqSide::Chunk {
  std::span<const float> given;  // [num_rows, input_size]
  int64_t num_rows = 0;
  std::span<const float> rows{};     // as they are coded, [num_rows, row_size]
  std::vector<float> transformed{};  // what rows points to then
  std::vector<uint8_t> marks{};      // values: 1 where an outlier is, [num_rows, row_size]
  std::vector<uint64_t> masks{};     // keys: [pieces][head_dim], see EncodeJob
  std::vector<int64_t> counts{};     // outliers of the pieces
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

void NuqSide::take_blocks(int64_t num_tokens) {
  const int64_t block_tokens = plan_->shape.num_tiles * kTileTokens;
  blocks_.own(num_tokens_ / block_tokens, (num_tokens + block_tokens - 1) / block_tokens);
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

// Rows [first, end) as they are coded: of values, and of latents.
void NuqSide::transform_rows(Chunk& chunk, int64_t first, int64_t end) const {
  const int64_t size = plan_->row_size(), width = plan_->shape.head_dim;
  const int64_t num_heads = plan_->shape.num_kv_heads;
  for (int64_t row = first; row < end && plan_->hadamard; ++row) {
    hadamard_rows(chunk.transformed.data() + row * size, width, num_heads, width);
  }
  for (size_t head = 0; head < plan_->latents.size(); ++head) {
    const LatentMap& map = plan_->latents[head];
    const auto h = static_cast<int64_t>(head);
    const int64_t from = first * plan_->input_size() + h * map.head_dim;
    const LatentRows job{.rows = chunk.given.data() + from,
                         .row_stride = plan_->input_size(),
                         .num_rows = end - first,
                         .latents = chunk.transformed.data() + first * size + h * width,
                         .latent_stride = size};
    plan_->rope == nullptr ? encode_latents(map, job)
                           : encode_rotated(map, job, num_tokens_ + first);
  }
}

// Of values and latents: transforms them, finds the outliers of every token, its scale and its zero
// point; of latents each head has its own.
void NuqSide::fit_rows(Chunk& chunk, ThreadPool& pool) const {
  const KvBlockShape& shape = plan_->shape;
  const int64_t size = plan_->row_size();
  const bool per_head = shape.has_latents;
  const int64_t num_parts = per_head ? shape.num_kv_heads : 1;
  const int64_t part = per_head ? plan_->latents[0].rank : size;
  const int64_t num_outliers = per_head ? num_latent_outliers(part, plan_->outlier_percent)
                                        : num_value_outliers(part, plan_->outlier_percent);
  if (plan_->hadamard) chunk.transformed.assign(chunk.given.begin(), chunk.given.end());
  if (per_head) chunk.transformed.resize(static_cast<size_t>(chunk.num_rows * size));
  if (!chunk.transformed.empty()) chunk.rows = chunk.transformed;
  if (shape.has_outliers) chunk.marks.resize(chunk.rows.size());
  constexpr int64_t kRowsPerTask = 16;
  const int64_t num_tasks = (chunk.num_rows + kRowsPerTask - 1) / kRowsPerTask;
  pool.parallel_for(num_tasks, [&](int64_t task, int) {
    const int64_t end = std::min(chunk.num_rows, (task + 1) * kRowsPerTask);
    transform_rows(chunk, task * kRowsPerTask, end);
    for (int64_t i = task * kRowsPerTask; i < end && shape.has_codes(); ++i) {
      const int64_t tile = (num_tokens_ + i) / kTileTokens, token = (num_tokens_ + i) % kTileTokens;
      for (int64_t p = 0; p < num_parts; ++p) {
        const int64_t at = i * size + p * shape.head_dim;
        const auto marks =
            std::span(chunk.marks).subspan(num_outliers > 0 ? at : 0, num_outliers > 0 ? part : 0);
        const RowRange range = fit_row(chunk.rows.subspan(at, part), num_outliers, marks);
        token_params(tile, p, plan_->layout.scales)[token] = range.scale;
        token_params(tile, p, plan_->layout.zeros)[token] = range.zero;
      }
    }
  });
}

// fp16 numbers in a tile of the side.
void NuqSide::store_latents(const Chunk& chunk, const Piece& piece) const {
  const int64_t width = plan_->shape.head_dim;
  auto* tile = reinterpret_cast<Half*>(codes(piece.tile, piece.head));
  for (int64_t t = 0; t < piece.num_tokens; ++t) {
    const float* row =
        chunk.rows.data() + (piece.first_row + t) * plan_->row_size() + piece.head * width;
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
  if (!plan_->shape.has_codes()) return store_latents(chunk, piece);
  const int64_t size = plan_->row_size(), head_dim = plan_->shape.head_dim;
  float scales[kMaxNuqHeadDim], zeros[kMaxNuqHeadDim], low[kMaxNuqHeadDim], high[kMaxNuqHeadDim];
  const ScaleAxis axis = load_params(piece.tile, piece.head, scales, zeros);
  EncodeJob job{.codebook = &plan_->codebook(piece.head),
                .rows = chunk.rows.data() + piece.first_row * size + piece.head * head_dim,
                .row_stride = size,
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
}

// Calls fn(token within the tile, channel), channels of a token ascending.
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

// Count and entries of one piece, whose first entry this is. Codes under outliers become 0: then
// attention knows what the dense codes say there without looking.
void NuqSide::write_outliers(const Chunk& chunk, int64_t index, int64_t first_entry) const {
  const Piece piece = piece_of(chunk, index);
  int64_t next[kTileTokens] = {};  // first counts, then the next entry of a token
  for_each_outlier(chunk, index, [&](int64_t token, int64_t) { ++next[token]; });
  if (piece.first_token == 0) {
    *outlier_start(piece.tile, piece.head) = static_cast<uint32_t>(first_entry);
  }
  int64_t entry = first_entry;
  for (int64_t t = piece.first_token; t < piece.first_token + piece.num_tokens; ++t) {
    entry += std::exchange(next[t], entry);
  }
  *outlier_count(piece.tile, piece.head) += static_cast<uint16_t>(entry - first_entry);
  const int64_t head_dim = plan_->shape.head_dim;
  const float* rows = chunk.rows.data() + piece.head * head_dim;
  uint8_t* tile = codes(piece.tile, piece.head);
  for_each_outlier(chunk, index, [&](int64_t token, int64_t channel) {
    const int64_t row = piece.first_row + token - piece.first_token, at = next[token]++;
    chains_[piece.head].pages[at / kOutliersPerPage]->entries[at % kOutliersPerPage] = {
        outlier_place(token, channel), to_half(rows[row * plan_->row_size() + channel])};
    clear_code(tile, plan_->shape.bits, code_place(plan_->side, head_dim, token, channel));
  });
}

// Pages are taken on one thread: the heads share their pool.
void NuqSide::add_outliers(const Chunk& chunk, ThreadPool& pool) {
  const int64_t num_heads = plan_->shape.num_kv_heads;
  std::vector<int64_t> first_entries(chunk.counts.size());
  for (size_t i = 0; i < chunk.counts.size(); ++i) {
    Chain& chain = chains_[static_cast<int64_t>(i) % num_heads];
    first_entries[i] = chain.num_entries;
    if (chunk.counts[i] == 0) continue;  // the last page stays shared
    chain.num_entries += chunk.counts[i];
    chain.pages.own(first_entries[i] / kOutliersPerPage,
                    (chain.num_entries + kOutliersPerPage - 1) / kOutliersPerPage);
  }
  pool.parallel_for(static_cast<int64_t>(chunk.counts.size()), [&](int64_t index, int) {
    write_outliers(chunk, index, first_entries[index]);
  });
}

void NuqSide::append(std::span<const float> rows, ThreadPool& pool) {
  if (fits_keys()) {  // what fills up the last tile has its ranges
    const int64_t size = plan_->row_size(), num_rows = static_cast<int64_t>(rows.size()) / size;
    const int64_t tile = (num_tokens_ + kTileTokens - 1) / kTileTokens;
    const int64_t num_old = std::min(num_rows, tile * kTileTokens - num_tokens_);
    const auto fresh = rows.subspan(static_cast<size_t>(num_old * size));
    if (segments_.have_drifted(tile, fresh, pool)) {
      append_rows(rows.first(static_cast<size_t>(num_old * size)), pool);
      segments_.begin(tile, fresh, pool);
      rows = fresh;
    }
  }
  append_rows(rows, pool);
}

void NuqSide::append_rows(std::span<const float> rows, ThreadPool& pool) {
  Chunk chunk{.given = rows,
              .num_rows = static_cast<int64_t>(rows.size()) / plan_->input_size(),
              .rows = rows};
  if (chunk.num_rows == 0) return;
  assert(is_fitted());
  take_blocks(num_tokens_ + chunk.num_rows);
  const int64_t count = num_pieces(chunk);
  const bool sparse = plan_->shape.has_outliers;
  if (plan_->side == KvSide::kValue) {
    fit_rows(chunk, pool);
  } else if (sparse) {
    chunk.masks.resize(count * plan_->shape.head_dim);
  }
  if (sparse) chunk.counts.resize(count);
  pool.parallel_for(count, [&](int64_t index, int) {
    encode_piece(chunk, index);
    if (sparse) for_each_outlier(chunk, index, [&](int64_t, int64_t) { ++chunk.counts[index]; });
  });
  if (sparse) add_outliers(chunk, pool);
  num_tokens_ += chunk.num_rows;
}

// Behind what is there.
void NuqSide::copy_tile(const NuqSide& from, int64_t tile) {
  const int64_t to = num_tokens_ / kTileTokens, num_heads = plan_->shape.num_kv_heads;
  for (int64_t head = 0; head < num_heads; ++head) {
    std::copy_n(from.codes(tile, head), plan_->layout.code_tile, codes(to, head));
  }
  if (plan_->side == KvSide::kValue) {
    for (const int64_t offset : {plan_->layout.scales, plan_->layout.zeros}) {
      std::copy_n(from.token_params(tile, 0, offset), plan_->shape.num_token_params(),
                  token_params(to, 0, offset));
    }
  }
  for (size_t head = 0; head < chains_.size(); ++head) {
    const auto h = static_cast<int64_t>(head);
    Chain& chain = chains_[head];
    const int64_t source = *from.outlier_start(tile, h), count = *from.outlier_count(tile, h);
    const int64_t first = chain.num_entries, end = first + count;
    *outlier_start(to, h) = static_cast<uint32_t>(first);
    *outlier_count(to, h) = static_cast<uint16_t>(count);
    if (count == 0) continue;
    chain.pages.own(first / kOutliersPerPage, (end + kOutliersPerPage - 1) / kOutliersPerPage);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t a = source + i, b = first + i;
      chain.pages[b / kOutliersPerPage]->entries[b % kOutliersPerPage] =
          from.chains_[head].pages[a / kOutliersPerPage]->entries[a % kOutliersPerPage];
    }
    chain.num_entries = end;
  }
  num_tokens_ += kTileTokens;
}

void NuqSide::append_tiles(const NuqSide& from, int64_t first_tile, int64_t num_tiles) {
  assert(plan_ == from.plan_ && num_tokens_ % kTileTokens == 0);
  const int64_t per_block = plan_->shape.num_tiles, here = num_tokens_ / kTileTokens;
  if (fits_keys()) segments_.append(from.segments_, first_tile, num_tiles, here);
  int64_t num_shared = 0;
  if (chains_.empty() && first_tile % per_block == 0 && here % per_block == 0) {
    num_shared = num_tiles / per_block * per_block;
    blocks_.append_shared(from.blocks_, first_tile / per_block, num_shared / per_block);
    num_tokens_ += num_shared * kTileTokens;
  }
  take_blocks(num_tokens_ + (num_tiles - num_shared) * kTileTokens);
  for (int64_t i = num_shared; i < num_tiles; ++i) copy_tile(from, first_tile + i);
}

CodedSide NuqSide::coded_side(int64_t head) const {
  CodedSide side{.codebook = plan_->shape.has_codes() ? &plan_->codebook(head) : nullptr,
                 .shape = plan_->shape,
                 .layout = plan_->layout,
                 .head = head,
                 .blocks = blocks_.all(),
                 .hadamard = plan_->hadamard};
  if (!plan_->latents.empty()) side.latents = &plan_->latents[static_cast<size_t>(head)];
  if (plan_->side == KvSide::kKey) {
    side.logit_bias = kLogitBias;
    side.scales = key_ranges(0).data() + head * plan_->shape.head_dim;
    side.zeros = side.scales + plan_->row_size();
    side.segment_starts = segments_.starts();
    side.segment_stride = segments_.stride();
  }
  if (plan_->shape.has_outliers) side.pages = chains_[head].pages.all();
  return side;
}

void NuqSide::decode(int64_t tile, int64_t head, float* planar) const {
  assert(plan_->latents.empty());
  const int64_t head_dim = plan_->shape.head_dim;
  float scales[kMaxNuqHeadDim], zeros[kMaxNuqHeadDim];
  const ScaleAxis axis = load_params(tile, head, scales, zeros);
  DecodeJob job{.codebook = &plan_->codebook(head),
                .codes = codes(tile, head),
                .scales = scales,
                .zeros = zeros,
                .axis = axis,
                .head_dim = head_dim,
                .num_tokens = std::min<int64_t>(kTileTokens, num_tokens_ - tile * kTileTokens)};
  if (plan_->shape.has_outliers) {
    job.outliers = {*outlier_start(tile, head), *outlier_count(tile, head),
                    chains_[head].pages.all()};
  }
  decode_tile(job, planar);
  if (plan_->hadamard) hadamard_planar(planar, head_dim);  // its own inverse
}

int64_t NuqSide::block_bytes() const {
  int64_t bytes = blocks_.block_bytes();
  for (const Chain& chain : chains_) bytes += chain.pages.block_bytes();
  return bytes;
}

int64_t NuqSide::table_bytes() const {
  int64_t bytes = blocks_.table_bytes() + segments_.memory_bytes();
  for (const Chain& chain : chains_) bytes += chain.pages.table_bytes();
  return bytes;
}

}  // namespace kvquant
