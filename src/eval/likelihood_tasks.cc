#include "eval/likelihood_tasks.h"

#include <algorithm>
#include <filesystem>
#include <sstream>

#include "base/check.h"
#include "base/file.h"
#include "kvquant/error.h"

namespace kvquant {
namespace {

ChoiceText read_choice(const std::string& task, const JsonLine& line) {
  if (task == "lambada") return read_lambada(line);
  if (task == "hellaswag") return read_hellaswag(line);
  if (task == "piqa") return read_piqa(line);
  return read_arc(line);
}

// PIQA publishes labels in a file of their own.
void add_labels(const std::string& path, std::vector<JsonLine>& lines) {
  if (lines[0].object.contains("label")) return;
  const std::filesystem::path file(path);
  const auto labels = file.parent_path() / (file.stem().string() + "-labels.lst");
  if (!std::filesystem::exists(labels)) return;
  std::istringstream in(read_text(labels.string()));
  std::string label;
  for (JsonLine& line : lines) {
    if (!(in >> label)) {
      throw FormatError(labels.string() + ": fewer labels than " + path + " has lines");
    }
    line.object["label"] = label;
  }
}

int64_t num_characters(const std::string& text) {  // of UTF-8, the space in front left out
  return std::count_if(text.begin(), text.end(),
                       [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }) -
         1;
}

EvalSample make_sample(const SampleMaker& maker, const std::string& examples,
                       const ChoiceText& text) {
  EvalSample out;
  out.context = maker.tokenizer.encode(examples + text.context, Tokenizer::Special::kAsText);
  EvalQuestion question;
  if (out.context.size() > 1) {  // the token that predicts the first one of each choice
    question.tokens.push_back(out.context.back());
    out.context.pop_back();
  }
  for (const std::string& choice : text.choices) {
    question.choices.push_back({maker.piece(choice), num_characters(choice)});
  }
  question.references = {text.choices[text.right]};
  question.right_choice = static_cast<int64_t>(text.right);
  out.questions.push_back(std::move(question));
  return out;
}

}  // namespace

std::vector<EvalSample> make_likelihood(const SampleMaker& maker, const std::string& task) {
  const auto found = maker.options.data.find(task);
  check_arg(found != maker.options.data.end(), "there is no data: give --data " + task + "=FILE");
  const int64_t num_examples = maker.options.num_fewshot;
  const int64_t wanted = maker.num_samples(kAllLines);
  auto lines = read_jsonl(found->second,
                          wanted > kAllLines - num_examples ? kAllLines : wanted + num_examples);
  if (task == "piqa") add_labels(found->second, lines);
  if (std::ssize(lines) <= num_examples) {
    throw FormatError(found->second + ": no line is left behind " + std::to_string(num_examples) +
                      " examples");
  }
  std::string examples;
  std::vector<EvalSample> out;
  for (int64_t i = 0; i < std::ssize(lines); ++i) {
    const JsonLine& line = lines[static_cast<size_t>(i)];
    const ChoiceText text = read_choice(task, line);
    if (i < num_examples) {
      examples += text.context + text.choices[text.right] + "\n\n";
      continue;
    }
    EvalSample sample = make_sample(maker, examples, text);
    sample.metric = task == "lambada" ? EvalMetric::kLastWord : EvalMetric::kChoice;
    const auto& choices = sample.questions[0].choices;
    if (sample.questions[0].tokens.empty() ||
        std::any_of(choices.begin(), choices.end(),
                    [](const EvalChoice& choice) { return choice.tokens.empty(); })) {
      throw FormatError(line.place + ": a context of less than two tokens, or an empty choice");
    }
    if (num_tokens(sample) > maker.options.max_context) {
      throw FormatError(line.place + ": " + std::to_string(num_tokens(sample)) +
                        " tokens are more than the context of " +
                        std::to_string(maker.options.max_context));
    }
    out.push_back(std::move(sample));
  }
  return out;
}

}  // namespace kvquant
