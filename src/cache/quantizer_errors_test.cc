// What kvquant/quantizer.h refuses, and that the message says what and where.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <stdexcept>
#include <string>

#include "cache/quantizer_test_data.h"
#include "kvquant/quantizer.h"

namespace kvquant {
namespace {

class QuantizerErrors : public ::testing::Test {
 protected:
  QuantizedKVCache quantize(CacheSide side, const KeyThresholds& thresholds = {}) const {
    return fused_quantize_batch(side, batch_.view(), batch_.mask_view(), options_, thresholds);
  }

  testing::PaddedBatch batch_ = testing::make_batch({.lengths = {6, 4}});  // [2, 2, 6, 16]
  KVQuantizerOptions options_{.codebook = get_cached_codebook("nuq2")};
};

TEST_F(QuantizerErrors, CodebooksMustBeKnownAscendingAndFinite) {
  EXPECT_REFUSED(BatchedKVQuantizer("nuq5"), "nuq5");
  EXPECT_REFUSED(BatchedKVQuantizer("int4"), "int4");
  EXPECT_REFUSED(BatchedKVQuantizer(std::vector<float>{-1, 0, 1}), "3 levels");
  EXPECT_REFUSED(BatchedKVQuantizer(std::vector<float>{-1, 0.5f, 0.5f, 1}), "does not ascend");
  EXPECT_REFUSED(BatchedKVQuantizer(std::vector<float>{-1, NAN, 0.5f, 1}), "level 1 is nan");
  EXPECT_REFUSED(BatchedKVQuantizer(std::vector<float>{-2, -1, 0.5f, 1}), "level 0 is -2");
}

TEST_F(QuantizerErrors, OptionsMustKeepTheirRules) {
  for (const double fraction : {-0.001, 0.051, 1.0, std::nan("")}) {
    EXPECT_REFUSED(BatchedKVQuantizer("nuq2", {}, fraction), "outlier_fraction is");
  }
  for (const int64_t block : {int64_t{-64}, int64_t{0}, int64_t{32}, int64_t{100}, int64_t{2048}}) {
    EXPECT_REFUSED(BatchedKVQuantizer("nuq2", {}, 0.01, block), "block_size is");
  }
  EXPECT_REFUSED(BatchedKVQuantizer("nuq2", {2, 2, {1, 1, 1}}), "3 factors are not [2, 2]");
  EXPECT_REFUSED(BatchedKVQuantizer("nuq2", {2, 0, {}}), "0 factors");
  EXPECT_REFUSED(BatchedKVQuantizer("nuq2", {2, 2, {1, 1, NAN, 1}}), "head 1, channel 0 is nan");
  EXPECT_REFUSED(BatchedKVQuantizer("nuq2", {2, 2, {1, -1, 1, 1}}), "head 0, channel 1 is -1");
  options_.scaling_factors = testing::varied_scales(2, 8);
  EXPECT_REFUSED(quantize(CacheSide::kKeys), "[2, 8] do not fit 2 heads of 16");
}

TEST_F(QuantizerErrors, ValuesMustBeFiniteInRealTokens) {
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    for (const CacheSide side : {CacheSide::kKeys, CacheSide::kValues}) {
      batch_.at(1, 1, 3, 9) = bad;
      EXPECT_REFUSED(quantize(side), "batch 1, head 1, token 3, channel 9 is");
    }
  }
  batch_.at(1, 1, 3, 9) = 0;
  batch_.at(1, 1, 5, 9) = NAN;  // padding
  quantize(CacheSide::kKeys);
}

TEST_F(QuantizerErrors, MasksMustFitAndHaveNoHoles) {
  batch_.mask[6 + 2] = 0;
  EXPECT_REFUSED(quantize(CacheSide::kKeys), "row 1 has a hole at position 2");
  EXPECT_REFUSED(get_sequence_lengths(batch_.mask_view()), "row 1 has a hole at position 2");
  batch_.mask[2] = 255;
  EXPECT_REFUSED(quantize(CacheSide::kKeys), "row 0 has 255 at position 2");
  const auto x = batch_.view();
  const auto wrong = row_major<const uint8_t>(batch_.mask.data(), {3, 4});
  EXPECT_REFUSED(fused_quantize_batch(CacheSide::kKeys, x, wrong, options_),
                 "attention_mask [3, 4] does not fit [2, 2, 6, 16]");
}

TEST_F(QuantizerErrors, ShapesMustFit) {
  auto x = batch_.view();
  x.shape[1] = 0;
  EXPECT_REFUSED(fused_quantize_batch(CacheSide::kKeys, x, {}, options_), "[2, 0, 6, 16]");
  x = batch_.view();
  x.shape[2] = -1;
  EXPECT_REFUSED(fused_quantize_batch(CacheSide::kKeys, x, {}, options_), "[2, 2, -1, 16]");
  x.shape[1] = x.shape[3] = int64_t{1} << 40;
  x.shape[2] = 0;
  EXPECT_REFUSED(fused_quantize_batch(CacheSide::kKeys, x, {}, options_), "more than 2^48");
  x = batch_.view();
  x.stride[3] = 2;
  EXPECT_REFUSED(fused_quantize_batch(CacheSide::kKeys, x, {}, options_), "stride 1");
  x = batch_.view();
  x.data = nullptr;
  EXPECT_REFUSED(fused_quantize_batch(CacheSide::kKeys, x, {}, options_), "no data");

  QuantizedKVCache cache = quantize(CacheSide::kKeys);
  const auto before = testing::stored(cache, 0);
  const auto other = testing::make_batch({.num_heads = 1, .lengths = {6, 4}});
  EXPECT_REFUSED(fused_append_batch(cache, other.view(), other.mask_view()),
                 "[2, 1, 6, 16] does not fit a cache of [2, 2, .., 16]");
  batch_.at(0, 0, 5, 0) = NAN;
  EXPECT_REFUSED(fused_append_batch(cache, batch_.view(), batch_.mask_view()), "token 5");
  EXPECT_EQ(testing::difference(testing::stored(cache, 0), before), "");
  EXPECT_EQ(cache.seq_len(), 6);
  EXPECT_REFUSED(fused_dequantize(cache), "there are 2");
  EXPECT_REFUSED(cache.code_tile(0, 0, 1), "no tile 1");
  EXPECT_REFUSED(cache.outliers(2, 0), "no sequence 2");
}

TEST_F(QuantizerErrors, CachesMustBeTheQuantizersOwn) {
  const BatchedKVQuantizer quantizer("nuq2"), other("nuq2", {}, 0.02);
  QuantizedKVCache keys = quantize(CacheSide::kKeys);
  const QuantizedKVCache values = quantize(CacheSide::kValues);
  EXPECT_REFUSED(other.append_keys(keys, batch_.view(), batch_.mask_view()), "other options");
  EXPECT_REFUSED(quantizer.append_values(keys, batch_.view(), batch_.mask_view()), "other side");
  EXPECT_REFUSED(quantizer.extract_key_outliers_to_sparse(values, 0), "holds values");
  EXPECT_REFUSED(quantizer.extract_value_outliers_to_sparse(keys, 0), "holds keys");
  EXPECT_REFUSED(quantizer.extract_key_outliers_to_sparse(keys, 2), "head_idx 2 of 2");
}

TEST_F(QuantizerErrors, ThresholdsMustFit) {
  KeyThresholds thresholds = quantize(CacheSide::kKeys).key_thresholds();
  EXPECT_REFUSED(quantize(CacheSide::kValues, thresholds), "for keys only");
  thresholds.ties[40] = -1;
  EXPECT_REFUSED(quantize(CacheSide::kKeys, thresholds), "sequence 1 has thresholds for some");
  thresholds.ties[40] = -2;
  EXPECT_REFUSED(quantize(CacheSide::kKeys, thresholds), "threshold 40");
  thresholds.ties[40] = 0;
  thresholds.magnitudes[3] = NAN;
  EXPECT_REFUSED(quantize(CacheSide::kKeys, thresholds), "threshold 3 is nan");
  thresholds.ties.pop_back();
  EXPECT_REFUSED(quantize(CacheSide::kKeys, thresholds), "63 ties for 64 channels");
}

TEST(SequenceLengths, AreTheRealTokensOfEachRow) {
  const uint8_t mask[] = {1, 1, 1, 0, 0, 0, 0, 1, 1, 0, 1, 0};
  EXPECT_EQ(get_sequence_lengths(row_major<const uint8_t>(mask, {4, 3})),
            (std::vector<int64_t>{3, 0, 2, 1}));
  EXPECT_EQ(get_sequence_lengths({nullptr, {2, 5}, {}}), (std::vector<int64_t>{5, 5}));
}

}  // namespace
}  // namespace kvquant
