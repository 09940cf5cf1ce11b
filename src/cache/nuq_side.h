// The encoded tokens of one side of one layer of one sequence: codebook indices in blocks
// (formats/kv_block.h), outliers in pages, and for keys without calibration the ranges of channels,
// fitted to the sequence. Token i here is position sink + i of the sequence. Appended tokens
// never change earlier codes.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/threads.h"
#include "cache/block_list.h"
#include "cache/half_rows.h"
#include "cache/key_segments.h"
#include "cache/stored_sequence.h"
#include "formats/kv_block.h"
#include "formats/nuq_codebook.h"
#include "formats/outlier_page.h"
#include "ops/attend.h"
#include "ops/decode.h"
#include "ops/encode.h"
#include "quant/ranges.h"

namespace kvquant {

// CodedSide::logit_bias of keys: of what independent errors of channels would ask for, the part
// that serves best, see docs/decisions/012_logit_bias.md.
inline constexpr float kLogitBias = 0.5f;

// What all sequences share of one side of one layer.
struct NuqPlan {
  KvSide side = KvSide::kKey;  // whose way of coding it is: latents of keys are coded like values
  double outlier_percent = 0;
  bool hadamard = false;                 // values: rows are rotated per head before coding
  std::span<const LatentMap> latents{};  // one per KV head; empty: no latents
  // Of latents of keys: rows are rotated first, the row of token i by position first_position + i.
  const RopeTable* rope = nullptr;
  int64_t first_position = 0;
  float largest_value = 65504;                   // of channels that can be stored
  std::span<const NuqCodebook> codebooks{};      // one, or one per KV head
  std::span<const Half> ranges{};                // calibrated keys: scale, zero, low, high, each
                                                 // [row_size]; empty: fitted per sequence
  std::span<const RoundingFeedback> feedback{};  // one per KV head; empty: none
  KvBlockShape shape{};
  KvBlockLayout layout{};
  BlockPool* pool = nullptr;
  BlockPool* pages = nullptr;  // of OutlierPage

  int64_t row_size() const { return shape.num_kv_heads * shape.head_dim; }  // as coded
  int64_t input_size() const {
    return shape.num_kv_heads * (latents.empty() ? shape.head_dim : latents[0].head_dim);
  }
  const NuqCodebook& codebook(int64_t head) const {
    return codebooks[codebooks.size() == 1 ? 0 : static_cast<size_t>(head)];
  }
};

class NuqSide {
 public:
  explicit NuqSide(const NuqPlan& plan);
  // Shares all blocks and pages; whoever writes one first copies it.
  NuqSide fork() const;

  // Fits the ranges of key channels to rows, of which there are some; only while not fitted. Values
  // need none, and calibrated keys have theirs in the plan.
  bool is_fitted() const { return !fits_keys() || !segments_.is_empty(); }
  void fit(const HalfRows& rows, ThreadPool& pool);
  // Encodes rows [num_rows, input_size] behind what is there. Fits keys anew when they have left
  // their ranges, see KeySegments.
  void append(HalfRows rows, ThreadPool& pool);

  // Appends full tiles of another side of the same plan with their ranges. Whole blocks without
  // outliers are shared; others are copied, as blocks say where in its list a tile's outliers are.
  // Requires: full tiles here.
  void append_tiles(const NuqSide& from, int64_t first_tile, int64_t num_tiles);

  int64_t num_tokens() const { return num_tokens_; }
  // One head of what is there, for attention to read as it lies; valid until the next append.
  // Requires is_fitted().
  CodedSide coded_side(int64_t head) const;
  // Planar [head_dim][64] of one tile; columns past num_tokens are any. From any thread. Latents
  // are expanded: those of keys are of rotated ones.
  void decode(int64_t tile, int64_t head, float* planar) const;
  bool has_rotated_latents() const { return plan_->rope != nullptr; }
  int64_t block_bytes() const;  // blocks and pages, shared ones, too
  // What it holds beside blocks and pages: tables of them, key parameters.
  int64_t table_bytes() const;

  // Appends this side's sections, whose names begin with `prefix`.
  void add_sections(const std::string& prefix, std::vector<StoredSection>& sections) const;
  // Reads them into an empty side of the same plan. Throws FormatError, OutOfMemory; then the side
  // can only be destroyed.
  void restore(const std::string& prefix, int64_t num_tokens, SectionReader& in);

 private:
  struct TileRef {
    std::byte* block;
    int64_t index;  // of the tile within its block
  };
  TileRef tile_ref(int64_t tile) const;
  Half* token_params(int64_t tile, int64_t head, int64_t offset) const;
  uint32_t* outlier_start(int64_t tile, int64_t head) const;
  uint16_t* outlier_count(int64_t tile, int64_t head) const;
  uint8_t* codes(int64_t tile, int64_t head) const;
  // A tile as it is stored, [shape.head_dim][64]: codes, and latents of fp16.
  void decode_stored(int64_t tile, int64_t head, float* planar) const;
  void read_halves(int64_t tile, int64_t head, float* planar) const;

  bool fits_keys() const { return plan_->side == KvSide::kKey && plan_->ranges.empty(); }
  std::span<const Half> key_ranges(int64_t tile) const {
    return fits_keys() ? segments_.ranges(tile) : plan_->ranges;
  }
  void append_rows(const HalfRows& rows, ThreadPool& pool);
  // Scales and zero points of a tile as f32: [head_dim] of keys, [64] of values.
  ScaleAxis load_params(int64_t tile, int64_t head, float* scales, float* zeros) const;

  // An append on its way: rows as they are coded, and where its outliers are.
  struct Chunk;
  // The new tokens of one tile of one head.
  struct Piece {
    int64_t tile = 0, head = 0;
    int64_t first_token = 0, num_tokens = 0;  // within the tile
    int64_t first_row = 0;                    // of the chunk
  };
  int64_t num_pieces(const Chunk& chunk) const;
  Piece piece_of(const Chunk& chunk, int64_t index) const;
  void take_blocks(int64_t num_tokens);
  void transform_rows(Chunk& chunk, int64_t first, int64_t end) const;
  void encode_rotated(const LatentMap& map, LatentRows job, int64_t first_token) const;
  void fit_token(Chunk& chunk, int64_t index, std::span<const float> row) const;
  void fit_rows(Chunk& chunk, ThreadPool& pool) const;
  // A piece's rows as they are coded: [num_tokens][head_dim], `stride` apart.
  struct PieceRows {
    const float* data;
    int64_t stride;
  };
  PieceRows rows_of(const Chunk& chunk, const Piece& piece, float* scratch) const;
  void encode_piece(Chunk& chunk, int64_t index) const;
  void encode_bands(const EncodeJob& all) const;
  void store_latents(const Piece& piece, PieceRows rows) const;
  void take_outliers(Chunk& chunk, int64_t index, PieceRows rows) const;
  void store_outliers(const Chunk& chunk);
  template <class Fn>
  void for_each_outlier(const Chunk& chunk, int64_t index, Fn&& fn) const;
  void copy_tile(const NuqSide& from, int64_t tile);
  void restore_ranges(const std::string& prefix, SectionReader& in);
  void restore_outliers(const std::string& name, SectionReader& in);
  void check_entries(int64_t head, int64_t tile, const SectionReader& in) const;

  const NuqPlan* plan_;
  int64_t num_tokens_ = 0;
  BlockList<std::byte> blocks_;
  KeySegments segments_;
  struct Chain {
    int64_t num_entries = 0;
    BlockList<OutlierPage> pages;
  };
  std::vector<Chain> chains_;  // per KV head, when there are outliers
};

}  // namespace kvquant
