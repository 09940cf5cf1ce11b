#include "cache/device_dense.h"

namespace kvquant {

const std::byte* DeviceDenseSide::tile(int64_t index, int64_t head) const {
  const auto block = static_cast<size_t>(index / plan_->tiles_per_block);
  const int64_t in_block = index % plan_->tiles_per_block;
  return blocks_[block].data() + (in_block * plan_->num_kv_heads + head) * plan_->tile_bytes();
}

CudaSide DeviceDenseSide::cuda_side(int64_t first) const {
  CudaSide side;
  side.source = TileSource::kDense;
  side.type = plan_->type;
  side.pieces = reinterpret_cast<const void* const*>(table_.data());
  side.tiles_per_piece = plan_->tiles_per_block;
  side.tile_stride = plan_->num_kv_heads * plan_->tile_bytes();
  side.head_step = plan_->tile_bytes();
  side.first_tile = first / kTileTokens;
  side.offset = first % kTileTokens;
  return side;
}

void DeviceDenseSide::keep_table(CudaDevice& device, DeviceArena& arena) {
  std::vector<std::byte*> blocks;
  for (const auto& block : blocks_) blocks.push_back(block.data());
  table_.assign(std::span<std::byte* const>(blocks), device, arena);
}

void DeviceDenseSide::append(const DeviceDenseRows& x, const DeviceRope& rope, CudaDevice& device,
                             DeviceArena& arena, DeviceRowQueue& queue) {
  const int64_t end = num_tokens_ + x.num_rows;
  const int64_t block_tokens = plan_->tiles_per_block * kTileTokens;
  bool has_changed = std::ssize(blocks_) * block_tokens < end;
  if (num_tokens_ % block_tokens != 0 && blocks_.back().is_shared()) {
    blocks_.back().own();
    has_changed = true;
  }
  while (std::ssize(blocks_) * block_tokens < end) {
    blocks_.emplace_back(arena, plan_->block_bytes());
  }
  if (has_changed) keep_table(device, arena);
  std::vector<CudaDenseTarget> to;
  for (int64_t token = num_tokens_; token < end; ++token) {
    CudaDenseTarget target;
    target.row = x.rows + (token - num_tokens_) * x.stride;
    target.tile = const_cast<std::byte*>(tile(token / kTileTokens, 0));
    target.token = token % kTileTokens;
    target.side = plan_->side;
    if (plan_->side == KvSide::kKey) {
      target.cos = rope.cos + token * rope.half;
      target.sin = rope.sin + token * rope.half;
    }
    to.push_back(target);
  }
  queue.store(plan_->type, to);
  num_tokens_ = end;
}

// Numbers of forgotten tokens stay in the last tile: no query sees them, and they are finite.
void DeviceDenseSide::truncate(int64_t num_tokens) {
  const int64_t block_tokens = plan_->tiles_per_block * kTileTokens;
  blocks_.resize(static_cast<size_t>((num_tokens + block_tokens - 1) / block_tokens));
  num_tokens_ = num_tokens;
}

void DeviceDenseSide::own(CudaDevice& device, DeviceArena& arena) {
  for (auto& block : blocks_) block.own();
  if (!blocks_.empty()) keep_table(device, arena);
}

int64_t DeviceDenseSide::held_bytes() const {
  int64_t bytes = table_.num_bytes();
  for (const auto& block : blocks_) bytes += block.num_bytes();
  return bytes;
}

}  // namespace kvquant
