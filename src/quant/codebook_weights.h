// What a squared error of a normalised value costs: the weights of codebook fits. A channel c (of
// keys; of values: a row) has scale s, so an error of y = (x - zero) / s is s times as large in x.
//
//   none    w = 1              what the published code does: all channels count alike
//   scale   w = s^2            squared error of x itself
//   query   w = s^2 / 2 * sum over the group's query heads of E[q_c^2 + q_{c+d/2}^2]
//                              keys: squared error of the scores. Errors of a key pass through
//                              RoPE, which mixes the pair c, c + d/2 by an angle that depends on
//                              the distance; on average each half of the pair meets each query
//                              half.
//   fisher  w = s^2 * F        F = E[(dLoss/dx)^2], squared gradients that were computed elsewhere
//                              (KVQuant, arXiv 2401.18079), per channel or per token and channel
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "formats/kv_block.h"
#include "formats/safetensors.h"

namespace kvquant {

enum class CodebookWeighting { kNone, kScale, kQuery, kFisher };

// "none", "scale", "query", "fisher".
std::string_view to_string(CodebookWeighting weighting);
// Throws std::invalid_argument for other names.
CodebookWeighting parse_codebook_weighting(std::string_view name);

// All below: one weight for each scale or channel, finite and >= 0; std::invalid_argument, naming
// the place, for inputs that are negative, not finite or give such weights, or sizes that differ.

// s^2, [scales.size()].
std::vector<float> scale_weights(std::span<const float> scales);

// E[q^2] of all query heads; before or after RoPE makes no difference, it keeps the pair's sum.
struct QueryMoments {
  std::span<const double> mean_squares;  // [num_q_heads, head_dim]
  int64_t num_q_heads = 0;               // a multiple of num_kv_heads
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;  // even
};

// [num_kv_heads, head_dim], as the scales are.
std::vector<float> query_weights(std::span<const float> scales, const QueryMoments& queries);

// Squared gradients of one side of one layer.
struct FisherInformation {
  int64_t num_tokens = 0;  // 0: one row for all tokens
  int64_t num_channels = 0;
  std::vector<float> values;  // [num_channels] or [num_tokens, num_channels]
};

// The mean over tokens, [num_channels].
std::vector<float> channel_means(const FisherInformation& fisher);

// s^2 F, shaped as fisher.values; `scales` [num_channels].
std::vector<float> fisher_weights(std::span<const float> scales, const FisherInformation& fisher);

// A safetensors file of squared gradients: tensors fisher.key.<layer> and fisher.value.<layer>,
// F32, [num_kv_heads * head_dim] or [tokens, num_kv_heads * head_dim], finite, >= 0, not all zero.
class FisherFile {
 public:
  // Throws IoError, FormatError.
  explicit FisherFile(const std::string& path);

  // Throws FormatError naming the tensor when it is not there or not as said above.
  FisherInformation read(KvSide side, int layer, int64_t num_channels) const;

 private:
  MappedFile file_;
  Safetensors tensors_;
};

}  // namespace kvquant
