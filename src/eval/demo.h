// The main job in about a minute: a model is calibrated, a long prompt is read into compressed
// caches, facts hidden in it are asked for, and quality, size and speed stand side by side.
#pragma once

#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "eval/perplexity.h"
#include "eval/recall.h"

namespace kvquant {

struct DemoOptions {
  std::vector<CacheSpec> specs;
  // One more row, of pca on values, which is left out where no calibration has bases of its rank.
  std::optional<CacheSpec> low_rank{};
  int64_t window = 1024;    // of the strict perplexity
  int64_t max_windows = 2;  // of it
  int64_t ubatch = 512;
  int64_t context = 0;  // most tokens of the prompt, questions included; 0: the model's
  uint64_t seed = 42;   // of the calibration
};

struct DemoRow {
  PerplexityResult quality;  // strict
  RecallResult recall;       // as served
};

struct DemoResult {
  std::vector<DemoRow> rows;
  std::vector<Fact> facts;  // those asked
  int64_t prompt_tokens = 0;
  double calibration_s = 0;          // 0: nothing was calibrated
  bool calibration_overlap = false;  // the calibration's text and that of the windows
};

// `text` with the facts of `facts` in it. When the text is longer than the context, its beginning
// is used, and facts that are cut off are left out. A model without a calibration is given one from
// the tokens behind the windows, and keeps it; when they are too few for that, none. `stage` is
// told what goes on ("calibrate", "quality", "recall nuq3-1%").
using StageProgress = std::function<Progress(const std::string& stage)>;
DemoResult run_demo(Model& model, const std::string& text, const std::vector<Fact>& facts,
                    const DemoOptions& options, const StageProgress& stage);

// What run_demo calibrates with: all of tokens [begin, end of the text), in at most 8 samples of at
// most 1024 tokens and of the same length. Throws as calibrate does.
Calibration calibrate_on_rest(Model& model, std::span<const int32_t> text, int64_t begin,
                              const DemoOptions& options, const Progress& progress = {});

}  // namespace kvquant
