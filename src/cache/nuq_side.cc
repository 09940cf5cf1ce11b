#include "cache/nuq_side.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <cstring>
#include <utility>

#include "formats/code_bands_inl.h"
#include "formats/codec_table.h"
#include "formats/dense_tile.h"
#include "ops/hadamard.h"
#include "ops/latent.h"

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

void NuqSide::fit(const HalfRows& rows, ThreadPool& pool) {
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

void NuqSide::take_blocks(int64_t num_tokens) {
  const int64_t block_tokens = plan_->shape.num_tiles * kTileTokens;
  blocks_.own(num_tokens_ / block_tokens, (num_tokens + block_tokens - 1) / block_tokens);
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
  if (plan_->latents.empty()) return decode_stored(tile, head, planar);
  if (plan_->shape.has_codes()) {
    decode_stored(tile, head, planar);
  } else {
    read_halves(tile, head, planar);
  }
  const LatentMap& map = plan_->latents[static_cast<size_t>(head)];
  const int64_t count = std::min<int64_t>(kTileTokens, num_tokens_ - tile * kTileTokens);
  for (int64_t t = 0; t < count; ++t) {
    float latents[kMaxNuqHeadDim], row[kMaxNuqHeadDim] = {};
    for (int64_t r = 0; r < map.width; ++r) latents[r] = planar[r * kTileTokens + t];
    expand_latents(map, latents, /*weight=*/1, /*factor=*/1, row);
    for (int64_t c = 0; c < map.head_dim; ++c) planar[c * kTileTokens + t] = row[c];
  }
}

void NuqSide::read_halves(int64_t tile, int64_t head, float* planar) const {
  const int64_t width = plan_->shape.head_dim;
  const auto* stored = reinterpret_cast<const Half*>(codes(tile, head));
  for (int64_t t = 0; t < kTileTokens; ++t) {
    for (int64_t r = 0; r < width; ++r) {
      const int64_t at = has_rotated_latents() ? key_index(t, r) : value_index(t, r, width);
      planar[r * kTileTokens + t] = to_float(stored[at]);
    }
  }
}

void NuqSide::decode_stored(int64_t tile, int64_t head, float* planar) const {
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
  uint8_t wide[kTileTokens * kMaxNuqHeadDim];
  if (plan_->shape.bands.is_banded()) {
    widen_codes(job.codes, plan_->shape.bands, wide);
    job.codes = wide;
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
