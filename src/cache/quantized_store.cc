#include "cache/quantized_store.h"

#include <fmt/format.h>

#include <cmath>
#include <functional>
#include <limits>

#include "base/check.h"
#include "formats/codec_table.h"
#include "quant/ranges.h"

namespace kvquant {
namespace {

constexpr int64_t kChannelsAtOnce = 16;  // a cache line of a row

int64_t num_key_outliers(int64_t num_tokens, double fraction) {
  const int64_t steps = std::llround(fraction * 1e8);
  return num_tokens / 100'000'000 * steps + num_tokens % 100'000'000 * steps / 100'000'000;
}

// New tokens of one head of one sequence, with room for what they become.
class HeadAppender {
 public:
  HeadAppender(QuantizedStore& store, BatchView x)
      : store_(store),
        x_(x),
        row_size_(static_cast<size_t>(store.head_dim)),
        inverse_(row_size_),
        normalised_(row_size_),
        codes_(row_size_),
        marks_(row_size_),
        tile_codes_(row_size_ * kTileTokens) {}

  void append(int64_t sequence, int64_t head, TokenRange range) {
    sequence_ = sequence;
    head_ = head;
    range_ = range;
    for (int64_t c = 0; c < store_.head_dim; ++c) {
      const float inverse = 1.0f / store_.scale(head, c);
      inverse_[static_cast<size_t>(c)] = std::isfinite(inverse) ? inverse : 0.0f;
    }
    const size_t channels = store_.head_index(sequence, head) * row_size_;
    if (store_.side == CacheSide::kKeys && store_.thresholds.ties[channels] < 0) find_thresholds();
    const int64_t first = num_tokens(), end = first + range.count;
    make_room(end);
    for (int64_t t = first; t < end;) {
      const int64_t next = std::min(end, (t / kTileTokens + 1) * kTileTokens);
      append_to_tile(t, next);
      t = next;
    }
  }

 private:
  int64_t num_tokens() const { return store_.sequences[static_cast<size_t>(sequence_)].num_tokens; }
  // Of token i of the new ones.
  const float* row(int64_t i) const { return &x_(sequence_, head_, range_.first + i, 0); }

  void make_room(int64_t end) {
    auto& blocks = store_.blocks[store_.head_index(sequence_, head_)];
    while (blocks.size() * store_.options.block_size < end) {
      blocks.push_back(Buffer<uint8_t>(store_.tiles_per_block() * store_.tile_bytes()));
    }
  }

  void find_thresholds() {
    const int64_t n = range_.count;
    const int64_t count = num_key_outliers(n, store_.options.outlier_fraction);
    std::vector<float> columns(static_cast<size_t>(n * kChannelsAtOnce));
    for (int64_t first = 0; first < store_.head_dim; first += kChannelsAtOnce) {
      const int64_t end = std::min(store_.head_dim, first + kChannelsAtOnce);
      for (int64_t t = 0; t < n; ++t) {
        const float* x = row(t);
        for (int64_t c = first; c < end; ++c) {
          const float y = x[c] * inverse_[static_cast<size_t>(c)];
          columns[static_cast<size_t>((c - first) * n + t)] = std::fabs(y);
        }
      }
      for (int64_t c = first; c < end; ++c) {
        set_threshold(c,
                      std::span(columns).subspan(static_cast<size_t>((c - first) * n),
                                                 static_cast<size_t>(n)),
                      count);
      }
    }
  }

  void set_threshold(int64_t channel, std::span<const float> magnitudes, int64_t count) {
    float threshold = std::numeric_limits<float>::infinity();
    int64_t ties = 0;
    if (count > 0) {
      keep_largest(magnitudes, static_cast<size_t>(count));
      threshold = kept_[static_cast<size_t>(count) - 1];
      ties =
          count - std::count_if(kept_.begin(), kept_.end(), [&](float y) { return y > threshold; });
    } else if (store_.options.outlier_fraction > 0) {
      threshold = std::max(1.0f, *std::max_element(magnitudes.begin(), magnitudes.end()));
    }
    const size_t at =
        store_.head_index(sequence_, head_) * row_size_ + static_cast<size_t>(channel);
    store_.thresholds.magnitudes[at] = threshold;
    store_.thresholds.ties[at] = store_.ties_left[at] = static_cast<int32_t>(ties);
  }

  // Leaves the `count` largest in kept_, the smallest of them last. Most are passed over: they are
  // below what has been found already (3 times as fast as nth_element over all, at 1% of 512 to
  // 32768).
  void keep_largest(std::span<const float> magnitudes, size_t count) {
    const auto cut = [&] {
      const auto smallest = kept_.begin() + static_cast<int64_t>(count) - 1;
      std::nth_element(kept_.begin(), smallest, kept_.end(), std::greater<>());
      kept_.resize(count);
    };
    kept_.clear();
    float most_passed = -1;  // values up to it are not needed
    for (const float y : magnitudes) {
      if (y <= most_passed) continue;
      kept_.push_back(y);
      if (kept_.size() < 2 * count + 16) continue;
      cut();
      most_passed = kept_.back();
    }
    cut();
  }

  // Tokens [first, end) of the sequence, all of one tile.
  void append_to_tile(int64_t first, int64_t end) {
    std::fill(tile_codes_.begin(), tile_codes_.end(), uint8_t{0});
    for (int64_t t = first; t < end; ++t) {
      const float* x = row(t - num_tokens());
      encode_row(x);
      for (size_t c = 0; c < row_size_; ++c) {
        tile_codes_[c * kTileTokens + static_cast<size_t>(t % kTileTokens)] = codes_[c];
      }
      mark_row();
      indices_.clear();
      values_.clear();
      for (size_t c = 0; c < row_size_; ++c) {
        if (marks_[c] == 0) continue;
        indices_.push_back(static_cast<int32_t>(c));
        values_.push_back(x[c]);
      }
      store_.outliers(sequence_, head_).append_token(indices_, values_);
    }
    uint8_t* tile = store_.tile(sequence_, head_, first / kTileTokens);
    add_codes(tile, kStoreLayout, store_.book.bits, store_.head_dim, tile_codes_.data());
  }

  // The number of midpoints below y is the nearest level.
  void encode_row(const float* __restrict x) {
    float* __restrict y = normalised_.data();
    uint8_t* __restrict codes = codes_.data();
    for (size_t c = 0; c < row_size_; ++c) y[c] = x[c] * inverse_[c];
    std::fill(codes_.begin(), codes_.end(), uint8_t{0});
    for (int m = 0; m < store_.book.num_levels - 1; ++m) {
      const float midpoint = store_.book.midpoints[m];
      for (size_t c = 0; c < row_size_; ++c) {
        codes[c] = static_cast<uint8_t>(codes[c] + (midpoint < y[c] ? 1 : 0));
      }
    }
  }

  void mark_row() {
    const double percent = store_.options.outlier_fraction * 100;
    if (store_.side == CacheSide::kValues) {
      const int64_t count = num_value_outliers(store_.head_dim, percent);
      if (store_.head_dim > 2 * count) {
        fit_row(normalised_, count, marks_);
      } else {
        std::fill(marks_.begin(), marks_.end(), uint8_t{1});
      }
      return;
    }
    const size_t channels = store_.head_index(sequence_, head_) * row_size_;
    const float* thresholds = store_.thresholds.magnitudes.data() + channels;
    int32_t* ties_left = store_.ties_left.data() + channels;
    for (size_t c = 0; c < row_size_; ++c) {
      marks_[c] = std::fabs(normalised_[c]) >= thresholds[c] ? 1 : 0;
    }
    for (size_t c = 0; c < row_size_; ++c) {
      if (marks_[c] == 0 || std::fabs(normalised_[c]) > thresholds[c]) continue;
      if (ties_left[c] > 0) {
        --ties_left[c];
      } else {
        marks_[c] = 0;
      }
    }
  }

  QuantizedStore& store_;
  BatchView x_;
  int64_t sequence_ = 0, head_ = 0;
  TokenRange range_;
  size_t row_size_;
  std::vector<float> inverse_, normalised_;  // [head_dim]
  std::vector<float> kept_;                  // keep_largest
  std::vector<uint8_t> codes_, marks_;       // [head_dim]
  std::vector<uint8_t> tile_codes_;          // [head_dim, 64]
  std::vector<int32_t> indices_;
  std::vector<float> values_;
};

void add_positions(QuantizedSequence& sequence, TokenRange range) {
  sequence.num_tokens += range.count;
  auto& positions = sequence.positions;
  if (!positions.empty() && positions.back().first + positions.back().count == range.first) {
    positions.back().count += range.count;
  } else {
    positions.push_back(range);
  }
}

}  // namespace

const uint8_t* QuantizedStore::tile(int64_t sequence, int64_t head, int64_t index) const {
  const auto& of_head = blocks[head_index(sequence, head)];
  return of_head[index / tiles_per_block()].data() + index % tiles_per_block() * tile_bytes();
}

uint8_t* QuantizedStore::tile(int64_t sequence, int64_t head, int64_t index) {
  auto& of_head = blocks[head_index(sequence, head)];
  return of_head[index / tiles_per_block()].data() + index % tiles_per_block() * tile_bytes();
}

const BlockedTokens& QuantizedStore::outliers(int64_t sequence, int64_t head) const {
  const size_t i = head_index(sequence, head);
  if (side == CacheSide::kKeys) return key_outliers[i];
  return value_outliers[i];
}

BlockedTokens& QuantizedStore::outliers(int64_t sequence, int64_t head) {
  const size_t i = head_index(sequence, head);
  if (side == CacheSide::kKeys) return key_outliers[i];
  return value_outliers[i];
}

float QuantizedStore::scale(int64_t head, int64_t channel) const {
  const auto& scales = options.scaling_factors.scales;
  return scales.empty() ? 1.0f : scales[static_cast<size_t>(head * head_dim + channel)];
}

void check_quantizer_options(const KVQuantizerOptions& options) {
  make_codebook(options.codebook);
  const LayerScalingFactors& scales = options.scaling_factors;
  const auto num_scales = static_cast<int64_t>(scales.scales.size());
  const bool fits = num_scales == 0 ? scales.num_heads == 0 && scales.head_dim == 0
                                    : scales.num_heads > 0 && scales.head_dim > 0 &&
                                          num_scales / scales.num_heads == scales.head_dim &&
                                          num_scales % scales.num_heads == 0;
  check_arg(fits, fmt::format("scaling_factors: {} factors are not [{}, {}]", num_scales,
                              scales.num_heads, scales.head_dim));
  for (int64_t i = 0; i < num_scales; ++i) {
    const float scale = scales.scales[static_cast<size_t>(i)];
    if (std::isfinite(scale) && scale >= 0) continue;
    throw std::invalid_argument(
        fmt::format("scaling_factors: head {}, channel {} is {}, not finite and >= 0",
                    i / scales.head_dim, i % scales.head_dim, scale));
  }
  check_arg(options.outlier_fraction >= 0 && options.outlier_fraction <= 0.05,
            fmt::format("outlier_fraction is {}, not in [0, 0.05]", options.outlier_fraction));
  const int64_t block = options.block_size;
  check_arg(64 <= block && block <= 1024 && block % kTileTokens == 0,
            fmt::format("block_size is {}, not a multiple of 64 from 64 to 1024", block));
}

void check_scales_fit(const LayerScalingFactors& scales, int64_t num_heads, int64_t head_dim) {
  check_arg(scales.scales.empty() || (scales.num_heads == num_heads && scales.head_dim == head_dim),
            fmt::format("scaling_factors: [{}, {}] do not fit {} heads of {} channels",
                        scales.num_heads, scales.head_dim, num_heads, head_dim));
}

void append_quantized(QuantizedStore& store, BatchView x, const std::vector<TokenRange>& ranges) {
  HeadAppender appender(store, x);
  for (int64_t b = 0; b < store.batch(); ++b) {
    const TokenRange range = ranges[static_cast<size_t>(b)];
    if (range.count == 0) continue;
    for (int64_t h = 0; h < store.num_heads; ++h) appender.append(b, h, range);
    add_positions(store.sequences[static_cast<size_t>(b)],
                  {store.seq_len + range.first, range.count});
  }
  store.seq_len += x.shape[2];
}

std::vector<float> scaled_levels(const QuantizedStore& store, int64_t head) {
  std::vector<float> levels(static_cast<size_t>(store.head_dim * kMaxLevels));
  for (int64_t c = 0; c < store.head_dim; ++c) {
    for (int64_t i = 0; i < store.book.num_levels; ++i) {
      levels[static_cast<size_t>(c * kMaxLevels + i)] = store.book.levels[i] * store.scale(head, c);
    }
  }
  return levels;
}

}  // namespace kvquant
