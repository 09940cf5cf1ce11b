// The keys (after RoPE) or values of one layer of one sequence in fp16, bf16 or fp32: tiles of
// dense_tile.h in blocks from a pool, token 0 first.
#pragma once

#include <cstdint>

#include "base/threads.h"
#include "cache/block_list.h"
#include "cache/stored_sequence.h"
#include "formats/dense_tile.h"
#include "formats/kv_block.h"
#include "kvquant/tensor_view.h"
#include "ops/rope.h"

namespace kvquant {

// What all sequences share of one side of one layer.
struct DensePlan {
  KvSide side = KvSide::kKey;
  DenseType type = DenseType::kF16;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t tiles_per_block = 0;
  BlockPool* pool = nullptr;

  int64_t tile_bytes() const { return kTileTokens * head_dim * element_bytes(type); }
  int64_t block_bytes() const { return tiles_per_block * num_kv_heads * tile_bytes(); }
};

class DenseSide {
 public:
  explicit DenseSide(const DensePlan& plan) : plan_(&plan), blocks_(*plan.pool) {}
  // Shares all blocks; whoever writes one first copies it.
  DenseSide fork() const;

  // x [num_new, num_kv_heads, head_dim]; keys are rotated by `rope` and then rounded.
  void append(TensorView<const float, 3> x, const RopeTable& rope, ThreadPool& pool);
  // Forgets the tokens from num_tokens on. Requires prepare_truncate(num_tokens), which throws
  // OutOfMemory and changes nothing that can be read.
  void prepare_truncate(int64_t num_tokens);
  void truncate(int64_t num_tokens);
  int64_t num_tokens() const { return num_tokens_; }

  const std::byte* tile(int64_t index, int64_t head) const;
  // Tokens [first, first + num_tokens) as f32 in tile layout, zeros behind them; num_tokens <= 64.
  void read_tile(int64_t first, int64_t num_tokens, int64_t head, float* out) const;
  int64_t block_bytes() const { return blocks_.block_bytes(); }  // shared ones, too
  int64_t table_bytes() const { return blocks_.table_bytes(); }

  // Appends this side's sections, whose names begin with `prefix`.
  void add_sections(const std::string& prefix, std::vector<StoredSection>& sections) const;
  // Reads them into an empty side of the same plan. Throws FormatError, OutOfMemory; then the side
  // can only be destroyed.
  void restore(const std::string& prefix, int64_t num_tokens, SectionReader& in);

 private:
  int64_t block_tokens() const { return plan_->tiles_per_block * kTileTokens; }
  void write_token(const float* row, int64_t token, int64_t head);

  const DensePlan* plan_;
  int64_t num_tokens_ = 0;
  BlockList<std::byte> blocks_;
};

}  // namespace kvquant
