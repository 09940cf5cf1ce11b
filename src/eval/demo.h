// The main job in about a minute: a long prompt is read into compressed caches, facts hidden in it
// are asked for, and quality, size and speed stand side by side.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "eval/perplexity.h"
#include "eval/recall.h"

namespace kvquant {

struct DemoOptions {
  std::vector<CacheSpec> specs;
  int64_t window = 1024;    // of the strict perplexity
  int64_t max_windows = 2;  // of it
  int64_t ubatch = 512;
  int64_t context = 0;  // most tokens of the prompt, questions included; 0: the model's
};

struct DemoRow {
  PerplexityResult quality;  // strict
  RecallResult recall;       // as served
};

// `text` with the facts of `facts` in it. When the text is longer than the context, its
// beginning is used, and facts that are cut off are left out; `facts` says which were asked.
// `stage` is told what goes on ("quality", "recall nuq3-1%").
struct DemoResult {
  std::vector<DemoRow> rows;
  std::vector<Fact> facts;
  int64_t prompt_tokens = 0;
};
using StageProgress = std::function<Progress(const std::string& stage)>;
DemoResult run_demo(Model& model, const std::string& text, const std::vector<Fact>& facts,
                    const DemoOptions& options, const StageProgress& stage);

}  // namespace kvquant
