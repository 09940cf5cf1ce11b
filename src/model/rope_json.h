// The rotation as config.json says it: rope_theta and rope_scaling, or rope_parameters as
// transformers 5 writes it.
#pragma once

#include <cstdint>
#include <string>

#include "formats/json_fields.h"
#include "ops/rope_scaling.h"

namespace kvquant {

struct RopeConfig {
  double theta = 10000;
  RopeScaling scaling{};
};

// max_context: max_position_embeddings. Throws FormatError naming types and keys that are not
// supported; numbers are checked by rope_scaling_fault later.
RopeConfig rope_from_json(const Json& config, int64_t max_context, const std::string& path);

}  // namespace kvquant
