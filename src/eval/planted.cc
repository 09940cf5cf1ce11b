#include "eval/planted.h"

#include <algorithm>

#include "base/check.h"
#include "base/quote.h"

namespace kvquant {
namespace {

int64_t longest_of(const Sentences& sentences) {
  size_t longest = 0;
  for (const auto& sentence : sentences) longest = std::max(longest, sentence.size());
  return static_cast<int64_t>(longest);
}

void verify(const Tokenizer& tokenizer, const EvalSample& sample, std::span<const int32_t> needle,
            const std::string& answer) {
  check_arg(num_occurrences(sample.context, needle) == 1,
            "the needle is not exactly once in the tokens of the context");
  const int64_t in_needle = count_of(tokenizer.decode(needle), answer);
  check_arg(in_needle > 0, "the answer " + quote(answer) + " is not in the needle");
  check_arg(count_of(tokenizer.decode(sample.context), answer) == in_needle,
            "the text that needles are hidden in has " + quote(answer) +
                " in it already: use another one, or another seed");
}

}  // namespace

EvalSample plant(const SampleMaker& maker, const Sentences& sentences, const PlantedText& text,
                 const PlantedPlace& place) {
  EvalSample out;
  out.cell = place.cell;
  out.max_new_tokens = place.max_new_tokens;
  out.questions.push_back({maker.question(text.question, text.answer_prefix), {text.answer}});
  const auto needle = maker.piece(text.needle);
  append(out.context, maker.frame.before);
  append(out.context, maker.piece(text.instruction));

  const int64_t fixed = num_tokens(out) + std::ssize(needle);
  check_room(place.cell.length, fixed + longest_of(sentences),
             "instruction, needle, question, answer and a sentence");
  const Filler filler = fill(sentences, place.first_sentence, place.cell.length - fixed);
  const int64_t border =
      nearest_border(filler, place.depth * static_cast<double>(filler.tokens.size()));
  const std::span<const int32_t> all = filler.tokens;
  append(out.context, all.first(static_cast<size_t>(border)));
  append(out.context, needle);
  append(out.context, all.subspan(static_cast<size_t>(border)));
  verify(maker.tokenizer, out, needle, text.answer);
  return out;
}

}  // namespace kvquant
