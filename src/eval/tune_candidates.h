// The specs that tuning tries: ranks times bits for the sides that are to be compressed, and what
// else is named.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kvquant/preset.h"
#include "kvquant/spec.h"

namespace kvquant {

struct CandidateOptions {
  PresetTarget target = PresetTarget::kValues;
  std::vector<int64_t> ranks{};            // of pca; empty: default_rank_grid
  std::vector<int64_t> bits = {16, 8, 4};  // of its latents
  // Plain codecs of the target's sides, "had+nuq4"; "nuq4-1%/had+nuq4" are those of keys and
  // values.
  std::vector<std::string> codecs{};
  std::vector<std::string> specs{};         // whole ones
  std::optional<int64_t> sink{}, recent{};  // tokens kept exactly, of all but whole specs
};

// d, d/1.1, d/1.2, d/1.33, d/1.5, d/1.6, d/2, rounded; the published plan's.
std::vector<int64_t> default_rank_grid(int64_t head_dim);

// No two mean the same. Throws std::invalid_argument for ranks outside [1, head_dim], bits other
// than 16, 8 and 4, codecs and specs that are none, do not fit or are not built.
std::vector<CacheSpec> tune_candidates(const CandidateOptions& options, int64_t num_layers,
                                       int64_t head_dim);

}  // namespace kvquant
