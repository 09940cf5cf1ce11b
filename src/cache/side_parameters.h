// What all sequences share of one side of a layer: its codebooks, the maps of latents and, where
// there is a calibration, the ranges of its key channels and how their rounding errors are made up
// for.
#pragma once

#include <cstdint>
#include <vector>

#include "formats/kv_block.h"
#include "formats/nuq_codebook.h"
#include "kvquant/spec.h"
#include "ops/encode.h"
#include "ops/latent.h"
#include "quant/calibration.h"
#include "quant/value_basis.h"

namespace kvquant {

struct SideParameters {
  std::vector<NuqCodebook> codebooks;  // one, or one per KV head; never changes
  std::vector<Half> ranges;            // [4, row_size] of keys: scale, zero, low, high; or empty
  std::vector<RoundingFeedback> feedback;  // one per KV head, or empty; points into the calibration
  ValueBasis basis;                        // of latents
  std::vector<LatentMap> latents;          // one per KV head, or empty; points into the basis

  // Without a calibration (null) the codebook is the heuristic one, ranges and feedback are empty.
  // Throws what make_value_basis and make_key_basis throw.
  SideParameters(KvSide side, const Codec& codec, const BasisShape& shape,
                 const LayerCalibration* calibration);
  SideParameters(const SideParameters&) = delete;
  SideParameters& operator=(const SideParameters&) = delete;

  // What attention reads: levels, ranges, mean and D of latents. Feedback and A (where it is not D)
  // belong to the encoder.
  int64_t memory_bytes() const;
};

}  // namespace kvquant
