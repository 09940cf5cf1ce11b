#include "eval/planted_tasks.h"

#include "base/check.h"
#include "eval/planted.h"

namespace kvquant {

const char* const kNoiseText =
    " The wind goes over the hills. The rain falls on the roofs. The river runs down to the sea. "
    "A cat sleeps on the wall. The bus comes, stops and drives on. Up and down and round again.";

namespace {

constexpr int64_t kAnswerTokens = 16;
constexpr double kDepths[] = {0.1, 0.5, 0.9};  // of needles

std::string digits(const CounterRng& rng, uint64_t at) {
  return std::to_string(10000 + rng.below(at, 90000));
}

}  // namespace

std::vector<EvalSample> make_passkey(const SampleMaker& maker) {
  const Sentences noise = encode_sentences(maker.tokenizer, kNoiseText);
  std::vector<EvalSample> out;
  for (const int64_t length : maker.lengths) {
    for (int64_t i = 0; i < maker.num_samples(50); ++i) {
      const CounterRng rng = maker.rng("passkey", length, i);
      const std::string key = digits(rng, 0);
      const PlantedText text{
          .instruction = "There is a pass key in this long and dull text. Remember it.\n\n",
          .needle = " The pass key is the number " + key + ". Remember the number " + key + ".",
          .question = "What number is the pass key?",
          .answer_prefix = "The pass key is the number",
          .answer = key};
      out.push_back(plant(maker, noise, text,
                          {.cell = {.length = length},
                           .depth = 0.25 + 0.5 * rng.uniform(1),
                           .max_new_tokens = kAnswerTokens}));
    }
  }
  return out;
}

std::vector<EvalSample> make_needle(const SampleMaker& maker) {
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
            plant(maker, sentences,
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

}  // namespace kvquant
