// For tests: what one layer of one sequence holds, by the words of docs/formats.md, as pieces of so
// many bytes. A copy shares the pieces, as a fork does; a piece that others have is replaced before
// it is written.
#pragma once

#include <algorithm>
#include <memory>
#include <set>
#include <vector>

#include "cache/kv_cache_test_model.h"
#include "formats/kv_block.h"

namespace kvquant::test {

using Piece = std::shared_ptr<const int64_t>;  // bytes

class ModelMemory {
 public:
  ModelMemory(const KvShape& shape, int64_t block, const ModelLayer& layer) {
    for (const ModelSide* side : {&layer.key, &layer.value}) {
      Side& memory = sides_[side->is_key ? 0 : 1];
      const int64_t row_size = shape.num_kv_heads * shape.head_dim;
      memory.row_bytes = row_size * 2;
      memory.block_tokens = block;
      memory.is_nuq = is_compressed(side->codec);
      memory.block_bytes = block * row_size * (side->codec.quantizer == Quantizer::kF32 ? 4 : 2);
      if (!memory.is_nuq) continue;
      const bool sparse = side->codec.outlier_percent > 0;
      const bool is_half = side->codec.quantizer == Quantizer::kF16;
      memory.block_bytes =
          kv_block_layout({side->is_key && side->basis.rank == 0 ? KvSide::kKey : KvSide::kValue,
                           is_half ? kLatentBits : code_bits(side->codec.quantizer), sparse,
                           shape.num_kv_heads, side->coded_dim(), block / kTileTokens,
                           side->basis.rank > 0})
              .num_bytes;
      const bool has_ranges = side->is_key && side->basis.rank == 0;
      memory.ranges_bytes = has_ranges ? memory.row_bytes * (sparse ? 4 : 2) : 0;
      if (sparse) memory.pages.resize(static_cast<size_t>(shape.num_kv_heads));
    }
  }

  // After tokens were appended, `before` having been there.
  void appended(const ModelLayer& layer, int64_t before) {
    for (Side& side : sides_) {
      if (!side.is_nuq)
        write(side.blocks, before, layer.length(), side.block_tokens, side.block_bytes);
      if (!side.is_nuq || before >= layer.sink) continue;
      own(side.sinks, layer.sink * side.row_bytes);
    }
    pending_ = layer.length() - std::max(before, layer.sink);
    if (layer.mode == CacheMode::kStrict) encoded(layer);
  }

  void settled(const ModelLayer& layer) {
    if (pending_ <= 0) return;
    const bool strict = layer.mode == CacheMode::kStrict;
    if (!strict) encoded(layer);
    const int64_t behind_sinks = layer.length() - layer.sink;
    const int64_t rows =
        strict ? std::min(layer.recent, behind_sinks) : behind_sinks - layer.num_encoded;
    const int64_t most = strict ? layer.recent : layer.recent + kTileTokens;
    for (Side& side : sides_) {
      if (!side.is_nuq || rows == 0) continue;
      int64_t capacity = bytes(side.window) / side.row_bytes;
      if (rows > capacity) {
        for (capacity = 64; capacity < rows;) capacity *= 2;
        capacity = std::min(most, capacity);
      }
      own(side.window, capacity * side.row_bytes);
    }
    pending_ = 0;
  }

  void truncated(int64_t length, int64_t before) {
    for (Side& side : sides_) {
      if (side.is_nuq) continue;
      const auto kept = static_cast<size_t>((length + side.block_tokens - 1) / side.block_tokens);
      if (length < before && length % side.block_tokens != 0) {
        own(side.blocks[kept - 1], side.block_bytes);
      }
      side.blocks.resize(std::min(kept, side.blocks.size()));
    }
  }

  // Adds the pieces to those of other layers, and returns the bytes that are never shared.
  int64_t collect(std::set<Piece>& pieces) const {
    int64_t bytes = 0;
    const auto add = [&](const Piece& piece) {
      if (piece != nullptr) pieces.insert(piece);
    };
    for (const Side& side : sides_) {
      for (const Piece& block : side.blocks) add(block);
      bytes += static_cast<int64_t>(side.blocks.size()) * 8;
      for (const auto& chain : side.pages) {
        for (const Piece& page : chain) add(page);
        bytes += static_cast<int64_t>(chain.size()) * 8;
      }
      add(side.sinks);
      add(side.window);
      if (num_encoded_ > 0) bytes += side.ranges_bytes;
    }
    return bytes;
  }

 private:
  struct Side {
    bool is_nuq = false;
    int64_t row_bytes = 0, block_tokens = 0, block_bytes = 0, ranges_bytes = 0;
    std::vector<Piece> blocks;
    std::vector<std::vector<Piece>> pages;  // per KV head
    std::vector<int64_t> num_outliers;      // per KV head
    Piece sinks, window;
  };

  static int64_t bytes(const Piece& piece) { return piece == nullptr ? 0 : *piece; }
  static void own(Piece& piece, int64_t size) {
    if (piece.use_count() != 1 || *piece < size) piece = std::make_shared<const int64_t>(size);
  }
  // Elements [before, after) of an array in pieces.
  static void write(std::vector<Piece>& pieces, int64_t before, int64_t after, int64_t per_piece,
                    int64_t size) {
    if (after == before) return;
    pieces.resize(static_cast<size_t>((after + per_piece - 1) / per_piece));
    for (auto i = static_cast<size_t>(before / per_piece); i < pieces.size(); ++i) {
      own(pieces[i], size);
    }
  }

  void encoded(const ModelLayer& layer) {
    for (Side& side : sides_) {
      if (!side.is_nuq) continue;
      write(side.blocks, num_encoded_, layer.num_encoded, side.block_tokens, side.block_bytes);
      const ModelSide& model = &side == &sides_[0] ? layer.key : layer.value;
      side.num_outliers.resize(side.pages.size());
      for (size_t head = 0; head < side.pages.size(); ++head) {
        int64_t& count = side.num_outliers[head];
        const int64_t before = count;
        for (int64_t t = num_encoded_; t < layer.num_encoded; ++t) {
          const auto marks = model.outliers[static_cast<size_t>(layer.sink + t)].begin() +
                             static_cast<int64_t>(head) * model.coded_dim();
          count += std::count(marks, marks + model.coded_dim(), 1);
        }
        write(side.pages[head], before, count, 128, 512);
      }
    }
    num_encoded_ = layer.num_encoded;
  }

  Side sides_[2];  // keys, values
  int64_t num_encoded_ = 0;
  int64_t pending_ = 0;
};

}  // namespace kvquant::test
