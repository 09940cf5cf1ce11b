// Padded batches of reproducible numbers, for the tests of the quantizer and of attention over it.
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/rng.h"
#include "kvquant/quantizer.h"

namespace kvquant::testing {

struct Shape {
  int64_t batch, num_heads, seq_len, head_dim;
  int64_t size() const { return batch * num_heads * seq_len * head_dim; }
};

// x [batch, num_heads, seq_len, head_dim] and its mask.
struct PaddedBatch {
  Shape shape;
  std::vector<float> x;
  std::vector<uint8_t> mask;

  TensorView<const float, 4> view() const {
    return row_major(x.data(), {shape.batch, shape.num_heads, shape.seq_len, shape.head_dim});
  }
  TensorView<const uint8_t, 2> mask_view() const {
    return row_major(mask.data(), {shape.batch, shape.seq_len});
  }
  bool is_real(int64_t b, int64_t s) const { return mask[b * shape.seq_len + s] != 0; }
  int64_t index(int64_t b, int64_t h, int64_t s, int64_t c) const {
    return ((b * shape.num_heads + h) * shape.seq_len + s) * shape.head_dim + c;
  }
  float& at(int64_t b, int64_t h, int64_t s, int64_t c) { return x[index(b, h, s, c)]; }
  float at(int64_t b, int64_t h, int64_t s, int64_t c) const { return x[index(b, h, s, c)]; }
};

// Number i of a distribution.
using Draw = std::function<float(const CounterRng&, uint64_t)>;

inline float draw_normal(const CounterRng& rng, uint64_t i) { return rng.normals(i).first; }

// Student's t with 3 degrees of freedom.
inline float draw_student(const CounterRng& rng, uint64_t i) {
  const auto [a, b] = rng.normals(2 * i);
  const auto [c, d] = rng.normals(2 * i + 1);
  return a / std::sqrt((b * b + c * c + d * d) / 3);
}

// Few distinct magnitudes: many ties.
inline float draw_tied(const CounterRng& rng, uint64_t i) {
  return std::round(2 * draw_normal(rng, i)) / 2;
}

enum class PaddingSide { kLeft, kRight };

// Sequence b has lengths[b] real tokens, the same numbers whatever the padding and the batch: token
// t of head h is drawn from stream streams[b] (b if there are none). Padding holds `padding`.
struct BatchRecipe {
  int64_t num_heads = 2, head_dim = 16;
  std::vector<int64_t> lengths;
  Draw draw = draw_normal;
  PaddingSide side = PaddingSide::kRight;
  float padding = 0;
  int64_t extra_padding = 0;
  std::vector<uint64_t> streams = {};
};

inline PaddedBatch make_batch(const BatchRecipe& recipe) {
  int64_t longest = 0;
  for (const int64_t length : recipe.lengths) longest = std::max(longest, length);
  const Shape shape{static_cast<int64_t>(recipe.lengths.size()), recipe.num_heads,
                    longest + recipe.extra_padding, recipe.head_dim};
  PaddedBatch batch{shape, std::vector<float>(shape.size(), recipe.padding),
                    std::vector<uint8_t>(shape.batch * shape.seq_len, 0)};
  for (int64_t b = 0; b < shape.batch; ++b) {
    const CounterRng rng(20261121, recipe.streams.empty() ? b : recipe.streams[b]);
    const int64_t length = recipe.lengths[b];
    const int64_t first = recipe.side == PaddingSide::kLeft ? shape.seq_len - length : 0;
    for (int64_t t = 0; t < length; ++t) {
      batch.mask[b * shape.seq_len + first + t] = 1;
      for (int64_t h = 0; h < shape.num_heads; ++h) {
        for (int64_t c = 0; c < shape.head_dim; ++c) {
          const auto i = static_cast<uint64_t>((t * shape.num_heads + h) * shape.head_dim + c);
          batch.at(b, h, first + t, c) = recipe.draw(rng, i);
        }
      }
    }
  }
  return batch;
}

// Positions [first, end) of a batch.
inline PaddedBatch slice(const PaddedBatch& from, int64_t first, int64_t end) {
  Shape shape = from.shape;
  shape.seq_len = end - first;
  PaddedBatch to{shape, std::vector<float>(shape.size()), {}};
  for (int64_t b = 0; b < shape.batch; ++b) {
    for (int64_t s = first; s < end; ++s) {
      to.mask.push_back(from.mask[b * from.shape.seq_len + s]);
      for (int64_t h = 0; h < shape.num_heads; ++h) {
        for (int64_t c = 0; c < shape.head_dim; ++c) {
          to.at(b, h, s - first, c) = from.at(b, h, s, c);
        }
      }
    }
  }
  return to;
}

// All that is stored of one sequence.
struct StoredSequence {
  std::vector<uint8_t> codes;
  std::vector<StandardSparse> outliers;  // of each head
};

inline StandardSparse entries_of(const BlockedTokens& tokens) {
  StandardSparse all;
  all.offsets.push_back(0);
  for (int64_t t = 0; t < tokens.num_tokens(); ++t) {
    for (const SparsePiece& piece : tokens.pieces(t)) {
      for (int64_t i = 0; i < piece.count; ++i) {
        all.indices.push_back(piece.index(i));
        all.values.push_back(piece.value(i));
      }
    }
    all.offsets.push_back(static_cast<int64_t>(all.indices.size()));
  }
  return all;
}

inline StoredSequence stored(const QuantizedKVCache& cache, int64_t sequence) {
  StoredSequence all;
  const int64_t num_tokens = cache.seq_lengths()[sequence];
  for (int64_t h = 0; h < cache.num_heads(); ++h) {
    for (int64_t tile = 0; tile * 64 < num_tokens; ++tile) {
      const auto bytes = cache.code_tile(sequence, h, tile);
      all.codes.insert(all.codes.end(), bytes.begin(), bytes.end());
    }
    all.outliers.push_back(entries_of(cache.outliers(sequence, h)));
  }
  return all;
}

// Empty when the same bytes are stored of both sequences, else what differs.
inline std::string difference(const StoredSequence& a, const StoredSequence& b) {
  if (a.codes != b.codes) return "codes";
  if (a.outliers.size() != b.outliers.size()) return "heads";
  for (size_t h = 0; h < a.outliers.size(); ++h) {
    if (a.outliers[h].offsets != b.outliers[h].offsets) return "outlier counts";
    if (a.outliers[h].indices != b.outliers[h].indices) return "outlier channels";
    if (a.outliers[h].values != b.outliers[h].values) return "outlier values";
  }
  return "";
}

inline std::string difference(const QuantizedKVCache& a, const QuantizedKVCache& b) {
  if (a.seq_lengths() != b.seq_lengths()) return "lengths";
  for (int64_t i = 0; i < a.batch(); ++i) {
    const std::string found = difference(stored(a, i), stored(b, i));
    if (!found.empty()) return found + " of sequence " + std::to_string(i);
  }
  return "";
}

// Scales that differ by channel, some of them 0.
inline LayerScalingFactors varied_scales(int64_t num_heads, int64_t head_dim) {
  LayerScalingFactors scales{num_heads, head_dim, {}};
  for (int64_t i = 0; i < num_heads * head_dim; ++i) {
    scales.scales.push_back(i % 7 == 3 ? 0.0f : 0.5f + 0.3f * static_cast<float>(i % 11));
  }
  return scales;
}

// What a call was refused with.
inline std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "nothing was thrown";
}

#define EXPECT_REFUSED(call, part)                                                       \
  EXPECT_NE(::kvquant::testing::message_of([&] { call; }).find(part), std::string::npos) \
      << ::kvquant::testing::message_of([&] { call; })

}  // namespace kvquant::testing
