// kvquant bench --baseline: other engines on the same shapes.
#pragma once

#include "bench/model_bench.h"
#include "cli/common.h"

namespace kvquant::cli {

struct BaselineOptions {
  bool is_asked = false;
  std::string gguf;    // the model for llama.cpp; empty: that of -m when it is one
  std::string output;  // "md", "csv", "json" or "jsonl"
};

// Becomes the Python package (python/kvquant/baselines), which runs the engines in turn. Throws
// std::invalid_argument for a model or a spec that can't be, IoError without Python.
[[noreturn]] void become_baseline(const BaselineOptions& options, const CommonOptions& common,
                                  const ModelBenchOptions& bench);

}  // namespace kvquant::cli
