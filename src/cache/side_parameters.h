// What all sequences share of one side of a layer: its codebooks and, where there is a calibration,
// the ranges of its key channels and how their rounding errors are made up for.
#pragma once

#include <cstdint>
#include <vector>

#include "formats/kv_block.h"
#include "formats/nuq_codebook.h"
#include "kvquant/spec.h"
#include "ops/encode.h"
#include "quant/calibration.h"

namespace kvquant {

struct SideParameters {
  std::vector<NuqCodebook> codebooks;  // one, or one per KV head; never changes
  std::vector<Half> ranges;            // [4, row_size] of keys: scale, zero, low, high; or empty
  std::vector<RoundingFeedback> feedback;  // one per KV head, or empty; points into the calibration

  // Without a calibration (null) the codebook is the heuristic one, ranges and feedback are empty.
  SideParameters(KvSide side, const Codec& codec, const LayerCalibration* calibration);
  SideParameters(const SideParameters&) = delete;
  SideParameters& operator=(const SideParameters&) = delete;

  // What decoding reads: levels and ranges. Feedback belongs to the encoder.
  int64_t memory_bytes() const;
};

}  // namespace kvquant
