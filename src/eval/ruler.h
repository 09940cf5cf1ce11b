// The synthetic tasks of RULER (arXiv 2404.06654) with its published parameters, in words of our
// own: needles of many kinds, chains of variables, frequent words, questions among distractors. A
// sample's tokens, generated ones included, are as many as fit into its length.
#pragma once

#include <string>
#include <vector>

#include "eval/sample_maker.h"

namespace kvquant {

// Needles "The secret number of quiet-harbor is 4821357." in noise, in essays or among needles.
struct NiahPlan {
  enum class Haystack { kNoise, kEssay, kNeedles };
  enum class Part { kWords, kNumber, kUuid };
  const char* task;
  Haystack haystack;
  Part key, value;
  int num_keys = 1;     // needles with different keys
  int num_values = 1;   // needles with the same key
  int num_queries = 1;  // keys that are asked for
};
std::vector<NiahPlan> niah_plans();  // niah_single_1 ... niah_multiquery
std::vector<EvalSample> make_niah(const SampleMaker& maker, const NiahPlan& plan);

// One chain of five variables in noise; all that have its value are asked for.
std::vector<EvalSample> make_vt(const SampleMaker& maker);
// Ten words that stand in a list more often than all others.
std::vector<EvalSample> make_cwe(const SampleMaker& maker);
// The second to fourth most frequent of coded words whose frequencies follow Zipf's law.
std::vector<EvalSample> make_fwe(const SampleMaker& maker);
// Questions of a SQuAD or HotpotQA file among shuffled documents of the same file.
std::vector<EvalSample> make_ruler_qa(const SampleMaker& maker, const std::string& task);

// Samples of RULER's own JSONL ("input", "outputs", "answer_prefix" where there is one).
std::vector<EvalSample> read_ruler(const SampleMaker& maker, const std::string& task,
                                   const std::string& path);

// Tokens that an answer may have; how it is scored.
int64_t ruler_answer_tokens(const std::string& task);
EvalMetric ruler_metric(const std::string& task);

inline constexpr int64_t kRulerSamples = 500;  // of each length

}  // namespace kvquant
