#include "eval/scorers.h"

#include <algorithm>
#include <map>

namespace kvquant {
namespace {

bool is_letter(char c) { return ('a' <= c && c <= 'z') || ('A' <= c && c <= 'Z'); }
bool is_digit(char c) { return '0' <= c && c <= '9'; }
bool is_space(char c) { return c == ' ' || ('\t' <= c && c <= '\r'); }
bool is_punctuation(char c) { return '!' <= c && c <= '~' && !is_letter(c) && !is_digit(c); }
char lower(char c) { return 'A' <= c && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) c = lower(c);
  return out;
}

std::vector<std::string> split_words(std::string_view text) {
  std::vector<std::string> words;
  bool in_word = false;
  for (const char c : text) {
    if (is_space(c)) {
      in_word = false;
      continue;
    }
    if (!in_word) words.emplace_back();
    words.back() += c;
    in_word = true;
  }
  return words;
}

bool contains(const std::string& lower_answer, const std::string& reference) {
  return lower_answer.find(lower(reference)) != std::string::npos;
}

}  // namespace

const char* metric_name(EvalMetric metric) {
  switch (metric) {
    case EvalMetric::kContained: return "contains";
    case EvalMetric::kAnyContained: return "contains_any";
    case EvalMetric::kQaF1: return "f1";
    case EvalMetric::kOption: return "exact_match";
    case EvalMetric::kLeadingWords: return "leading_words";
    case EvalMetric::kChoice:
    case EvalMetric::kLastWord: return "acc";
  }
  return "";
}

double contained_share(const std::string& answer, const std::vector<std::string>& references) {
  if (references.empty()) return 0;
  const std::string text = lower(answer);
  const auto found = std::count_if(references.begin(), references.end(),
                                   [&](const std::string& r) { return contains(text, r); });
  return static_cast<double>(found) / static_cast<double>(references.size());
}

std::vector<std::string> normalised_words(std::string_view text) {
  std::string kept;
  for (const char c : text) {
    if (!is_punctuation(c)) kept += lower(c);
  }
  auto words = split_words(kept);
  std::erase_if(words, [](const std::string& w) { return w == "a" || w == "an" || w == "the"; });
  return words;
}

double qa_f1(std::string_view answer, std::string_view reference) {
  const auto said = normalised_words(answer), expected = normalised_words(reference);
  std::map<std::string, int> left;
  for (const auto& word : expected) ++left[word];
  int num_same = 0;
  for (const auto& word : said) {
    const auto found = left.find(word);
    if (found == left.end() || found->second == 0) continue;
    --found->second;
    ++num_same;
  }
  if (num_same == 0) return 0;
  const double precision = num_same / static_cast<double>(said.size());
  const double recall = num_same / static_cast<double>(expected.size());
  return 2 * precision * recall / (precision + recall);
}

char option_letter(std::string_view text) {
  const auto is_option = [](char c) { return 'A' <= c && c <= 'H'; };
  for (size_t i = 0; i + 2 < text.size(); ++i) {
    if (text[i] == '(' && is_option(text[i + 1]) && text[i + 2] == ')') return text[i + 1];
  }
  for (size_t i = 0; i < text.size(); ++i) {
    if (!is_option(text[i]) || (i > 0 && !is_space(text[i - 1]))) continue;
    const char next = i + 1 < text.size() ? text[i + 1] : '.';
    const bool ends_text = i + 1 == text.size() || next == '\n';
    if (ends_text || next == '.' || next == ')' || next == ':') return text[i];
  }
  return 0;
}

double leading_word_share(std::string_view answer, std::string_view reference) {
  const auto said = split_words(answer), expected = split_words(reference);
  if (expected.empty()) return 0;
  const size_t shorter = std::min(said.size(), expected.size());
  const auto same =
      std::mismatch(expected.begin(), expected.begin() + static_cast<std::ptrdiff_t>(shorter),
                    said.begin())
          .first -
      expected.begin();
  return static_cast<double>(same) / static_cast<double>(expected.size());
}

double score_answer(EvalMetric metric, const std::string& answer,
                    const std::vector<std::string>& references) {
  if (metric == EvalMetric::kContained) return contained_share(answer, references);
  double best = 0;
  for (const std::string& reference : references) {
    double score = 0;
    switch (metric) {
      case EvalMetric::kAnyContained: score = contained_share(answer, {reference}); break;
      case EvalMetric::kQaF1: score = qa_f1(answer, reference); break;
      case EvalMetric::kOption:
        score = option_letter(reference) != 0 && option_letter(answer) == option_letter(reference);
        break;
      case EvalMetric::kLeadingWords: score = leading_word_share(answer, reference); break;
      case EvalMetric::kContained:
      case EvalMetric::kChoice:
      case EvalMetric::kLastWord: break;
    }
    best = std::max(best, score);
  }
  return best;
}

}  // namespace kvquant
