// The table of codecs that `kvquant formats` prints: names, what they cost at the margin, whether
// this version can run them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kvquant/spec.h"

namespace kvquant {

// Code bits of nuq4, nuq3, nuq2; 0 for every other quantizer.
int nuq_bits(Quantizer quantizer);
// Bits of a code: those of nuq, 8 and 4 of int8 and int4; 8 of wf, whose codes widen to that; 0 for
// every other quantizer.
int code_bits(Quantizer quantizer);

// Whether tokens of the codec are stored as latents: pca, pcaw or lnns among its transforms.
bool has_latents(const Codec& codec);
// Whether what is kept of them comes from a calibration: pca or pcaw.
bool needs_calibration(const Codec& codec);
// Components of a latent; head_dim where there are none.
int64_t latent_rank(const Codec& codec, int64_t head_dim);

// Outliers on either end of a value row of `row_size` values: ceil(row_size * percent / 200), 0
// when percent is 0. Exact: percent has at most six decimals.
int64_t num_value_outliers(int64_t row_size, double percent);
// The same of the latents of a head, which must leave something between them.
int64_t num_latent_outliers(int64_t rank, double percent);

struct CodecRow {
  std::string codec;        // "nuq3-1%"
  double key_bits = 0;      // marginal bits per value: one more token, outliers at their nominal
  double value_bits = 0;    // rate, without what is stored once per sequence or model
  bool built = false;       // on one side at least; the bits of the other are 0
  std::string description;  // one line
};

// Marginal bits per value of a codec on either side; 0 for codecs that are not built there.
double marginal_key_bits(const Codec& codec, int64_t head_dim);
double marginal_value_bits(const Codec& codec, int64_t head_dim, int64_t num_kv_heads);

// One row per quantizer of the grammar, nuq with and without outliers.
std::vector<CodecRow> codec_table(int64_t head_dim, int64_t num_kv_heads);

}  // namespace kvquant
