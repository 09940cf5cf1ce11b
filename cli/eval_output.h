// What kvquant eval says of its results: JSON in the manner of lm-eval, a Markdown table, verdicts.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "bench/result.h"
#include "eval/evaluate.h"

namespace kvquant::cli {

struct EvalReport {
  Json num_samples;                   // task -> {"effective": n}
  Json results;                       // one object per spec and task
  std::string markdown;               // tables and verdicts
  std::vector<std::string> warnings;  // specs that read nothing compressed
  std::vector<std::string> losses;    // significant ones
};

// `results` as evaluate_samples returns them, fp16 first.
EvalReport make_report(const Model& model, std::span<const EvalSample> samples,
                       std::span<const SpecResults> results);

}  // namespace kvquant::cli
