#include "eval/disjoint_texts.h"

#include <fmt/format.h>

#include <algorithm>
#include <unordered_set>

#include "base/check.h"
#include "model/calibration_source.h"

namespace kvquant {
namespace {

constexpr int64_t kTuneRun = 32;      // tokens
constexpr double kMostShared = 0.05;  // share of runs; titles and refrains do come twice

// Hashes of the runs of `size` tokens that begin at every token, by a polynomial that rolls.
std::vector<uint64_t> run_hashes(std::span<const int32_t> tokens, int64_t size = kTuneRun) {
  constexpr uint64_t kBase = 0x9E3779B97F4A7C15;
  uint64_t highest = 1;
  for (int64_t i = 1; i < size; ++i) highest *= kBase;
  std::vector<uint64_t> out;
  uint64_t hash = 0;
  const auto mixed = [](int32_t token) {  // so that small ids differ in high bits, too
    return (static_cast<uint64_t>(token) + 1) * 0xD6E8FEB86659FD93;
  };
  const auto run = static_cast<size_t>(size);
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (i >= run) hash -= mixed(tokens[i - run]) * highest;
    hash = hash * kBase + mixed(tokens[i]);
    if (i + 1 >= run) out.push_back(hash);
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

std::vector<TextRange> ranges_of(const CalibrationInfo* made, std::span<const int32_t> text) {
  return made == nullptr ? std::vector<TextRange>() : calibrated_ranges(*made, text);
}

std::vector<TextRange> used_by_calibration(const Model& model, std::span<const int32_t> text) {
  return ranges_of(model.calibration() ? &model.calibration()->info : nullptr, text);
}

std::span<const int32_t> part(const TokenizedText& text, const TextRange& range) {
  return std::span(text.tokens)
      .subspan(static_cast<size_t>(range.begin), static_cast<size_t>(range.end - range.begin));
}

void check_count(int64_t found, int64_t wanted, const std::string& name, int64_t window) {
  check_arg(found == wanted,
            fmt::format("{}: the text is too short: {} whole windows of {} tokens are used by "
                        "nothing else, {} are needed: give a longer text or smaller windows",
                        name, found, window, wanted));
}

struct Window {
  size_t text = 0;
  int64_t begin = 0;
};

std::vector<Window> whole_windows(std::span<const TokenizedText> texts, const CalibrationInfo* made,
                                  int64_t size) {
  std::vector<Window> out;
  for (size_t i = 0; i < texts.size(); ++i) {
    const auto used = ranges_of(made, texts[i].tokens);
    for (const TextRange& range :
         pick_windows(std::ssize(texts[i].tokens), size, INT64_MAX, used, PickWindows::kFirst)) {
      out.push_back({i, range.begin});
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
  const auto used = ranges_of(made, text.tokens);
  check_arg(std::none_of(used.begin(), used.end(),
                         [&](const TextRange& range) { return range.begin < size; }),
            fmt::format("tune: the calibration was made from a part of the test text {}: the two "
                        "have to be disjoint",
                        text.file));
  append(out.test, text, 0, size);
  out.test_file = text.file;
}

}  // namespace

std::vector<TextRange> calibrated_ranges(const CalibrationInfo& info,
                                         std::span<const int32_t> text) {
  std::vector<TextRange> ranges;
  for (const CalibrationText& sample : info.texts) {
    if (sample.begin < 0 || sample.begin >= sample.end || sample.end > std::ssize(text)) continue;
    const auto tokens = text.subspan(static_cast<size_t>(sample.begin),
                                     static_cast<size_t>(sample.end - sample.begin));
    if (hash_of_tokens(tokens) == sample.hash) ranges.push_back({sample.begin, sample.end});
  }
  return ranges;
}

std::vector<TextRange> pick_windows(int64_t text_size, int64_t size, int64_t count,
                                    std::span<const TextRange> used, PickWindows how) {
  check_arg(size > 0 && count > 0, "windows: size and count must be positive");
  std::vector<TextRange> unused;
  for (int64_t begin = 0; begin <= text_size - size; begin += size) {
    const bool is_used = std::any_of(used.begin(), used.end(), [&](const TextRange& range) {
      return range.begin < begin + size && begin < range.end;
    });
    if (!is_used) unused.push_back({begin, begin + size});
  }
  const int64_t num_unused = std::ssize(unused);
  std::vector<TextRange> picked;
  for (int64_t i = 0; i < std::min(count, num_unused); ++i) {
    const int64_t at =
        how == PickWindows::kFirst || count >= num_unused ? i : i * num_unused / count;
    picked.push_back(unused[static_cast<size_t>(at)]);
  }
  return picked;
}

bool have_common_run(std::span<const int32_t> a, std::span<const int32_t> b) {
  const auto of_a = run_hashes(a, kCommonRun);
  std::unordered_set<uint64_t> runs;
  for (size_t i = 0; i < of_a.size(); i += kCommonRun) runs.insert(of_a[i]);
  const auto of_b = run_hashes(b, kCommonRun);
  return std::any_of(of_b.begin(), of_b.end(), [&](uint64_t hash) { return runs.contains(hash); });
}

ChoiceTexts choose_texts(const Model& model, const TokenizedText& selection,
                         const TokenizedText* test, const ChoiceTextOptions& options) {
  const TokenizerData& data = model.tokenizer().data();
  const bool has_bos = data.add_bos && data.bos >= 0;
  const int64_t size = options.window - (has_bos ? 1 : 0);
  check_arg(size >= 1, fmt::format("windows of {} tokens are too short", options.window));
  auto used = used_by_calibration(model, selection.tokens);
  const auto picked = pick_windows(std::ssize(selection.tokens), size,
                                   options.num_selection_windows, used, PickWindows::kSpread);
  check_count(std::ssize(picked), options.num_selection_windows, selection.file, options.window);
  ChoiceTexts out;
  std::vector<int32_t> all;
  for (const TextRange& range : picked) {
    const auto tokens = part(selection, range);
    auto& sample = out.selection.emplace_back();
    if (has_bos) sample.push_back(data.bos);
    sample.insert(sample.end(), tokens.begin(), tokens.end());
    all.insert(all.end(), tokens.begin(), tokens.end());
  }
  const TokenizedText& rest = test == nullptr ? selection : *test;
  if (test == nullptr) {
    used.insert(used.end(), picked.begin(), picked.end());
  } else {
    used = used_by_calibration(model, test->tokens);
  }
  const auto tested = pick_windows(std::ssize(rest.tokens), size, options.num_test_windows, used,
                                   PickWindows::kFirst);
  check_count(std::ssize(tested), options.num_test_windows, rest.file, options.window);
  for (const TextRange& range : tested) {
    const auto tokens = part(rest, range);
    out.test.insert(out.test.end(), tokens.begin(), tokens.end());
  }
  check_arg(!have_common_run(all, out.test),
            fmt::format("{} repeats what was selected from {}: a test needs another text",
                        rest.file, selection.file));
  return out;
}

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
