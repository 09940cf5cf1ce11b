#include <algorithm>
#include <set>

#include "base/check.h"
#include "base/quote.h"
#include "eval/planted_tasks.h"
#include "eval/ruler.h"
#include "eval/word_lists.h"

namespace kvquant {
namespace {

using Haystack = NiahPlan::Haystack;
using Part = NiahPlan::Part;

std::string draw_part(RandomDraws& draws, Part part) {
  switch (part) {
    case Part::kNumber: return draws.number(7);
    case Part::kUuid: return draws.uuid();
    case Part::kWords: break;
  }
  const auto adjective = adjectives()[draws.below(adjectives().size())];
  return std::string(adjective) + "-" + std::string(nouns()[draws.below(nouns().size())]);
}

std::string draw_new(RandomDraws& draws, Part part, std::set<std::string>& known) {
  while (true) {
    std::string drawn = draw_part(draws, part);
    if (known.insert(drawn).second) return drawn;
  }
}

struct Needle {
  std::string key, value;
};

class NiahMaker {
 public:
  NiahMaker(const SampleMaker& maker, const NiahPlan& plan)
      : maker_(maker), plan_(plan), what_(plan.value == Part::kUuid ? "UUID" : "number") {
    if (plan.haystack == Haystack::kNeedles) return;
    sentences_ = encode_sentences(maker.tokenizer, plan.haystack == Haystack::kNoise
                                                       ? std::string(kNoiseText)
                                                       : maker.options.haystack);
    check_arg(!sentences_.empty(), "the haystack has no text");
  }

  EvalSample make(int64_t length, int64_t index) {
    RandomDraws draws = maker_.draws(plan_.task, length, index);
    std::set<std::string> keys, values;
    std::vector<Needle> needles;
    for (int k = 0; k < plan_.num_keys; ++k) {
      const std::string key = draw_new(draws, plan_.key, keys);
      for (int v = 0; v < plan_.num_values; ++v) {
        needles.push_back({key, draw_new(draws, plan_.value, values)});
      }
    }
    EvalSample out = begin(needles);
    out.cell.length = length;
    const int64_t room = length - num_tokens(out);
    if (plan_.haystack == Haystack::kNeedles) {
      fill_with_needles(out, room, needles[0], draws);
    } else {
      draws.shuffle(needles);
      fill_with_sentences(out, room, needles, draws);
    }
    verify(out, needles);
    return out;
  }

 private:
  // All but the text: instruction, question, references. The first keys are asked for.
  EvalSample begin(const std::vector<Needle>& needles) const {
    EvalSample out;
    out.context = maker_.frame.before;
    append(out.context, maker_.piece("Secret " + what_ +
                                     "s are hidden in the text below. Remember them: you will be "
                                     "asked for some of them afterwards.\n\n"));
    const auto num_asked =
        static_cast<size_t>(plan_.num_queries) * static_cast<size_t>(plan_.num_values);
    std::string keys;
    std::vector<std::string> references;
    for (size_t i = 0; i < num_asked; ++i) {
      references.push_back(needles[i].value);
      if (i > 0 && needles[i].key == needles[i - 1].key) continue;
      const bool is_last = i + static_cast<size_t>(plan_.num_values) >= num_asked;
      keys += (i == 0 ? "" : is_last ? " and " : ", ") + needles[i].key;
    }
    const bool one = num_asked == 1;
    const std::string subject = "secret " + what_ + (one ? "" : "s") + " of " + keys;
    const std::string verb = one ? " is" : " are";
    out.questions.push_back({maker_.question("What" + verb + (one ? " the " : " all the ") +
                                                 subject + " that the text tells?",
                                             "The " + subject + " that the text tells" + verb),
                             references});
    out.max_new_tokens = ruler_answer_tokens(plan_.task);
    return out;
  }

  std::vector<int32_t> tokens_of(const Needle& needle) const {
    return maker_.piece(" The secret " + what_ + " of " + needle.key + " is " + needle.value + ".");
  }

  void fill_with_sentences(EvalSample& sample, int64_t room, const std::vector<Needle>& needles,
                           RandomDraws& draws) const {
    std::vector<std::vector<int32_t>> planted;
    for (const Needle& needle : needles) {
      planted.push_back(tokens_of(needle));
      room -= std::ssize(planted.back());
    }
    const int64_t length = sample.cell.length;
    check_room(length, length - room + 1, "instruction, needles, question, answer and some text");
    const size_t first = plan_.haystack == Haystack::kNoise ? 0 : draws.below(sentences_.size());
    const Filler filler = fill(sentences_, first, room);
    std::vector<size_t> places;
    for (size_t i = 0; i < planted.size(); ++i) {
      places.push_back(draws.below(filler.borders.size()));
    }
    std::sort(places.begin(), places.end());
    int64_t at = 0;
    for (size_t i = 0; i <= planted.size(); ++i) {
      const int64_t end =
          i == planted.size() ? std::ssize(filler.tokens) : filler.borders[places[i]];
      append(
          sample.context,
          std::span(filler.tokens).subspan(static_cast<size_t>(at), static_cast<size_t>(end - at)));
      if (i < planted.size()) append(sample.context, planted[i]);
      at = end;
    }
  }

  // Needles with other keys until no other fits; the one that is asked for anywhere among them.
  void fill_with_needles(EvalSample& sample, int64_t room, const Needle& asked,
                         RandomDraws& draws) const {
    std::set<std::string> keys = {asked.key}, values = {asked.value};
    std::vector<std::vector<int32_t>> all = {tokens_of(asked)};
    room -= std::ssize(all[0]);
    const int64_t length = sample.cell.length;
    check_room(length, length - room, "instruction, needle, question and answer");
    while (true) {
      const std::string key = draw_new(draws, plan_.key, keys);
      auto tokens = tokens_of({key, draw_new(draws, plan_.value, values)});
      room -= std::ssize(tokens);
      if (room < 0) break;
      all.push_back(std::move(tokens));
    }
    std::swap(all[0], all[draws.below(all.size())]);
    for (const auto& tokens : all) append(sample.context, tokens);
  }

  void verify(const EvalSample& sample, const std::vector<Needle>& needles) const {
    const std::string text = maker_.tokenizer.decode(sample.context);
    for (const Needle& needle : needles) {
      check_arg(num_occurrences(sample.context, tokens_of(needle)) == 1,
                "the needle is not exactly once in the tokens of the context");
      check_arg(count_of(text, needle.value) == 1,
                "the text that needles are hidden in has " + quote(needle.value) +
                    " in it already: use another one, or another seed");
    }
  }

  const SampleMaker& maker_;
  const NiahPlan& plan_;
  std::string what_;  // values are
  Sentences sentences_;
};

}  // namespace

std::vector<NiahPlan> niah_plans() {
  constexpr auto kNoise = Haystack::kNoise, kEssay = Haystack::kEssay,
                 kNeedles = Haystack::kNeedles;
  constexpr auto kWords = Part::kWords, kNumber = Part::kNumber, kUuid = Part::kUuid;
  return {
      {.task = "niah_single_1", .haystack = kNoise, .key = kWords, .value = kNumber},
      {.task = "niah_single_2", .haystack = kEssay, .key = kWords, .value = kNumber},
      {.task = "niah_single_3", .haystack = kEssay, .key = kWords, .value = kUuid},
      {.task = "niah_multikey_1",
       .haystack = kEssay,
       .key = kWords,
       .value = kNumber,
       .num_keys = 4},
      {.task = "niah_multikey_2", .haystack = kNeedles, .key = kWords, .value = kNumber},
      {.task = "niah_multikey_3", .haystack = kNeedles, .key = kUuid, .value = kUuid},
      {.task = "niah_multivalue",
       .haystack = kEssay,
       .key = kWords,
       .value = kNumber,
       .num_values = 4},
      {.task = "niah_multiquery",
       .haystack = kEssay,
       .key = kWords,
       .value = kNumber,
       .num_keys = 4,
       .num_queries = 4},
  };
}

std::vector<EvalSample> make_niah(const SampleMaker& maker, const NiahPlan& plan) {
  NiahMaker niah(maker, plan);
  std::vector<EvalSample> out;
  for (const int64_t length : maker.lengths) {
    for (int64_t i = 0; i < maker.num_samples(kRulerSamples); ++i) {
      out.push_back(niah.make(length, i));
    }
  }
  return out;
}

}  // namespace kvquant
