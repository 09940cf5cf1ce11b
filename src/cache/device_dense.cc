#include "cache/device_dense.h"

namespace kvquant {

const std::byte* DeviceDenseSide::tile(int64_t index, int64_t head) const {
  const auto block = static_cast<size_t>(index / plan_->tiles_per_block);
  const int64_t in_block = index % plan_->tiles_per_block;
  return blocks_[block].data() + (in_block * plan_->num_kv_heads + head) * plan_->tile_bytes();
}

void DeviceDenseSide::append(const DeviceDenseRows& x, const DeviceRope& rope, CudaDevice& device,
                             DeviceArena& arena, DeviceArray<CudaDenseTarget>& targets) {
  const int64_t end = num_tokens_ + x.num_rows;
  const int64_t block_tokens = plan_->tiles_per_block * kTileTokens;
  if (num_tokens_ % block_tokens != 0) blocks_.back().own();
  while (std::ssize(blocks_) * block_tokens < end) {
    blocks_.emplace_back(arena, plan_->block_bytes());
  }
  std::vector<CudaDenseTarget> to;
  for (int64_t token = num_tokens_; token < end; ++token) {
    CudaDenseTarget target;
    target.tile = const_cast<std::byte*>(tile(token / kTileTokens, 0));
    target.token = token % kTileTokens;
    if (plan_->side == KvSide::kKey) {
      target.cos = rope.cos + token * rope.half;
      target.sin = rope.sin + token * rope.half;
    }
    to.push_back(target);
  }
  targets.assign(to);
  device.run(CudaDense{x.rows, x.stride, targets.data(), plan_->type, x.num_rows,
                       plan_->num_kv_heads, plan_->head_dim});
  num_tokens_ = end;
}

// Numbers of forgotten tokens stay in the last tile: no query sees them, and they are finite.
void DeviceDenseSide::truncate(int64_t num_tokens) {
  const int64_t block_tokens = plan_->tiles_per_block * kTileTokens;
  blocks_.resize(static_cast<size_t>((num_tokens + block_tokens - 1) / block_tokens));
  num_tokens_ = num_tokens;
}

void DeviceDenseSide::own() {
  for (auto& block : blocks_) block.own();
}

int64_t DeviceDenseSide::held_bytes() const {
  int64_t bytes = 0;
  for (const auto& block : blocks_) bytes += block.num_bytes();
  return bytes;
}

}  // namespace kvquant
