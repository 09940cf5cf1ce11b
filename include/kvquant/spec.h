// Cache specs: strings such as "nuq3-1%" or "k=nuq4-0.5%,v=nuq3,sink=4,recent=64" that name what
// is stored for keys and values. The grammar is in docs/formats.md; `parse_spec` and `to_string`
// are inverse on resolved specs.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace kvquant {

enum class Quantizer { kF32, kF16, kBF16, kInt8, kInt4, kNuq4, kNuq3, kNuq2, kWaterfill };
enum class Transform { kPca, kPcaWeighted, kLnNullspace, kHadamard };

struct TransformStep {
  Transform kind = Transform::kPca;
  int rank = 0;  // kPca, kPcaWeighted only
  friend bool operator==(const TransformStep&, const TransformStep&) = default;
};

// What is done to one side (keys or values) of one layer.
struct Codec {
  std::vector<TransformStep> transforms;  // applied in this order
  Quantizer quantizer = Quantizer::kF16;
  double outlier_percent = 0;  // nuq only: 0 or in (0, 5]
  double waterfill_bits = 0;   // kWaterfill only
  friend bool operator==(const Codec&, const Codec&) = default;
};

std::string to_string(const Codec& codec);  // "pca96+int8", "nuq3-1%"
bool is_compressed(const Codec& codec);     // anything but fp32, fp16 and bf16 without transforms

// Codecs of layers [first, last], set by a layers= item.
struct LayerOverride {
  int first = 0;
  int last = 0;
  std::optional<Codec> key;  // as written; an unnamed side keeps the plain items' codec
  std::optional<Codec> value;
  friend bool operator==(const LayerOverride&, const LayerOverride&) = default;
};

struct CacheSpec {
  std::string text;  // as typed
  Codec key, value;
  std::vector<LayerOverride> overrides;  // later ones win
  std::optional<int> sink;               // tokens; unset: 0 when strict, the default as served
  std::optional<int> recent;             // tokens
  int block = 256;                       // tokens

  const Codec& key_of(int layer) const;
  const Codec& value_of(int layer) const;
};

// Throws std::invalid_argument with the position of the mistake and what was expected there.
CacheSpec parse_spec(std::string_view text);

// The canonical long form with every default written out, e.g.
// "k=nuq3-1%,v=nuq3-1%,sink=0,recent=0,block=256".
std::string resolved(const CacheSpec& spec);

// Throws std::invalid_argument when the spec can't be used on this model: rank > head_dim, had with
// a head_dim that is no power of two, a layer range past the last layer.
void check_spec_fits(const CacheSpec& spec, int num_layers, int head_dim);

// Warnings for stderr (one line each): key transforms, for instance. Empty when all is usual.
std::vector<std::string> spec_warnings(const CacheSpec& spec);

// Throws std::invalid_argument "... is not built yet" for codecs of the grammar that this version
// can't run.
void check_spec_built(const CacheSpec& spec);

}  // namespace kvquant
