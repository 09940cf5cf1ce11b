// The three texts of tuning, none of which may be a part of another: what is calibrated on, what
// settings are selected by, and what the selected ones are measured on at the end.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "model/calibrate.h"

namespace kvquant {

struct TuneTexts {
  std::vector<TokenizedText> calibration;  // empty: it is there already
  std::vector<int32_t> selection;          // whole windows, one after the other
  std::vector<int32_t> test;
  std::string test_file;
  int64_t test_begin = 0;  // token of that file
};

struct SplitOptions {
  int64_t window_tokens = 2048;  // without BOS
  int64_t selection_windows = 8;
  int64_t test_windows = 8;
  int64_t calibration_tokens = 2048;  // of a sample, of which one at least is needed; without BOS
};

// Whole windows, text after text: the test is the last ones of the last text, or the first ones of
// `test_text` (null: none), the selection those before it, calibration all before that. Windows
// that samples of `made`, a calibration that is there already (null: none), were cut from are left
// out. Throws std::invalid_argument when the texts are too short for that, or check_disjoint does.
TuneTexts split_texts(std::span<const TokenizedText> texts, const TokenizedText* test_text,
                      const CalibrationInfo* made, const SplitOptions& options);

// By hashes of all runs of 32 tokens: throws std::invalid_argument when more than one in twenty of
// the selection or the test is also in another of the texts, or is there twice.
void check_disjoint(const TuneTexts& texts);

// Whether calibrate would make a calibration of these samples from the texts.
bool was_made_from(const CalibrationInfo& info, std::span<const TokenizedText> texts,
                   const CalibrateOptions& options, int64_t bos);

}  // namespace kvquant
