// How answers are scored, from 0 to 1. Letters are ASCII's where their case is ignored.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace kvquant {

enum class EvalMetric {
  kContained,     // the share of references that the answer contains
  kAnyContained,  // 1 when it contains one of them
  kQaF1,          // the best F1 over the references
  kOption,        // 1 when it names the same letter as the reference, "(B) ..."
  kLeadingWords,  // the share of the reference's words that it has in a row from its beginning
  kChoice,        // likelihoods: 1 when the right choice is the most likely one
  kLastWord,      // likelihoods: 1 when each token of the one choice is the most likely one
};
// What results call the score: "contains", "f1", "acc", ...
const char* metric_name(EvalMetric metric);

// The share of references that the answer contains, whatever the case of letters. 0 without
// references.
double contained_share(const std::string& answer, const std::vector<std::string>& references);

// Words as QA-F1 compares them (arXiv 1606.05250): small letters, no punctuation, no articles.
std::vector<std::string> normalised_words(std::string_view text);

// Harmonic mean of precision and recall of normalised words, repeated ones counted.
double qa_f1(std::string_view answer, std::string_view reference);

// The option that a text names: the first of A to H in parentheses, else the first that stands
// alone or before '.', ')' or ':'; 0 when there is none.
char option_letter(std::string_view text);

// The share of the reference's words that the answer begins with.
double leading_word_share(std::string_view answer, std::string_view reference);

// One of the metrics of answers. 0 without references.
double score_answer(EvalMetric metric, const std::string& answer,
                    const std::vector<std::string>& references);

}  // namespace kvquant
