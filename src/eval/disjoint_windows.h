// Windows of a text that nothing else has used: what a choice is made on must not be what it was
// calibrated on, nor what it is tested on.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "model/model.h"

namespace kvquant {

struct TextRange {
  int64_t begin = 0, end = 0;
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

// A text as tokens, without BOS, and the name that errors call it by.
struct NamedTokens {
  std::string name;
  std::vector<int32_t> tokens;
};

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
ChoiceTexts choose_texts(const Model& model, const NamedTokens& selection, const NamedTokens* test,
                         const ChoiceTextOptions& options);

}  // namespace kvquant
