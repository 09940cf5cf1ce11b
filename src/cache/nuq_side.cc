#include "cache/nuq_side.h"

#include <algorithm>
#include <cassert>
#include <cstring>

#include "formats/codec_table.h"
#include "ops/encode.h"

namespace kvquant {

NuqSide::NuqSide(const NuqPlan& plan)
    : plan_(&plan), chains_(plan.shape.has_outliers ? plan.shape.num_kv_heads : 0) {}

NuqSide::~NuqSide() {
  for (std::byte* block : blocks_) plan_->pool->give(block);
  for (const Chain& chain : chains_) {
    for (OutlierPage* page : chain.pages) plan_->pages->give(reinterpret_cast<std::byte*>(page));
  }
}

NuqSide::TileRef NuqSide::tile_ref(int64_t tile) const {
  return {blocks_[tile / plan_->shape.num_tiles], tile % plan_->shape.num_tiles};
}

Half* NuqSide::token_params(int64_t tile, int64_t offset) const {
  const TileRef at = tile_ref(tile);
  return reinterpret_cast<Half*>(at.block + offset) + at.index * kTileTokens;
}

uint32_t* NuqSide::outlier_start(int64_t tile, int64_t head) const {
  const TileRef at = tile_ref(tile);
  return reinterpret_cast<uint32_t*>(at.block + plan_->layout.starts) +
         at.index * plan_->shape.num_kv_heads + head;
}

uint8_t* NuqSide::outlier_counts(int64_t tile, int64_t head) const {
  const TileRef at = tile_ref(tile);
  return reinterpret_cast<uint8_t*>(at.block + plan_->layout.counts) +
         (at.index * plan_->shape.num_kv_heads + head) * kTileTokens *
             outlier_count_bytes(plan_->shape.head_dim);
}

uint8_t* NuqSide::codes(int64_t tile, int64_t head) const {
  const TileRef at = tile_ref(tile);
  return reinterpret_cast<uint8_t*>(at.block) +
         (at.index * plan_->shape.num_kv_heads + head) * plan_->layout.code_tile;
}

void NuqSide::fit(std::span<const float> rows, ThreadPool& pool) {
  assert(!is_fitted());
  const int64_t size = plan_->row_size();
  const auto num_rows = static_cast<int64_t>(rows.size()) / size;
  assert(num_rows > 0);
  ranges_.resize(size * (plan_->shape.has_outliers ? 4 : 2));
  std::vector<float> columns(rows.size());
  pool.parallel_for(plan_->shape.num_kv_heads, [&](int64_t head, int) {
    const int64_t head_dim = plan_->shape.head_dim;
    for (int64_t c = head * head_dim; c < (head + 1) * head_dim; ++c) {
      const std::span column = std::span(columns).subspan(c * num_rows, num_rows);
      for (int64_t t = 0; t < num_rows; ++t) column[t] = rows[t * size + c];
      const ChannelRange range = fit_channel(column, plan_->outlier_percent);
      ranges_[c] = range.scale;
      ranges_[size + c] = range.zero;
      if (plan_->shape.has_outliers) {
        ranges_[2 * size + c] = range.low;
        ranges_[3 * size + c] = range.high;
      }
    }
  });
}

ScaleAxis NuqSide::load_params(int64_t tile, int64_t head, float* scales, float* zeros) const {
  const bool is_key = plan_->side == KvSide::kKey;
  const int64_t count = is_key ? plan_->shape.head_dim : kTileTokens;
  const Half* scale =
      is_key ? ranges_.data() + head * count : token_params(tile, plan_->layout.scales);
  const Half* zero = is_key ? scale + plan_->row_size() : token_params(tile, plan_->layout.zeros);
  for (int64_t i = 0; i < count; ++i) scales[i] = to_float(scale[i]);
  for (int64_t i = 0; i < count; ++i) zeros[i] = to_float(zero[i]);
  return is_key ? ScaleAxis::kChannel : ScaleAxis::kToken;
}

// Finds the outliers of one token and, for values, its scale and zero point.
void NuqSide::mark_token(std::span<const float> row, int64_t token,
                         std::span<uint8_t> marks) const {
  const int64_t size = plan_->row_size();
  if (plan_->side == KvSide::kValue) {
    const RowRange range = fit_row(row, num_value_outliers(size, plan_->outlier_percent), marks);
    token_params(token / kTileTokens, plan_->layout.scales)[token % kTileTokens] = range.scale;
    token_params(token / kTileTokens, plan_->layout.zeros)[token % kTileTokens] = range.zero;
  } else if (plan_->shape.has_outliers) {
    for (int64_t c = 0; c < size; ++c) {
      const bool below = row[c] < to_float(ranges_[2 * size + c]);
      marks[c] = below || row[c] > to_float(ranges_[3 * size + c]) ? 1 : 0;
    }
  }
}

// Codes of the new rows that fall into one tile of one head.
void NuqSide::encode_piece(std::span<const float> rows, int64_t tile, int64_t head) const {
  const int64_t size = plan_->row_size(), head_dim = plan_->shape.head_dim;
  const int64_t end = num_tokens_ + static_cast<int64_t>(rows.size()) / size;
  const int64_t first = std::max(num_tokens_, tile * kTileTokens);
  const int64_t stop = std::min(end, (tile + 1) * kTileTokens);
  float planar[kMaxNuqHeadDim * kTileTokens];
  float scales[kMaxNuqHeadDim], zeros[kMaxNuqHeadDim];
  const ScaleAxis axis = load_params(tile, head, scales, zeros);
  for (int64_t t = first; t < stop; ++t) {
    const float* row = &rows[(t - num_tokens_) * size + head * head_dim];
    for (int64_t c = 0; c < head_dim; ++c) planar[c * kTileTokens + t % kTileTokens] = row[c];
  }
  EncodeJob job{.codebook = plan_->codebook,
                .planar = planar,
                .scales = scales,
                .zeros = zeros,
                .axis = axis,
                .head_dim = head_dim,
                .first_token = first % kTileTokens,
                .num_tokens = stop - first,
                .codes = codes(tile, head)};
  encode_tile(job);
}

// Appends the marked values of one head to its list, token after token.
void NuqSide::add_outliers(std::span<const float> rows, std::span<const uint8_t> marks,
                           int64_t head) {
  const int64_t size = plan_->row_size(), head_dim = plan_->shape.head_dim;
  const auto num_rows = static_cast<int64_t>(rows.size()) / size;
  Chain& chain = chains_[head];
  for (int64_t i = 0; i < num_rows; ++i) {
    const int64_t tile = (num_tokens_ + i) / kTileTokens;
    const int64_t token = (num_tokens_ + i) % kTileTokens;
    if (token == 0) *outlier_start(tile, head) = static_cast<uint32_t>(chain.num_entries);
    uint16_t count = 0;
    for (int64_t c = 0; c < head_dim; ++c) {
      const int64_t at = i * size + head * head_dim + c;
      if (marks[at] == 0) continue;
      const int64_t entry = chain.num_entries % kOutliersPerPage;
      if (entry == 0) {
        chain.pages.reserve(chain.pages.size() + 1);
        chain.pages.push_back(reinterpret_cast<OutlierPage*>(plan_->pages->take()));
      }
      chain.pages.back()->channel[entry] = static_cast<uint8_t>(c);
      chain.pages.back()->value[entry] = to_half(rows[at]);
      ++chain.num_entries;
      ++count;
    }
    const int64_t width = outlier_count_bytes(head_dim);
    std::memcpy(outlier_counts(tile, head) + token * width, &count, static_cast<size_t>(width));
  }
}

void NuqSide::append(std::span<const float> rows, ThreadPool& pool) {
  const int64_t size = plan_->row_size(), num_heads = plan_->shape.num_kv_heads;
  const auto num_rows = static_cast<int64_t>(rows.size()) / size;
  if (num_rows == 0) return;
  assert(is_fitted());
  const int64_t end = num_tokens_ + num_rows;
  const int64_t block_tokens = plan_->shape.num_tiles * kTileTokens;
  while (static_cast<int64_t>(blocks_.size()) * block_tokens < end) {
    blocks_.reserve(blocks_.size() + 1);
    blocks_.push_back(plan_->pool->take());
  }
  std::vector<uint8_t> marks(rows.size());
  constexpr int64_t kRowsPerTask = 16;
  pool.parallel_for((num_rows + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task, int) {
    for (int64_t i = task * kRowsPerTask; i < std::min(num_rows, (task + 1) * kRowsPerTask); ++i) {
      mark_token(rows.subspan(i * size, size), num_tokens_ + i,
                 std::span(marks).subspan(i * size, size));
    }
  });
  const int64_t first_tile = num_tokens_ / kTileTokens;
  const int64_t num_tiles = (end + kTileTokens - 1) / kTileTokens - first_tile;
  pool.parallel_for(num_tiles * num_heads, [&](int64_t task, int) {
    encode_piece(rows, first_tile + task / num_heads, task % num_heads);
  });
  if (plan_->shape.has_outliers) {  // on one thread: they share the pool of pages
    for (int64_t head = 0; head < num_heads; ++head) add_outliers(rows, marks, head);
  }
  num_tokens_ = end;
}

void NuqSide::decode(int64_t tile, int64_t head, float* planar) const {
  const int64_t head_dim = plan_->shape.head_dim;
  float scales[kMaxNuqHeadDim], zeros[kMaxNuqHeadDim];
  const ScaleAxis axis = load_params(tile, head, scales, zeros);
  DecodeJob job{.codebook = plan_->codebook,
                .codes = codes(tile, head),
                .scales = scales,
                .zeros = zeros,
                .axis = axis,
                .head_dim = head_dim,
                .num_tokens = std::min<int64_t>(kTileTokens, num_tokens_ - tile * kTileTokens)};
  if (plan_->shape.has_outliers) {
    job.outliers = {outlier_counts(tile, head), *outlier_start(tile, head), chains_[head].pages};
  }
  decode_tile(job, planar);
}

int64_t NuqSide::memory_bytes() const {
  constexpr auto kPointer = static_cast<int64_t>(sizeof(void*));
  int64_t bytes = static_cast<int64_t>(blocks_.size()) * (plan_->pool->block_bytes() + kPointer);
  bytes += static_cast<int64_t>(ranges_.size() * sizeof(Half));
  for (const Chain& chain : chains_) {
    bytes += static_cast<int64_t>(chain.pages.size()) *
             (static_cast<int64_t>(sizeof(OutlierPage)) + kPointer);
  }
  return bytes;
}

}  // namespace kvquant
