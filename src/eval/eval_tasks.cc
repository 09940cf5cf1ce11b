#include "eval/eval_tasks.h"

#include <algorithm>
#include <map>

#include "base/check.h"
#include "base/hash.h"
#include "base/quote.h"
#include "base/rng.h"
#include "eval/planted.h"
#include "eval/prompt_parts.h"

namespace kvquant {
namespace {

constexpr int64_t kShortest = 2048, kLongest = 32768;  // tokens, where no lengths are given
constexpr int64_t kAnswerTokens = 16;
constexpr double kDepths[] = {0.1, 0.5, 0.9};  // of needles

constexpr const char* kNoise =
    " The wind goes over the hills. The rain falls on the roofs. The river runs down to the sea. "
    "A cat sleeps on the wall. The bus comes, stops and drives on. Up and down and round again.";

struct Maker {
  const Tokenizer& tokenizer;
  const EvalTaskOptions& options;
  PromptFrame frame;
  std::vector<int64_t> lengths;

  int64_t limited(int64_t count) const {
    return options.limit > 0 ? std::min(options.limit, count) : count;
  }
  // A stream of its own for every sample: any of them can be made alone.
  CounterRng rng(const char* task, int64_t length, int64_t index) const {
    Hash64 stream;
    stream.add_text(task);
    stream.add_integer(length);
    stream.add_integer(index);
    return CounterRng(options.seed, stream.value());
  }
};

std::string digits(const CounterRng& rng, uint64_t at) {
  return std::to_string(10000 + rng.below(at, 90000));
}

std::vector<EvalSample> make_passkey(const Maker& maker) {
  const Sentences noise = encode_sentences(maker.tokenizer, kNoise);
  std::vector<EvalSample> out;
  for (const int64_t length : maker.lengths) {
    for (int64_t i = 0; i < maker.limited(maker.options.num_samples); ++i) {
      const CounterRng rng = maker.rng("passkey", length, i);
      const std::string key = digits(rng, 0);
      const PlantedText text{
          .instruction = "There is a pass key in this long and dull text. Remember it.\n\n",
          .needle = " The pass key is the number " + key + ". Remember the number " + key + ".",
          .question = "What number is the pass key?",
          .answer_prefix = "The pass key is the number",
          .answer = key};
      out.push_back(plant(maker.tokenizer, maker.frame, noise, text,
                          {.cell = {.length = length},
                           .depth = 0.25 + 0.5 * rng.uniform(1),
                           .max_new_tokens = kAnswerTokens}));
    }
  }
  return out;
}

std::vector<EvalSample> make_needle(const Maker& maker) {
  const Sentences sentences = encode_sentences(maker.tokenizer, maker.options.haystack);
  check_arg(!sentences.empty(), "needle: the haystack has no text");
  constexpr const char* kColours[] = {"red", "blue", "green", "yellow", "white", "black"};
  constexpr const char* kThings[] = {"door", "cabinet", "suitcase", "gate", "garage", "locker"};
  std::vector<EvalSample> out;
  for (const int64_t length : maker.lengths) {
    for (const double depth : kDepths) {
      for (int64_t i = 0; i < maker.limited(maker.options.num_trials); ++i) {
        const CounterRng rng = maker.rng("needle", length, i);  // the same at every depth
        const std::string code = digits(rng, 0);
        const std::string subject = std::string("code of the ") + kColours[rng.below(1, 6)] + " " +
                                    kThings[rng.below(2, 6)] + " is";
        out.push_back(
            plant(maker.tokenizer, maker.frame, sentences,
                  {.instruction = "Read this text. You will be asked about it.\n\n",
                   .needle = " The " + subject + " " + code + ".",
                   .question = "What number is the " + subject.substr(0, subject.size() - 3) + "?",
                   .answer_prefix = "The " + subject,
                   .answer = code},
                  {.cell = {.length = length, .depth = depth},
                   .depth = depth,
                   .first_sentence = rng.below(3, static_cast<uint32_t>(sentences.size())),
                   .max_new_tokens = kAnswerTokens}));
      }
    }
  }
  return out;
}

std::vector<int32_t> recall_question(const Maker& maker, const Fact& fact) {
  const std::string cue = fact.cue.empty() ? "" : " " + fact.cue;
  if (maker.frame.after.empty()) {
    return encode_piece(maker.tokenizer, "\n\nQuestion: " + fact.question + "\nAnswer:" + cue);
  }
  auto tokens = encode_piece(maker.tokenizer, "\n\n" + fact.question);
  tokens.insert(tokens.end(), maker.frame.after.begin(), maker.frame.after.end());
  if (cue.empty()) return tokens;
  const auto begin = encode_piece(maker.tokenizer, fact.cue);
  tokens.insert(tokens.end(), begin.begin(), begin.end());
  return tokens;
}

// One sample of each length: as much of the text as fits once, and all facts that it tells.
std::vector<EvalSample> make_recall(const Maker& maker) {
  constexpr int64_t kRoom = 128;  // tokens, for question and answer
  const Sentences sentences = encode_sentences(maker.tokenizer, maker.options.recall_text);
  int64_t whole = 0;
  for (const auto& sentence : sentences) whole += std::ssize(sentence);
  std::vector<EvalSample> out;
  for (const int64_t length : maker.lengths) {
    EvalSample sample;
    sample.cell.length = length;
    sample.max_new_tokens = kAnswerTokens;
    sample.context = maker.frame.before;
    const int64_t most = length - kRoom - std::ssize(sample.context);
    const Filler filler = fill(sentences, 0, std::min(whole, most));
    sample.context.insert(sample.context.end(), filler.tokens.begin(), filler.tokens.end());
    const std::string text = maker.tokenizer.decode(filler.tokens);
    for (const Fact& fact : maker.options.recall_facts) {
      if (text.find(fact.answer) == std::string::npos) continue;
      if (std::ssize(sample.questions) == maker.limited(std::ssize(maker.options.recall_facts))) {
        break;
      }
      sample.questions.push_back({recall_question(maker, fact), {fact.answer}});
    }
    check_arg(!sample.questions.empty() && num_tokens(sample) <= length,
              "a context of " + std::to_string(length) +
                  " tokens is too small: no fact of the text fits, or its question doesn't");
    out.push_back(std::move(sample));
    if (whole <= most) break;  // longer contexts would hold the same text
  }
  return out;
}

using MakeSamples = std::vector<EvalSample> (*)(const Maker&);
const std::map<std::string, MakeSamples>& tasks() {
  static const std::map<std::string, MakeSamples> all = {
      {"needle", make_needle}, {"passkey", make_passkey}, {"recall", make_recall}};
  return all;
}

std::vector<int64_t> lengths_of(const std::string& task, const EvalTaskOptions& options) {
  std::vector<int64_t> lengths = options.context_lengths;
  if (lengths.empty()) {
    for (int64_t n = kShortest; n <= std::min(kLongest, options.max_context); n *= 2) {
      lengths.push_back(n);
    }
    check_arg(!lengths.empty(), task + ": a context of " + std::to_string(options.max_context) +
                                    " tokens is below the shortest length, " +
                                    std::to_string(kShortest) + ": give --context-lengths");
  }
  for (const int64_t length : lengths) {
    check_arg(0 < length && length <= options.max_context,
              task + ": a context of " + std::to_string(length) + " tokens is not in [1, " +
                  std::to_string(options.max_context) + "], the model's");
  }
  std::sort(lengths.begin(), lengths.end());
  lengths.erase(std::unique(lengths.begin(), lengths.end()), lengths.end());
  return lengths;
}

}  // namespace

std::vector<std::string> eval_task_names() {
  std::vector<std::string> names;
  for (const auto& [name, make] : tasks()) names.push_back(name);
  return names;
}

std::vector<EvalSample> make_eval_samples(const std::string& task, const Tokenizer& tokenizer,
                                          const EvalTaskOptions& options) {
  const auto found = tasks().find(task);
  if (found == tasks().end()) {
    std::string known;
    for (const auto& name : eval_task_names()) known += (known.empty() ? "" : ", ") + name;
    throw std::invalid_argument("there is no task " + quote(task) + ": " + known);
  }
  const Maker maker{tokenizer, options,
                    prompt_frame(tokenizer, options.format, options.chat_tokens),
                    lengths_of(task, options)};
  std::vector<EvalSample> out;
  try {
    out = found->second(maker);
  } catch (const std::invalid_argument& error) {
    const std::string message = error.what();
    throw std::invalid_argument(message.rfind(task + ":", 0) == 0 ? message
                                                                  : task + ": " + message);
  }
  for (EvalSample& sample : out) {
    sample.task = task;
    sample.seed = options.seed;
  }
  return out;
}

}  // namespace kvquant
