#include "eval/tune_texts.h"

#include <fmt/format.h>

#include <algorithm>
#include <unordered_set>

#include "base/check.h"
#include "model/calibration_source.h"

namespace kvquant {
namespace {

constexpr int64_t kRun = 32;          // tokens
constexpr double kMostShared = 0.05;  // share of runs; titles and refrains do come twice

// Hashes of the runs that begin at every token, by a polynomial that rolls.
std::vector<uint64_t> run_hashes(std::span<const int32_t> tokens) {
  constexpr uint64_t kBase = 0x9E3779B97F4A7C15;
  uint64_t highest = 1;
  for (int64_t i = 1; i < kRun; ++i) highest *= kBase;
  std::vector<uint64_t> out;
  uint64_t hash = 0;
  const auto mixed = [](int32_t token) {  // so that small ids differ in high bits, too
    return (static_cast<uint64_t>(token) + 1) * 0xD6E8FEB86659FD93;
  };
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (i >= kRun) hash -= mixed(tokens[i - kRun]) * highest;
    hash = hash * kBase + mixed(tokens[i]);
    if (i + 1 >= kRun) out.push_back(hash);
  }
  return out;
}

std::unordered_set<uint64_t> run_set(std::span<const int32_t> tokens) {
  const auto hashes = run_hashes(tokens);
  return {hashes.begin(), hashes.end()};
}

double share_within(const std::vector<uint64_t>& hashes, const std::unordered_set<uint64_t>& set) {
  if (hashes.empty()) return 0;
  const auto count =
      std::count_if(hashes.begin(), hashes.end(), [&](uint64_t h) { return set.contains(h); });
  return static_cast<double>(count) / static_cast<double>(hashes.size());
}

void expect_little(double share, const char* what, const char* where) {
  check_arg(share <= kMostShared,
            fmt::format("tune: {:.0f}% of the {} text is {}: the texts of calibration, selection "
                        "and test have to be disjoint and must not repeat themselves: give others",
                        100 * share, what, where));
}

void check_repeats(std::span<const int32_t> tokens, const char* what) {
  const auto hashes = run_hashes(tokens);
  const std::unordered_set<uint64_t> distinct(hashes.begin(), hashes.end());
  const double count = static_cast<double>(std::max<size_t>(hashes.size(), 1));
  expect_little(1 - static_cast<double>(distinct.size()) / count, what, "there more than once");
}

struct Window {
  size_t text = 0;
  int64_t begin = 0;
};

// Whether a sample of the calibration, cut from this very text, has tokens of [begin, end).
bool is_calibrated_on(const CalibrationInfo* made, std::span<const int32_t> text, int64_t begin,
                      int64_t end) {
  if (made == nullptr) return false;
  return std::any_of(made->texts.begin(), made->texts.end(), [&](const CalibrationText& sample) {
    if (sample.begin >= end || sample.end <= begin) return false;
    if (sample.end > static_cast<int64_t>(text.size())) return false;
    const auto tokens = text.subspan(static_cast<size_t>(sample.begin),
                                     static_cast<size_t>(sample.end - sample.begin));
    return hash_of_tokens(tokens) == sample.hash;
  });
}

std::vector<Window> whole_windows(std::span<const TokenizedText> texts, const CalibrationInfo* made,
                                  int64_t size) {
  std::vector<Window> out;
  for (size_t i = 0; i < texts.size(); ++i) {
    const auto length = static_cast<int64_t>(texts[i].tokens.size());
    for (int64_t begin = 0; begin + size <= length; begin += size) {
      if (!is_calibrated_on(made, texts[i].tokens, begin, begin + size)) out.push_back({i, begin});
    }
  }
  return out;
}

void append(std::vector<int32_t>& out, const TokenizedText& text, int64_t begin, int64_t size) {
  const auto first = text.tokens.begin() + begin;
  out.insert(out.end(), first, first + size);
}

// The first windows of a text of its own.
void take_test(const TokenizedText& text, const CalibrationInfo* made, const SplitOptions& options,
               TuneTexts& out) {
  const int64_t size = options.test_windows * options.window_tokens;
  const auto length = static_cast<int64_t>(text.tokens.size());
  check_arg(size <= length,
            fmt::format("tune: the test text {} has {} tokens, {} windows of {} "
                        "need {}: give a longer one, fewer --test-windows or a "
                        "shorter --ctx",
                        text.file, length, options.test_windows, options.window_tokens, size));
  check_arg(!is_calibrated_on(made, text.tokens, 0, size),
            fmt::format("tune: the calibration was made from a part of the test text {}: the two "
                        "have to be disjoint",
                        text.file));
  append(out.test, text, 0, size);
  out.test_file = text.file;
}

}  // namespace

TuneTexts split_texts(std::span<const TokenizedText> texts, const TokenizedText* test_text,
                      const CalibrationInfo* made, const SplitOptions& options) {
  TuneTexts out;
  auto windows = whole_windows(texts, made, options.window_tokens);
  const auto have = static_cast<int64_t>(windows.size());
  const int64_t of_test = test_text == nullptr ? options.test_windows : 0;
  const auto too_short = [&](const std::string& more) {
    throw std::invalid_argument(fmt::format(
        "tune: the text is too short to be disjoint: it has {} whole windows of {} tokens{}; {} "
        "for selection and {} for the test are needed{}: give more text, fewer --windows or a "
        "shorter --ctx",
        have, options.window_tokens,
        made == nullptr ? "" : " that the calibration was not made from", options.selection_windows,
        of_test, more));
  };
  const std::string and_calibration =
      made == nullptr
          ? fmt::format(" beside a calibration sample of {} tokens", options.calibration_tokens)
          : "";
  if (have < of_test + options.selection_windows) too_short(and_calibration);
  if (test_text != nullptr) {
    take_test(*test_text, made, options, out);
  } else {
    const size_t last = windows.back().text;
    const auto first = windows.end() - of_test;
    check_arg(
        first->text == last,
        fmt::format("tune: the test needs {} windows of {} tokens of the last text, {}, which "
                    "is too short: give a longer one last, or one of its own with --test",
                    of_test, options.window_tokens, texts[last].file));
    for (auto w = first; w != windows.end(); ++w) {
      append(out.test, texts[last], w->begin, options.window_tokens);
    }
    out.test_file = texts[last].file;
    out.test_begin = first->begin;
    windows.erase(first, windows.end());
  }
  const auto first = windows.end() - options.selection_windows;
  for (auto w = first; w != windows.end(); ++w) {
    append(out.selection, texts[w->text], w->begin, options.window_tokens);
  }
  if (made == nullptr) {
    int64_t longest = 0;
    for (size_t i = 0; i <= first->text; ++i) {
      TokenizedText text = texts[i];
      if (i == first->text) text.tokens.resize(static_cast<size_t>(first->begin));
      longest = std::max(longest, static_cast<int64_t>(text.tokens.size()));
      out.calibration.push_back(std::move(text));
    }
    if (longest < options.calibration_tokens) too_short(and_calibration);
  }
  check_disjoint(out);
  return out;
}

void check_disjoint(const TuneTexts& texts) {
  check_repeats(texts.selection, "selection");
  check_repeats(texts.test, "test");
  const auto selection = run_hashes(texts.selection), test = run_hashes(texts.test);
  expect_little(share_within(selection, run_set(texts.test)), "selection", "in the test text");
  for (const TokenizedText& text : texts.calibration) {
    const auto runs = run_set(text.tokens);
    expect_little(share_within(selection, runs), "selection", "in the calibration text");
    expect_little(share_within(test, runs), "test", "in the calibration text");
  }
}

bool was_made_from(const CalibrationInfo& info, std::span<const TokenizedText> texts,
                   const CalibrateOptions& options, int64_t bos) {
  const int64_t size = options.seq_len - bos;
  std::vector<int64_t> lengths;
  for (const auto& text : texts) lengths.push_back(static_cast<int64_t>(text.tokens.size()));
  const auto windows = choose_windows(lengths, size, options.num_samples, options.seed);
  if (windows.size() != info.texts.size() || info.seq_len != options.seq_len) return false;
  for (size_t i = 0; i < windows.size(); ++i) {
    const auto& tokens = texts[static_cast<size_t>(windows[i].text)].tokens;
    const auto sample =
        std::span(tokens).subspan(static_cast<size_t>(windows[i].begin), static_cast<size_t>(size));
    if (hash_of_tokens(sample) != info.texts[i].hash) return false;
  }
  return info.seed == options.seed && info.holds.empty() &&
         info.recipe == to_string(options.choices);
}

}  // namespace kvquant
