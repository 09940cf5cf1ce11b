#include "eval/planted.h"

#include <algorithm>

#include "base/check.h"
#include "base/quote.h"

namespace kvquant {
namespace {

void append(std::vector<int32_t>& to, std::span<const int32_t> tokens) {
  to.insert(to.end(), tokens.begin(), tokens.end());
}

int64_t longest_of(const Sentences& sentences) {
  size_t longest = 0;
  for (const auto& sentence : sentences) longest = std::max(longest, sentence.size());
  return static_cast<int64_t>(longest);
}

std::vector<int32_t> question_tokens(const Tokenizer& tokenizer, const PromptFrame& frame,
                                     const PlantedText& text) {
  if (frame.after.empty()) {
    return encode_piece(tokenizer,
                        "\n\nQuestion: " + text.question + "\nAnswer: " + text.answer_prefix);
  }
  auto tokens = encode_piece(tokenizer, "\n\n" + text.question);
  append(tokens, frame.after);
  append(tokens, encode_piece(tokenizer, text.answer_prefix));
  return tokens;
}

int64_t count(const std::string& text, const std::string& part) {
  int64_t count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

void verify(const Tokenizer& tokenizer, const EvalSample& sample, std::span<const int32_t> needle,
            const std::string& answer) {
  check_arg(num_occurrences(sample.context, needle) == 1,
            "the needle is not exactly once in the tokens of the context");
  const int64_t in_needle = count(tokenizer.decode(needle), answer);
  check_arg(in_needle > 0, "the answer " + quote(answer) + " is not in the needle");
  check_arg(count(tokenizer.decode(sample.context), answer) == in_needle,
            "the text that needles are hidden in has " + quote(answer) +
                " in it already: use another one, or another seed");
}

}  // namespace

EvalSample plant(const Tokenizer& tokenizer, const PromptFrame& frame, const Sentences& sentences,
                 const PlantedText& text, const PlantedPlace& place) {
  EvalSample out;
  out.cell = place.cell;
  out.max_new_tokens = place.max_new_tokens;
  out.questions.push_back({question_tokens(tokenizer, frame, text), {text.answer}});
  const auto needle = encode_piece(tokenizer, text.needle);
  append(out.context, frame.before);
  append(out.context, encode_piece(tokenizer, text.instruction));

  const int64_t fixed = num_tokens(out) + std::ssize(needle);
  const int64_t least = fixed + longest_of(sentences);
  check_arg(place.cell.length >= least,
            "a context of " + std::to_string(place.cell.length) +
                " tokens is too small: instruction, needle, question, answer and a sentence take " +
                std::to_string(least));
  const Filler filler = fill(sentences, place.first_sentence, place.cell.length - fixed);
  const int64_t border =
      nearest_border(filler, place.depth * static_cast<double>(filler.tokens.size()));
  const std::span<const int32_t> all = filler.tokens;
  append(out.context, all.first(static_cast<size_t>(border)));
  append(out.context, needle);
  append(out.context, all.subspan(static_cast<size_t>(border)));
  verify(tokenizer, out, needle, text.answer);
  return out;
}

}  // namespace kvquant
