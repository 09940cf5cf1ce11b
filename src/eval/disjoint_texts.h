// Texts for what must not see each other: what is calibrated on, what a choice is made on, and what
// it is tested on. Ranges are found disjoint by the hashes of their tokens, whatever files they
// came from.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "model/calibrate.h"
#include "model/model.h"

namespace kvquant {

struct TextRange {
  int64_t begin = 0, end = 0;  // tokens
  friend bool operator==(const TextRange&, const TextRange&) = default;
};

// Where samples of the calibration lie in the text, see num_samples_within.
std::vector<TextRange> calibrated_ranges(const CalibrationInfo& info,
                                         std::span<const int32_t> text);

// Up to `count` ranges of `size` tokens that are multiples of `size` from the beginning of the text
// and touch nothing of `used`: kFirst from the beginning, kSpread evenly over all there are.
enum class PickWindows { kFirst, kSpread };
std::vector<TextRange> pick_windows(int64_t text_size, int64_t size, int64_t count,
                                    std::span<const TextRange> used, PickWindows how);

// Whether a whole run of kCommonRun tokens of `a`, counted from its beginning, occurs anywhere in
// `b` (by hash).
inline constexpr int64_t kCommonRun = 64;
bool have_common_run(std::span<const int32_t> a, std::span<const int32_t> b);

// Of one choice: allocate.
struct ChoiceTextOptions {
  int64_t window = 2048;  // tokens, BOS included where the tokenizer adds one
  int64_t num_selection_windows = 1;
  int64_t num_test_windows = 2;
};

struct ChoiceTexts {
  std::vector<std::vector<int32_t>> selection;  // samples, with BOS where the tokenizer adds one
  std::vector<int32_t> test;  // windows one behind the other, without BOS: for evaluate_perplexity
};

// What a choice is made on, spread over `selection`, and what it is tested on: the beginning of
// `test` or, where that is null, of what is left of `selection`. Nothing that the model's
// calibration was made from is in either. Throws std::invalid_argument when a text is too short or
// the second repeats the first.
ChoiceTexts choose_texts(const Model& model, const TokenizedText& selection,
                         const TokenizedText* test, const ChoiceTextOptions& options);

// Of tuning, which may calibrate, too.
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
