// Calibrates a model: chooses samples of texts, streams them through its layers, fits every layer.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/progress.h"
#include "model/model.h"
#include "quant/calibration.h"
#include "quant/fit_choices.h"

namespace kvquant {

struct TokenizedText {
  std::string file;  // path or name; the calibration keeps the name only
  std::vector<int32_t> tokens;
};

struct CalibrateOptions {
  int64_t num_samples = 16;  // at most: what the texts don't give is left out
  int64_t seq_len = 2048;    // tokens of a sample, with BOS where the tokenizer adds one
  int64_t rank = 0;          // components of the stored bases; 0: head_dim
  uint64_t seed = 42;
  int64_t ubatch = 512;
  FitChoices choices = {};
  std::string fisher = {};  // path of squared gradients, see FisherFile; for Fisher weights
};

inline constexpr int64_t kMinCalibrationSeqLen = 16;

// Disjoint windows of `size` tokens spread over the texts: the whole windows, text after text, are
// cut into num_samples equal parts and one of each is chosen by the seed; all of them when there
// are no more than num_samples. In the order of the texts.
struct TextWindow {
  int64_t text = 0;   // index
  int64_t begin = 0;  // token
};
std::vector<TextWindow> choose_windows(std::span<const int64_t> text_lengths, int64_t size,
                                       int64_t num_samples, uint64_t seed);

// The same model, texts and options give the same calibration at any number of threads. Throws
// std::invalid_argument when the options don't fit the model or the texts hold no whole sample, and
// what stream_layers throws. info.kvquant_version is left to the caller.
Calibration calibrate(Model& model, std::span<const TokenizedText> texts,
                      const CalibrateOptions& options, const Progress& progress = {});

}  // namespace kvquant
