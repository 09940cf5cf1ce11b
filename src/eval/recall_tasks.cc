#include "eval/recall_tasks.h"

#include <algorithm>

#include "base/check.h"

namespace kvquant {
namespace {

constexpr int64_t kAnswerTokens = 16;

bool tells(const std::string& text, const Fact& fact) {
  return text.find(fact.answer) != std::string::npos;
}

bool tells_any(const std::string& text, const std::vector<Fact>& facts) {
  return std::any_of(facts.begin(), facts.end(),
                     [&](const Fact& fact) { return tells(text, fact); });
}

// The sentence before the first that tells a fact.
size_t first_telling(const SampleMaker& maker, const Sentences& sentences) {
  for (size_t i = 0; i < sentences.size(); ++i) {
    if (!tells_any(maker.tokenizer.decode(sentences[i]), maker.options.recall_facts)) continue;
    return std::max<size_t>(1, i) - 1;
  }
  return 0;
}

}  // namespace

// One sample of each length: as much of the text as fits once, and all facts that it tells.
std::vector<EvalSample> make_recall_story(const SampleMaker& maker) {
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
    Filler filler = fill(sentences, 0, std::min(whole, most));
    std::string text = maker.tokenizer.decode(filler.tokens);
    if (!tells_any(text, maker.options.recall_facts)) {  // a short context begins where one is told
      filler = fill(sentences, first_telling(maker, sentences), std::min(whole, most));
      text = maker.tokenizer.decode(filler.tokens);
    }
    sample.context.insert(sample.context.end(), filler.tokens.begin(), filler.tokens.end());
    for (const Fact& fact : maker.options.recall_facts) {
      if (!tells(text, fact)) continue;
      if (std::ssize(sample.questions) == maker.limited(std::ssize(maker.options.recall_facts))) {
        break;
      }
      sample.questions.push_back({maker.question(fact.question, fact.cue), {fact.answer}});
    }
    check_arg(!sample.questions.empty() && num_tokens(sample) <= length,
              "a context of " + std::to_string(length) +
                  " tokens is too small: no fact of the text fits, or its question doesn't");
    out.push_back(std::move(sample));
    if (whole <= most) break;  // longer contexts would hold the same text
  }
  return out;
}

}  // namespace kvquant
