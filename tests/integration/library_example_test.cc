// The program of docs/library.md.
#include <gtest/gtest.h>

#include <cmath>

#include "kvquant/kvquant.h"

namespace {

// [example]
// Two prompts of 1000 and 700 tokens, padded to 1000: keys and values of 2 KV heads of 64 channels,
// queries of 8 heads.
struct Prompts {
  static constexpr int64_t kBatch = 2, kSeqLen = 1000, kHeads = 8, kKvHeads = 2, kHeadDim = 64;
  std::vector<float> query = wave(kHeads), key = wave(kKvHeads), value = wave(kKvHeads);
  std::vector<uint8_t> mask = std::vector<uint8_t>(kBatch * kSeqLen, 1);

  Prompts() { std::fill(mask.begin() + kSeqLen + 700, mask.end(), uint8_t{0}); }
  static std::vector<float> wave(int64_t heads) {
    std::vector<float> x(kBatch * heads * kSeqLen * kHeadDim);
    for (size_t i = 0; i < x.size(); ++i) x[i] = std::sin(0.37f * static_cast<float>(i % 9973));
    return x;
  }
};

double compress_and_attend() {
  using P = Prompts;
  const P prompts;
  const auto key =
      kvquant::row_major(prompts.key.data(), {P::kBatch, P::kKvHeads, P::kSeqLen, P::kHeadDim});
  const auto value =
      kvquant::row_major(prompts.value.data(), {P::kBatch, P::kKvHeads, P::kSeqLen, P::kHeadDim});
  const auto query =
      kvquant::row_major(prompts.query.data(), {P::kBatch, P::kHeads, P::kSeqLen, P::kHeadDim});
  const auto mask = kvquant::row_major(prompts.mask.data(), {P::kBatch, P::kSeqLen});

  // Scales such that all but 1% of a channel lie in [-1, 1], where the codebook has its levels.
  const kvquant::LayerScalingFactors scales{
      P::kKvHeads, P::kHeadDim,
      kvquant::estimate_scaling_factors(key, mask, kvquant::ScaleRule::percentile(99))};
  const kvquant::BatchedKVQuantizer quantizer("nuq3", scales);
  const kvquant::QuantizedKVCache cache = quantizer.quantize_keys(key, mask);
  const std::vector<float> decoded = quantizer.dequantize(cache);
  const double bits = 8.0 * static_cast<double>(cache.memory_bytes()) /
                      static_cast<double>((1000 + 700) * P::kKvHeads * P::kHeadDim);

  // Attention that stores what it reads: a prefill, then one generated token for each prompt.
  kvquant::PrefillQuantizedAttention attention(P::kHeads, P::kHeadDim, "nuq3",
                                               {.num_kv_heads = P::kKvHeads});
  attention.forward(query, key, value, mask, /*is_prefill=*/true);
  const auto last = [](auto tokens) {  // the newest token's tensors; here, those of token 0
    tokens.shape[2] = 1;
    return tokens;
  };
  attention.forward(last(query), last(key), last(value), {}, /*is_prefill=*/false);
  return attention.key_cache().seq_lengths()[1] == 701 ? bits : 0;
}
// [example]

TEST(LibraryExample, StoresThreeBitsAndAFewOutliers) {
  const double bits = compress_and_attend();
  EXPECT_GT(bits, 3);
  EXPECT_LT(bits, 6);  // half-empty blocks of a short prompt
}

}  // namespace
