// Sampling flags and timings that generate and chat share.
#pragma once

#include <CLI/CLI.hpp>

#include "model/session.h"

namespace kvquant::cli {

struct SamplingOptions {
  int64_t max_tokens = 128;
  SamplerOptions sampler;
};

void add_sampling_flags(CLI::App& command, SamplingOptions& options);

// Prompt and generation speed, cache bytes and what was compressed, to stderr.
void print_timings(const Generation& generation, const Session& session, const CacheSpec& spec);

}  // namespace kvquant::cli
