#include "eval/disjoint_windows.h"

#include <fmt/format.h>

#include <algorithm>
#include <unordered_set>

#include "base/check.h"
#include "base/hash.h"
#include "model/calibration_source.h"

namespace kvquant {
namespace {

uint64_t hash_of_run(std::span<const int32_t> tokens, int64_t begin) {
  Hash64 hash;
  for (int64_t i = begin; i < begin + kCommonRun; ++i) {
    hash.add_integer(tokens[static_cast<size_t>(i)]);
  }
  return hash.value();
}

std::vector<TextRange> used_by_calibration(const Model& model, std::span<const int32_t> text) {
  if (model.calibration() == nullptr) return {};
  return calibrated_ranges(model.calibration()->info, text);
}

std::span<const int32_t> part(const NamedTokens& text, const TextRange& range) {
  return std::span(text.tokens)
      .subspan(static_cast<size_t>(range.begin), static_cast<size_t>(range.end - range.begin));
}

void check_count(int64_t found, int64_t wanted, const std::string& name, int64_t window) {
  check_arg(found == wanted,
            fmt::format("{}: the text is too short: {} whole windows of {} tokens are used by "
                        "nothing else, {} are needed: give a longer text or smaller windows",
                        name, found, window, wanted));
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
  std::unordered_set<uint64_t> runs;
  for (int64_t i = 0; i + kCommonRun <= std::ssize(a); i += kCommonRun) {
    runs.insert(hash_of_run(a, i));
  }
  for (int64_t i = 0; i + kCommonRun <= std::ssize(b); ++i) {
    if (runs.contains(hash_of_run(b, i))) return true;
  }
  return false;
}

ChoiceTexts choose_texts(const Model& model, const NamedTokens& selection, const NamedTokens* test,
                         const ChoiceTextOptions& options) {
  const TokenizerData& data = model.tokenizer().data();
  const bool has_bos = data.add_bos && data.bos >= 0;
  const int64_t size = options.window - (has_bos ? 1 : 0);
  check_arg(size >= 1, fmt::format("windows of {} tokens are too short", options.window));
  auto used = used_by_calibration(model, selection.tokens);
  const auto picked = pick_windows(std::ssize(selection.tokens), size,
                                   options.num_selection_windows, used, PickWindows::kSpread);
  check_count(std::ssize(picked), options.num_selection_windows, selection.name, options.window);
  ChoiceTexts out;
  std::vector<int32_t> all;
  for (const TextRange& range : picked) {
    const auto tokens = part(selection, range);
    auto& sample = out.selection.emplace_back();
    if (has_bos) sample.push_back(data.bos);
    sample.insert(sample.end(), tokens.begin(), tokens.end());
    all.insert(all.end(), tokens.begin(), tokens.end());
  }
  const NamedTokens& rest = test == nullptr ? selection : *test;
  if (test == nullptr) {
    used.insert(used.end(), picked.begin(), picked.end());
  } else {
    used = used_by_calibration(model, test->tokens);
  }
  const auto tested = pick_windows(std::ssize(rest.tokens), size, options.num_test_windows, used,
                                   PickWindows::kFirst);
  check_count(std::ssize(tested), options.num_test_windows, rest.name, options.window);
  for (const TextRange& range : tested) {
    const auto tokens = part(rest, range);
    out.test.insert(out.test.end(), tokens.begin(), tokens.end());
  }
  check_arg(!have_common_run(all, out.test),
            fmt::format("{} repeats what was selected from {}: a test needs another text",
                        rest.name, selection.name));
  return out;
}

}  // namespace kvquant
