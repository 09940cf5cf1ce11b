// One side of random coded tokens as the cache would hold it: for the tests of attention over
// codes.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

#include "formats/kv_block.h"
#include "ops/attend_test_cache.h"
#include "ops/attend_test_codec.h"

namespace kvquant::testing {

// One side of one layer in blocks of two tiles with three KV heads, of which the middle one is
// read; keys get other scales and zero points every few tiles. What no kernel may use is there to
// be noticed: codes and outliers of other heads, entries before the first, parameters of tokens
// that are not there yet.
class TestCodedSide {
 public:
  static constexpr int64_t kKvHeads = 3;
  static constexpr int64_t kHead = 1;
  static constexpr int64_t kBlockTiles = 2;
  static constexpr int64_t kFirstEntry = 100;  // not the beginning of a page
  static constexpr int64_t kSegmentTiles = 3;

  TestCodedSide(KvSide kind, const TestCodec& codec, int64_t head_dim, int64_t num_tokens,
                TestRandom& random)
      : book_(test_codebook(kind == KvSide::kKey ? codec.key_bits : codec.value_bits, random)),
        outlier_rate_((kind == KvSide::kKey ? codec.key_outliers : codec.value_outliers) / 100.0),
        head_dim_(head_dim),
        num_tokens_(num_tokens),
        has_key_tiles_(codec.key_tiles) {
    side.codebook = &book_;
    side.shape = {kind,
                  kind == KvSide::kKey ? codec.key_bits : codec.value_bits,
                  outlier_rate_ > 0,
                  kKvHeads,
                  head_dim,
                  kBlockTiles,
                  kind == KvSide::kValue && codec.latents};
    if (kind == KvSide::kValue) side.shape.bands = codec.bands;
    side.layout = kv_block_layout(side.shape);
    side.head = kHead;
    side.hadamard = kind == KvSide::kValue && codec.hadamard;
    if (kind == KvSide::kKey) side.logit_bias = 100;  // else too little to see
    const int64_t num_tiles = (num_tokens + kTileTokens - 1) / kTileTokens;
    for (int64_t i = 0; i < num_tiles; i += kBlockTiles) {
      memory_.emplace_back(side.layout.num_bytes);
      blocks_.push_back(memory_.back().data());
    }
    if (side.shape.has_outliers) {
      for (int64_t i = 0; i < kFirstEntry; ++i) entries_.push_back({place_of_any(random), kWrong});
    }
    for (int64_t tile = kSegmentTiles; tile < num_tiles; tile += kSegmentTiles) {
      segment_starts_.push_back(static_cast<int32_t>(tile));
    }
    draw_params(random);
    for (int64_t tile = 0; tile < num_tiles; ++tile) fill_tile(tile, random);
    make_pages();
    side.blocks = blocks_;
    side.pages = pages_;
    if (kind == KvSide::kKey) {
      side.scales = scales_.data();
      side.zeros = zeros_.data();
      side.segment_starts = segment_starts_;
      side.segment_stride = head_dim;
    }
  }
  TestCodedSide(const TestCodedSide&) = delete;
  TestCodedSide& operator=(const TestCodedSide&) = delete;

  // Values: all channels of tokens of the first segment become 1, of the others 0, so that an
  // output is the weight of the first.
  void mark_first_segment() {
    for (size_t tile = 0; tile < blocks_.size() * kBlockTiles; ++tile) {
      const auto first = static_cast<int64_t>(tile % kBlockTiles * kTileTokens);
      auto* scales = reinterpret_cast<Half*>(blocks_[tile / kBlockTiles] + side.layout.scales);
      auto* zeros = reinterpret_cast<Half*>(blocks_[tile / kBlockTiles] + side.layout.zeros);
      std::fill_n(scales + first, kTileTokens, to_half(0));
      std::fill_n(zeros + first, kTileTokens, to_half(tile < kSegmentTiles ? 1 : 0));
    }
  }

  // What is stored for a token: before RoPE, or before the inverse rotation of values.
  double stored(int64_t token, int64_t channel) const {
    return stored_[static_cast<size_t>(token * head_dim_ + channel)];
  }

  CodedSide side;

 private:
  static constexpr Half kWrong = to_half(3000.0f);

  uint16_t place_of_any(TestRandom& random) const {
    return outlier_place(random.below(kTileTokens), random.below(head_dim_));
  }

  // A power of ten with an exponent between -2 and 0, and a zero point of up to three times
  // that: keys have it per channel, values per token.
  void draw_params(TestRandom& random) {
    const auto num_segments = static_cast<int64_t>(segment_starts_.size()) + 1;
    const bool is_key = side.shape.side == KvSide::kKey;
    const int64_t count = is_key ? num_segments * head_dim_ : num_tokens_;
    for (int64_t i = 0; i < count; ++i) {
      const double scale = std::pow(10.0, 2 * random.uniform() - 2);
      scales_.push_back(to_half(static_cast<float>(scale)));
      zeros_.push_back(to_half(static_cast<float>(scale * 3 * (2 * random.uniform() - 1))));
    }
    stored_.resize(static_cast<size_t>(num_tokens_ * head_dim_));
  }

  std::byte* block_of(int64_t tile) { return blocks_[static_cast<size_t>(tile / kBlockTiles)]; }
  uint8_t* codes_of(int64_t tile, int64_t head) {
    return reinterpret_cast<uint8_t*>(block_of(tile)) + side.layout.codes(head, tile % kBlockTiles);
  }

  void fill_tile(int64_t tile, TestRandom& random) {
    for (int64_t head = 0; head < kKvHeads; ++head) {
      if (head == kHead) continue;
      uint8_t* codes = codes_of(tile, head);
      for (int64_t i = 0; i < side.layout.code_tile; ++i) {
        codes[i] = static_cast<uint8_t>(random.below(256));
      }
    }
    if (side.shape.side == KvSide::kValue) store_token_params(tile);
    const auto start = static_cast<uint32_t>(entries_.size());
    const int64_t end = std::min<int64_t>(kTileTokens, num_tokens_ - tile * kTileTokens);
    for (int64_t t = 0; t < end; ++t) {
      for (int64_t c = 0; c < head_dim_; ++c) fill_element(tile, t, c, random);
    }
    if (!side.shape.has_outliers) return;
    auto* starts = reinterpret_cast<uint32_t*>(block_of(tile) + side.layout.starts);
    auto* counts = reinterpret_cast<uint16_t*>(block_of(tile) + side.layout.counts);
    for (int64_t head = 0; head < kKvHeads; ++head) {
      const int64_t index = tile % kBlockTiles * kKvHeads + head;
      starts[index] = head == kHead ? start : 0;
      counts[index] = static_cast<uint16_t>(head == kHead ? entries_.size() - start : 50);
    }
  }

  void fill_element(int64_t tile, int64_t t, int64_t channel, TestRandom& random) {
    const int64_t token = tile * kTileTokens + t;
    const bool is_key = side.shape.side == KvSide::kKey;
    const auto axis =
        static_cast<size_t>(is_key ? tile / kSegmentTiles * head_dim_ + channel : token);
    const double scale = to_float(scales_[axis]), zero = to_float(zeros_[axis]);
    double& stored = stored_[static_cast<size_t>(token * head_dim_ + channel)];
    const float y = random.heavy_tailed();
    if (side.shape.has_outliers && random.uniform() < outlier_rate_) {
      const Half value = to_half(static_cast<float>(zero + scale * (y < 0 ? y - 1 : y + 1)));
      entries_.push_back({outlier_place(t, channel), value});
      stored = to_float(value);
      return;
    }
    if (!side.shape.has_codes()) {
      auto* elements = reinterpret_cast<Half*>(codes_of(tile, kHead));
      elements[has_key_tiles_ ? key_index(t, channel) : value_index(t, channel, head_dim_)] =
          to_half(y);
      stored = round_to_half(y);
      return;
    }
    if (side.shape.bands.is_banded()) {
      stored = level_of(book_, add_band_code(codes_of(tile, kHead), t, channel, y / 3)) * scale;
      stored += zero;
      return;
    }
    const int code = code_of(book_, y / 3);
    add_code(codes_of(tile, kHead), book_.bits, code_place(side.shape.side, head_dim_, t, channel),
             code);
    stored = double{level_of(book_, code)} * scale + zero;
  }

  // Returns the code of 8 bits that it widens to.
  int add_band_code(uint8_t* tile, int64_t t, int64_t channel, float y) const {
    for_each_band(side.shape.bands, [&](const CodeBand& band) {
      const int64_t within = channel - band.first_channel;
      if (within < 0 || within >= band.num_channels) return;
      add_code(tile + band.offset, band.bits,
               code_place(KvSide::kValue, band.num_channels, t, within),
               code_of(make_uniform_codebook(band.bits), y));
    });
    return band_code_at(tile, side.shape.bands, t, channel);
  }

  void store_token_params(int64_t tile) {
    if (!side.shape.has_codes()) return;
    auto* scales = reinterpret_cast<Half*>(block_of(tile) + side.layout.scales);
    auto* zeros = reinterpret_cast<Half*>(block_of(tile) + side.layout.zeros);
    for (int64_t head = 0; head < (side.shape.has_latents ? kKvHeads : 1); ++head) {
      const bool is_read = !side.shape.has_latents || head == kHead;
      for (int64_t t = 0; t < kTileTokens; ++t) {
        const int64_t token = tile * kTileTokens + t;
        const int64_t at = side.shape.token_params(tile % kBlockTiles, head) + t;
        const bool is_there = is_read && token < num_tokens_;
        scales[at] = is_there ? scales_[static_cast<size_t>(token)] : kWrong;
        zeros[at] = is_there ? zeros_[static_cast<size_t>(token)] : kWrong;
      }
    }
  }

  void make_pages() {
    if (entries_.empty()) return;
    const auto size = static_cast<int64_t>(entries_.size());
    page_memory_ = Buffer<OutlierPage>((size + kOutliersPerPage - 1) / kOutliersPerPage);
    for (OutlierPage& page : page_memory_.span()) pages_.push_back(&page);
    entries_.resize(static_cast<size_t>(page_memory_.size() * kOutliersPerPage), {0, kWrong});
    std::copy(entries_.begin(), entries_.end(), page_memory_.data()->entries);
  }

  NuqCodebook book_;
  double outlier_rate_;
  int64_t head_dim_;
  int64_t num_tokens_;
  bool has_key_tiles_;
  std::vector<Half> scales_, zeros_;
  std::vector<int32_t> segment_starts_;
  std::vector<double> stored_;
  std::vector<Buffer<std::byte>> memory_;
  std::vector<std::byte*> blocks_;
  std::vector<OutlierEntry> entries_;
  Buffer<OutlierPage> page_memory_;
  std::vector<const OutlierPage*> pages_;
};

}  // namespace kvquant::testing
