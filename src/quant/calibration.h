// What calibration has found out about a model's keys and values, and the file that holds it: one
// safetensors file, a tensor per field and layer ("layers.3.key.scale"), and metadata that say what
// it was made from.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/half.h"
#include "quant/statistics.h"

namespace kvquant {

// Version 1 of the file holds codebooks per layer only, version 2 also per head, version 3 what one
// spec needs (compact_calibration.h); what an earlier one can hold is written as that.
inline constexpr int64_t kCalibrationVersion = 3;

// Which heads share a codebook.
enum class CodebookScope {
  kLayer,  // all of a layer
  kHead,   // none: every KV head has its own
};

// "layer", "head".
std::string_view to_string(CodebookScope scope);
// Throws std::invalid_argument for other names.
CodebookScope parse_codebook_scope(std::string_view name);

struct CalibrationShape {
  int64_t num_layers = 0;
  int64_t num_q_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  friend bool operator==(const CalibrationShape&, const CalibrationShape&) = default;
};

// One sample: tokens [begin, end) of a text.
struct CalibrationText {
  std::string file;  // its name without folders
  int64_t begin = 0;
  int64_t end = 0;
  std::string hash;  // of the tokens (Hash64 of each as an integer), 16 hex digits
};

struct CalibrationInfo {
  std::string kvquant_version;
  std::string model_fingerprint;  // Checkpoint::fingerprint()
  CalibrationShape shape;
  std::vector<CalibrationText> texts;
  uint64_t seed = 0;
  int64_t num_samples = 0;
  int64_t seq_len = 0;
  int64_t rank = 0;  // components of the stored bases, at most head_dim
  CodebookScope codebooks = CodebookScope::kLayer;
  std::string recipe;   // to_string(FitChoices) of fit_choices.h; not read again
  std::string holds{};  // the spec it is compact for, see compact_calibration.h; empty: whole
};

// Outlier percents for which key ranges are stored.
inline constexpr std::array<double, 8> kOutlierPercents = {0, 0.1, 0.25, 0.5, 1, 2, 3, 5};
inline constexpr int64_t kNumOutlierPercents = std::size(kOutlierPercents);

// Widths for which codebooks are stored: element i of an array is for 2 + i bits.
inline constexpr int64_t kNumCodebooks = 3;

// All arrays are gapless; those that a compact calibration lacks are empty. H: num_kv_heads, D:
// head_dim, R: rank, P: kNumOutlierPercents, G: codebooks of a layer, 1 or H as info.codebooks
// says.
struct KeyCalibration {
  ChannelStatistics channels;                               // before RoPE
  std::array<std::vector<float>, kNumCodebooks> codebooks;  // [P, G, 2^bits], in [-1, 1]
  // By width and outlier percent, see ChannelRange: [P, H, D] each.
  std::array<std::vector<Half>, kNumCodebooks> scale, zero, low, high;
  std::vector<Half> uniform_scale, uniform_zero;  // of int4 and int8: [2, H, D]
  std::vector<uint8_t> order;                     // [H, D], see rounding_feedback.h
  std::vector<float> feedback;                    // [H, D, D]
  // After RoPE:
  std::vector<float> rotated_mean;  // [H, D]
  std::vector<float> gram;          // [H, D, D], centred covariance
  std::vector<float> basis;         // [H, R, D], orthonormal, component by component
  std::vector<float> spectrum;      // [H, D], variance along each component
};

// Q: num_q_heads.
struct QueryCalibration {
  std::vector<float> second_moment;          // [Q, D], E[q^2] before RoPE
  std::vector<float> rotated_second_moment;  // [Q, D], after it
  std::vector<float> gram;                   // [H, D, D], E[q q^T] over the group, before RoPE
};

struct ValueCalibration {
  ChannelStatistics channels;
  std::array<std::vector<float>, kNumCodebooks> codebooks;           // [P, G, 2^bits]
  std::array<std::vector<float>, kNumCodebooks> hadamard_codebooks;  // the same of had+nuq
  std::vector<float> gram;               // [H, D, D], centred covariance
  std::vector<float> output_gram;        // [H, D, D], sum of W_o^T W_o over the group
  std::vector<float> basis;              // [H, R, D], of pca
  std::vector<float> spectrum;           // [H, D]
  std::vector<float> weighted_encode;    // [H, R, D], of pcaw
  std::vector<float> weighted_decode;    // [H, R, D]
  std::vector<float> weighted_spectrum;  // [H, D]
};

struct LayerCalibration {
  KeyCalibration key;
  QueryCalibration query;
  ValueCalibration value;

  // Not so of identity_bases (value_basis.h) alone.
  bool has_codebooks() const { return !value.codebooks[0].empty(); }
};

struct Calibration {
  CalibrationInfo info;
  std::vector<LayerCalibration> layers;
  std::string path;  // where it was loaded from; empty when it was not
};

// Writes atomically; the same calibration gives the same bytes. Throws std::invalid_argument when
// an array has not the size that the shape says, and what write_file_atomic throws.
void save_calibration(const Calibration& calibration, const std::string& path);

// Throws IoError ("Calibration file not found: ..."), FormatError naming the path and the tensor.
Calibration load_calibration(const std::string& path);
Calibration parse_calibration(std::span<const std::byte> bytes, const std::string& path);

// Throws std::invalid_argument when the calibration is not of the model with this fingerprint and
// shape.
void check_calibration_fits(const Calibration& calibration, const std::string& fingerprint,
                            const CalibrationShape& shape);

int64_t memory_bytes(const Calibration& calibration);  // of its arrays

// Of all its arrays: caches with equal ones mean the same by their codes. 16 hex digits.
std::string calibration_hash(const Calibration& calibration);

}  // namespace kvquant
