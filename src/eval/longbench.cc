#include "eval/longbench.h"

#include <algorithm>

#include "base/check.h"
#include "base/quote.h"
#include "eval/jsonl.h"
#include "kvquant/error.h"

namespace kvquant {
namespace {

struct AskedQuestion {
  std::string text;
  std::vector<std::string> references;
};

struct Prompt {
  std::string before, between, after;  // the document, the question
};

Prompt prompt_of(const SampleMaker& maker, const std::string& task) {
  const auto found = maker.options.prompts.find(task);
  check_arg(found != maker.options.prompts.end(), "there is no prompt for it: see --templates");
  const std::string context = "{context}", input = "{input}";
  const std::string& text = found->second;
  const size_t document = text.find(context), question = text.find(input);
  return {text.substr(0, document),
          text.substr(document + context.size(), question - document - context.size()),
          text.substr(question + input.size())};
}

const std::string& file_of(const SampleMaker& maker, const std::string& task) {
  const auto found = maker.options.data.find(task);
  check_arg(found != maker.options.data.end(), "there is no data: give --data " + task + "=FILE");
  return found->second;
}

int64_t answer_tokens(const std::string& task, EvalMetric metric) {
  if (task == "narrativeqa" || task == "qasper") return 128;
  if (task == "multifieldqa_en") return 64;
  if (task.starts_with("leval_")) return metric == EvalMetric::kQaF1 ? 64 : 32;
  return 32;
}

// One document with its questions. What is too long loses its middle, half of the tokens that fit
// are left on each side of it, the question's among the later ones.
EvalSample make_sample(const SampleMaker& maker, const std::string& task, int64_t length,
                       const std::string& document, const std::vector<AskedQuestion>& questions) {
  const Prompt prompt = prompt_of(maker, task);
  EvalSample out;
  out.stop = EvalStop::kNothing;
  out.context = maker.frame.before;
  out.max_new_tokens = answer_tokens(task, EvalMetric::kQaF1);
  size_t longest = 0;
  for (const AskedQuestion& question : questions) {
    auto tokens = maker.piece(prompt.between + question.text + prompt.after);
    longest = std::max(longest, tokens.size());
    append(tokens, maker.frame.after);
    out.questions.push_back({std::move(tokens), question.references});
  }
  const auto tokens = maker.piece(prompt.before + document);
  const int64_t room = length - num_tokens(out);
  if (std::ssize(tokens) <= room) {
    append(out.context, tokens);
    return out;
  }
  const int64_t whole = room + static_cast<int64_t>(longest);  // of the prompt
  const int64_t first = whole / 2, last = room - first;
  check_arg(last >= 0 && first > 0, "a context of " + std::to_string(length) +
                                        " tokens is too small: a question takes more than half");
  const std::span all = tokens;
  append(out.context, all.first(static_cast<size_t>(first)));
  append(out.context, all.last(static_cast<size_t>(last)));
  return out;
}

// Lengths that the user gave, else the longest there is.
std::vector<EvalCell> cells_of(const EvalTaskOptions& options) {
  if (options.context_lengths.empty()) return {{.length = 0}};
  std::vector<EvalCell> cells;
  for (const int64_t length : options.context_lengths) {
    check_arg(0 < length && length <= options.max_context,
              "a context of " + std::to_string(length) + " tokens is not in [1, " +
                  std::to_string(options.max_context) + "], the model's");
    cells.push_back({.length = length});
  }
  return cells;
}

template <typename ReadLine>
std::vector<EvalSample> make_all(const SampleMaker& maker, const std::string& task,
                                 const ReadLine& read_line) {
  const auto lines = read_jsonl(file_of(maker, task), maker.num_samples(kAllLines));
  std::vector<EvalSample> out;
  for (const EvalCell& cell : cells_of(maker.options)) {
    const int64_t length = cell.length == 0 ? maker.options.max_context : cell.length;
    for (const JsonLine& line : lines) {
      out.push_back(read_line(line, length));
      out.back().cell = cell;
    }
  }
  return out;
}

}  // namespace

std::map<std::string, std::string> read_prompts(const std::string& path) {
  std::map<std::string, std::string> out;
  const Json file = read_json(path);
  if (!file.is_object()) throw FormatError(path + ": not an object of task and prompt");
  for (const auto& [task, prompt] : file.items()) {
    if (!prompt.is_string())
      throw FormatError(path + ": the prompt of " + quote(task) + " is no text");
    const auto text = prompt.get<std::string>();
    const size_t context = text.find("{context}"), input = text.find("{input}");
    // Files of all tasks hold prompts of other kinds, too: those can't be asked for.
    if (context == std::string::npos || input == std::string::npos || input < context) continue;
    out[task] = text;
  }
  return out;
}

std::vector<EvalSample> make_longbench(const SampleMaker& maker, const std::string& task) {
  return make_all(maker, task, [&](const JsonLine& line, int64_t length) {
    auto sample = make_sample(maker, task, length, require_text(line, "context"),
                              {{require_text(line, "input"), require_texts(line, "answers")}});
    sample.metric = EvalMetric::kQaF1;
    return sample;
  });
}

std::vector<EvalSample> make_leval(const SampleMaker& maker, const std::string& task) {
  return make_all(maker, task, [&](const JsonLine& line, int64_t length) {
    const auto instructions = require_texts(line, "instructions");
    const auto outputs = require_texts(line, "outputs");
    if (instructions.size() != outputs.size()) {
      throw FormatError(line.place + ": " + std::to_string(instructions.size()) +
                        " instructions, but " + std::to_string(outputs.size()) + " outputs");
    }
    std::vector<AskedQuestion> questions;
    for (size_t i = 0; i < outputs.size(); ++i) {
      questions.push_back({instructions[i], {outputs[i]}});
    }
    EvalSample sample = make_sample(maker, task, length, require_text(line, "input"), questions);
    sample.metric = EvalMetric::kQaF1;
    if (require_text(line, "evaluation") == "exam") {
      sample.metric = option_letter(outputs[0]) != 0 ? EvalMetric::kOption : EvalMetric::kContained;
    }
    sample.max_new_tokens = answer_tokens(task, sample.metric);
    return sample;
  });
}

std::vector<std::string> longbench_tasks() {
  return {"narrativeqa", "qasper", "multifieldqa_en", "hotpotqa", "2wikimqa", "musique"};
}

std::vector<std::string> leval_tasks() {
  return {"leval_multidoc_qa", "leval_scientific_qa", "leval_quality", "leval_topic_retrieval"};
}

}  // namespace kvquant
