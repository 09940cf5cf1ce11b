// What each codec costs each layer: one side of one layer is stored in it, all else in fp16, and
// the KL divergence of the next-token distributions from those of an fp16 cache is measured, and
// the bytes. Layers below the changed one are not run again.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/progress.h"
#include "cache/kv_cache.h"
#include "formats/code_planes.h"
#include "kvquant/spec.h"
#include "model/model.h"

namespace kvquant {

struct SensitivityOptions {
  std::vector<Codec> keys, values;  // candidates
  CacheSpec windows;                // its sink, recent and block; its codecs don't count
  CacheMode mode = CacheMode::kStrict;
  int64_t ubatch = 512;
};

// One codec for one side of one layer.
struct Sensitivity {
  int64_t layer = 0;
  KvSide side = KvSide::kKey;
  Codec codec;
  double kl_mean = 0;  // nats, KL(fp16 || changed) per token
  int64_t bytes = 0;   // of that side of that layer at a full window
};

struct SensitivityTable {
  int64_t num_layers = 0;
  int64_t num_values = 0;  // keys and values of all layers at a full window
  int64_t tokens = 0;      // whose distributions were compared
  std::vector<Sensitivity> rows;

  // Null when it was not measured.
  const Sensitivity* find(int64_t layer, KvSide side, const Codec& codec) const;
};

// Called after every layer with all rows so far, to keep them.
using SensitivityObserver = std::function<void(const SensitivityTable&)>;

// `samples` have the same length, 2 tokens at least. Rows of `known` (of the same model,
// calibration, samples and options) are taken as they are. Rows are those of `known`, then layer by
// layer keys before values, in the order of the candidates. Progress counts multiply-adds, about.
// Throws std::invalid_argument when there is no sample or no candidate, samples have other lengths
// or a codec doesn't fit the model; FormatError as Transformer::forward does.
SensitivityTable measure_sensitivity(Model& model, std::span<const std::vector<int32_t>> samples,
                                     const SensitivityOptions& options,
                                     const std::vector<Sensitivity>& known = {},
                                     const SensitivityObserver& observer = {},
                                     const Progress& progress = {});

// The rows of the candidates alone.
SensitivityTable of_candidates(const SensitivityTable& table, const SensitivityOptions& options);

// Equal for equal model, calibration, samples, windows, mode and ubatch. 16 hex digits.
std::string sensitivity_key(Model& model, std::span<const std::vector<int32_t>> samples,
                            const SensitivityOptions& options);

}  // namespace kvquant
