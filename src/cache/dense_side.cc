#include "cache/dense_side.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/half.h"

namespace kvquant {
namespace {

constexpr int64_t kMaxHeadDim = 1024;  // of the copy on the stack; KvCache checks it

int64_t tile_index(const DensePlan& plan, int64_t token, int64_t channel) {
  return plan.side == KvSide::kKey ? key_index(token, channel)
                                   : value_index(token, channel, plan.head_dim);
}

// Of a finite number, without branches, so that loops vectorise: half subnormals become normal in
// the product, which is exact.
template <DenseType kType>
float finite_to_float(uint16_t bits) {
  if constexpr (kType == DenseType::kBF16) return to_float(BFloat16{bits});
  const float magnitude = std::bit_cast<float>((bits & 0x7FFFu) << 13) * 0x1p112f;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | (bits & 0x8000u) << 16);
}

// `count` tokens of a stored tile from token `from` on, to token `to` of an f32 tile.
template <DenseType kType>
void copy_tokens(const DensePlan& plan, const uint16_t* source, int64_t from, int64_t count,
                 int64_t to, float* out) {
  if (plan.side == KvSide::kKey) {
    for (int64_t c = 0; c < plan.head_dim; c += 2) {
      const uint16_t* in = source + key_index(from, c);
      float* target = out + key_index(to, c);
      for (int64_t i = 0; i < 2 * count; ++i) target[i] = finite_to_float<kType>(in[i]);
    }
    return;
  }
  for (int64_t t = 0; t < count; ++t) {
    const uint16_t* in = source + value_index(from + t, 0, plan.head_dim);
    float* target = out + value_index(to + t, 0, plan.head_dim);
    for (int64_t c = 0; c < plan.head_dim; ++c) {
      target[2 * c] = finite_to_float<kType>(in[2 * c]);
    }
  }
}

}  // namespace

DenseSide::~DenseSide() {
  for (std::byte* block : blocks_) plan_->pool->give(block);
}

const std::byte* DenseSide::tile(int64_t index, int64_t head) const {
  const std::byte* block = blocks_[index / plan_->tiles_per_block];
  return block +
         (index % plan_->tiles_per_block * plan_->num_kv_heads + head) * plan_->tile_bytes();
}

void DenseSide::write_token(const float* row, int64_t token, int64_t head) {
  auto* out = const_cast<std::byte*>(tile(token / kTileTokens, head));
  for (int64_t c = 0; c < plan_->head_dim; ++c) {
    const uint16_t bits =
        plan_->type == DenseType::kF16 ? to_half(row[c]).bits : to_bfloat16(row[c]).bits;
    std::memcpy(out + 2 * tile_index(*plan_, token % kTileTokens, c), &bits, 2);
  }
}

void DenseSide::append(TensorView<const float, 3> x, const RopeTable& rope, ThreadPool& pool) {
  const int64_t num_new = x.shape[0];
  const int64_t block_tokens = plan_->tiles_per_block * kTileTokens;
  while (static_cast<int64_t>(blocks_.size()) * block_tokens < num_tokens_ + num_new) {
    blocks_.reserve(blocks_.size() + 1);
    blocks_.push_back(plan_->pool->take());
  }
  const int64_t first_tile = num_tokens_ / kTileTokens;
  const int64_t end = num_tokens_ + num_new;
  const int64_t num_tiles = (end + kTileTokens - 1) / kTileTokens - first_tile;
  pool.parallel_for(num_tiles * plan_->num_kv_heads, [&](int64_t task, int) {
    const int64_t tile = first_tile + task / plan_->num_kv_heads;
    const int64_t head = task % plan_->num_kv_heads;
    float row[kMaxHeadDim];
    const int64_t stop = std::min(end, (tile + 1) * kTileTokens);
    for (int64_t t = std::max(num_tokens_, tile * kTileTokens); t < stop; ++t) {
      std::copy_n(&x(t - num_tokens_, head, 0), plan_->head_dim, row);
      if (plan_->side == KvSide::kKey) {
        rope_row(row, rope.cos(t), rope.sin(t), plan_->head_dim);
      }
      write_token(row, t, head);
    }
  });
  num_tokens_ = end;
}

void DenseSide::truncate(int64_t num_tokens) {
  const int64_t block_tokens = plan_->tiles_per_block * kTileTokens;
  const std::vector<float> zeros(static_cast<size_t>(plan_->head_dim), 0.0f);
  while ((static_cast<int64_t>(blocks_.size()) - 1) * block_tokens >= num_tokens &&
         !blocks_.empty()) {
    plan_->pool->give(blocks_.back());
    blocks_.pop_back();
  }
  const int64_t kept = static_cast<int64_t>(blocks_.size()) * block_tokens;
  for (int64_t t = num_tokens; t < std::min(kept, num_tokens_); ++t) {  // unused elements are zero
    for (int64_t head = 0; head < plan_->num_kv_heads; ++head) write_token(zeros.data(), t, head);
  }
  num_tokens_ = num_tokens;
}

void DenseSide::read_tile(int64_t first, int64_t num_tokens, int64_t head, float* out) const {
  std::fill(out, out + kTileTokens * plan_->head_dim, 0.0f);
  for (int64_t done = 0; done < num_tokens;) {
    const int64_t token = first + done, from = token % kTileTokens;
    const int64_t count = std::min(num_tokens - done, kTileTokens - from);
    const auto* source = reinterpret_cast<const uint16_t*>(tile(token / kTileTokens, head));
    if (plan_->type == DenseType::kF16) {
      copy_tokens<DenseType::kF16>(*plan_, source, from, count, done, out);
    } else {
      copy_tokens<DenseType::kBF16>(*plan_, source, from, count, done, out);
    }
    done += count;
  }
}

int64_t DenseSide::memory_bytes() const {
  return static_cast<int64_t>(blocks_.size()) *
         (plan_->pool->block_bytes() + static_cast<int64_t>(sizeof(std::byte*)));
}

}  // namespace kvquant
