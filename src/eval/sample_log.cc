#include "eval/sample_log.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "kvquant/error.h"

namespace kvquant {
namespace {

using Json = nlohmann::ordered_json;

std::string key_of(const std::string& run, const std::string& spec, const std::string& task,
                   uint64_t seed, const std::string& sample) {
  return run + "\n" + spec + "\n" + task + "\n" + std::to_string(seed) + "\n" + sample;
}

}  // namespace

SampleLog::SampleLog(const std::string& path)
    : file_(path, [&](const std::string& line, const std::string& place) { read(line, place); }) {}

void SampleLog::read(const std::string& text, const std::string& place) {
  try {
    const Json line = Json::parse(text);
    SampleResult result;
    line.at("answers").get_to(result.answers);
    line.at("scores").get_to(result.scores);
    line.at("compressed_tokens").get_to(result.compressed_tokens);
    for (const double score : result.scores) {
      if (!(0 <= score && score <= 1)) throw FormatError("a score is not in [0, 1]");
    }
    if (line.contains("extra")) line.at("extra").get_to(result.extra);
    results_[key_of(line.at("run"), line.at("spec"), line.at("task"), line.at("seed"),
                    line.at("sample"))] = std::move(result);
  } catch (const std::exception& error) {
    throw FormatError(place + ": not a line of sample results (" + error.what() +
                      "); take the line or the file away");
  }
}

const SampleResult* SampleLog::find(const std::string& run, const std::string& spec,
                                    const EvalSample& sample) const {
  const auto found = results_.find(key_of(run, spec, sample.task, sample.seed, sample_id(sample)));
  if (found == results_.end()) return nullptr;
  const SampleResult& result = found->second;
  const size_t count = sample.questions.size();
  std::vector<std::string> extra;  // what there has to be, no less and no more
  if (sample.metric == EvalMetric::kChoice) extra.push_back("acc_norm");
  if (asks_likelihoods(sample)) extra.push_back("nll");
  const bool has_extra = std::equal(extra.begin(), extra.end(), result.extra.begin(),
                                    result.extra.end(), [&](const auto& name, const auto& known) {
                                      return name == known.first && known.second.size() == count;
                                    });
  const bool is_whole = result.answers.size() == count && result.scores.size() == count;
  return has_extra && is_whole ? &result : nullptr;
}

void SampleLog::add(const std::string& run, const std::string& spec, const EvalSample& sample,
                    const SampleResult& result, const Tokenizer* tokenizer) {
  const std::string id = sample_id(sample);
  results_[key_of(run, spec, sample.task, sample.seed, id)] = result;
  if (!file_.is_file()) return;
  Json line = {{"run", run},          {"task", sample.task}, {"spec", spec},
               {"seed", sample.seed}, {"sample", id},        {"length", sample.cell.length}};
  if (sample.cell.depth >= 0) line["depth"] = sample.cell.depth;
  for (const EvalQuestion& question : sample.questions) {
    line["references"].push_back(question.references);
  }
  line["answers"] = result.answers;
  line["scores"] = result.scores;
  line["compressed_tokens"] = result.compressed_tokens;
  if (!result.extra.empty()) line["extra"] = result.extra;
  if (tokenizer != nullptr) {
    line["context"] = tokenizer->decode(sample.context, true);
    for (const EvalQuestion& question : sample.questions) {
      line["questions"].push_back(tokenizer->decode(question.tokens, true));
    }
  }
  file_.add(line);
}

}  // namespace kvquant
