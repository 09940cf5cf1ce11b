#include "cache/dense_side.h"

#include <algorithm>
#include <span>
#include <type_traits>

#include "base/finite_half.h"
#include "base/half.h"
#include "ops/rows.h"

namespace kvquant {
namespace {

constexpr int64_t kMaxHeadDim = 1024;  // of the copy on the stack; KvCache checks it

float finite_to_float(BFloat16 x) { return to_float(x); }
float finite_to_float(float x) { return x; }

// KvCache checks that numbers are within the type's range.
void round_row(std::span<const float> row, Half* out) { narrow(row, out); }
void round_row(std::span<const float> row, BFloat16* out) {
  std::transform(row.begin(), row.end(), out, [](float x) { return to_bfloat16(x); });
}
void round_row(std::span<const float> row, float* out) { std::ranges::copy(row, out); }

// A token's row to its place in a tile.
template <class T>
void put_row(const DensePlan& plan, const T* row, int64_t token, T* tile) {
  if (plan.side == KvSide::kKey) {
    for (int64_t c = 0; c < plan.head_dim; c += 2) {
      std::copy_n(row + c, 2, tile + key_index(token, c));
    }
    return;
  }
  T* out = tile + value_index(token, 0, plan.head_dim);
  for (int64_t c = 0; c < plan.head_dim; ++c) out[2 * c] = row[c];
}

// `count` tokens of a stored tile from token `from` on, to token `to` of an f32 tile.
template <class T>
void copy_tokens(const DensePlan& plan, const T* source, int64_t from, int64_t count, int64_t to,
                 float* out) {
  if (plan.side == KvSide::kKey) {
    for (int64_t c = 0; c < plan.head_dim; c += 2) {
      const T* in = source + key_index(from, c);
      float* target = out + key_index(to, c);
      for (int64_t i = 0; i < 2 * count; ++i) target[i] = finite_to_float(in[i]);
    }
    return;
  }
  for (int64_t t = 0; t < count; ++t) {
    const T* in = source + value_index(from + t, 0, plan.head_dim);
    float* target = out + value_index(to + t, 0, plan.head_dim);
    for (int64_t c = 0; c < plan.head_dim; ++c) target[2 * c] = finite_to_float(in[2 * c]);
  }
}

// Calls fn with the bytes as a pointer to elements of the type.
template <class Bytes, class Fn>
void with_elements(DenseType type, Bytes* bytes, const Fn& fn) {
  const auto as = [&]<class T>(T*) {
    fn(reinterpret_cast<std::conditional_t<std::is_const_v<Bytes>, const T, T>*>(bytes));
  };
  switch (type) {
    case DenseType::kF16: return as(static_cast<Half*>(nullptr));
    case DenseType::kBF16: return as(static_cast<BFloat16*>(nullptr));
    case DenseType::kF32: return as(static_cast<float*>(nullptr));
  }
}

}  // namespace

DenseSide DenseSide::fork() const {
  DenseSide out(*plan_);
  out.num_tokens_ = num_tokens_;
  out.blocks_ = blocks_.fork();
  return out;
}

const std::byte* DenseSide::tile(int64_t index, int64_t head) const {
  const std::byte* block = blocks_[index / plan_->tiles_per_block];
  return block +
         (index % plan_->tiles_per_block * plan_->num_kv_heads + head) * plan_->tile_bytes();
}

void DenseSide::write_token(const float* row, int64_t token, int64_t head) {
  auto* out = const_cast<std::byte*>(tile(token / kTileTokens, head));
  with_elements(plan_->type, out, [&]<class T>(T* elements) {
    T rounded[kMaxHeadDim];
    round_row({row, static_cast<size_t>(plan_->head_dim)}, rounded);
    put_row(*plan_, rounded, token % kTileTokens, elements);
  });
}

void DenseSide::append(TensorView<const float, 3> x, const RopeTable& rope, ThreadPool& pool) {
  const int64_t num_new = x.shape[0];
  const int64_t end = num_tokens_ + num_new;
  blocks_.own(num_tokens_ / block_tokens(), (end + block_tokens() - 1) / block_tokens());
  const int64_t first_tile = num_tokens_ / kTileTokens;
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

void DenseSide::prepare_truncate(int64_t num_tokens) {
  if (num_tokens < num_tokens_ && num_tokens % block_tokens() != 0) {
    const int64_t last = num_tokens / block_tokens();
    blocks_.own(last, last + 1);
  }
}

void DenseSide::truncate(int64_t num_tokens) {
  const float zeros[kMaxHeadDim] = {};
  blocks_.shrink((num_tokens + block_tokens() - 1) / block_tokens());
  const int64_t kept = blocks_.size() * block_tokens();
  for (int64_t t = num_tokens; t < std::min(kept, num_tokens_); ++t) {  // unused elements are zero
    for (int64_t head = 0; head < plan_->num_kv_heads; ++head) write_token(zeros, t, head);
  }
  num_tokens_ = num_tokens;
}

void DenseSide::read_tile(int64_t first, int64_t num_tokens, int64_t head, float* out) const {
  std::fill(out, out + kTileTokens * plan_->head_dim, 0.0f);
  for (int64_t done = 0; done < num_tokens;) {
    const int64_t token = first + done, from = token % kTileTokens;
    const int64_t count = std::min(num_tokens - done, kTileTokens - from);
    with_elements(plan_->type, tile(token / kTileTokens, head),
                  [&](const auto* source) { copy_tokens(*plan_, source, from, count, done, out); });
    done += count;
  }
}

}  // namespace kvquant
