#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <sstream>

#include "base/check.h"
#include "eval/planted_tasks.h"
#include "eval/prompt_parts.h"
#include "eval/recall_tasks.h"
#include "eval/word_lists.h"

namespace kvquant {
namespace {

constexpr int64_t kSamples = 10;  // of each length
constexpr size_t kQuestions = 8;  // of each sample
// Examples before each question: three, where they don't take half of the context.
size_t num_examples(int64_t length) { return length < 1024 ? 1 : 3; }

// What a context is made of, and what may be asked about it.
struct Item {
  std::string text;                     // in the context, begins with white space
  std::string example;                  // question and answer; empty: it can't be asked for
  std::string cue;                      // the question: what the example begins with
  std::vector<std::string> references;  // what the example goes on with
};
using DrawItems = std::function<std::vector<Item>(RandomDraws&, int64_t)>;  // as many at least

struct RecallPlan {
  const char* task;
  const char* before;     // the items
  const char* questions;  // between items and examples
  int64_t max_new_tokens;
  EvalMetric metric;
  int64_t least_tokens;  // of an item: how many of them have to be drawn
  DrawItems draw;
  int64_t max_items = 0;  // 0: as many as fit
};

// Tokens of the items that fit, and of noise between them where room is left by all there are.
std::vector<int32_t> make_body(const SampleMaker& maker, const RecallPlan& plan, int64_t room,
                               std::vector<Item>& items) {
  const auto before = maker.piece("\n\n"), after = maker.piece("\n");
  if (plan.max_items > 0 && std::ssize(items) > plan.max_items) {
    items.resize(static_cast<size_t>(plan.max_items));
  }
  std::vector<std::vector<int32_t>> pieces;
  for (const Item& item : items) {
    auto tokens = maker.piece(item.text);
    if (room < std::ssize(tokens)) break;
    room -= std::ssize(tokens);
    pieces.push_back(std::move(tokens));
  }
  const bool are_all = pieces.size() == items.size();
  items.resize(pieces.size());
  const auto around = static_cast<int64_t>(pieces.size() * (before.size() + after.size()));
  const Filler noise = fill(encode_sentences(maker.tokenizer, kNoiseText), 0,
                            are_all ? std::max<int64_t>(0, room - around) : 0);
  std::vector<int32_t> out;
  size_t sentence = 0;  // of the noise, to come next
  for (size_t i = 0; i < pieces.size(); ++i) {
    append(out, pieces[i]);
    const size_t end = (noise.borders.size() - 1) * (i + 1) / pieces.size();
    if (end == sentence || items[i].example.empty()) continue;
    const auto begin = static_cast<size_t>(noise.borders[sentence]);
    append(out, before);
    append(out,
           std::span(noise.tokens).subspan(begin, static_cast<size_t>(noise.borders[end]) - begin));
    append(out, after);
    sentence = end;
  }
  return out;
}

// Item indices that can be asked for, in random order.
std::vector<size_t> draw_askable(RandomDraws& draws, const std::vector<Item>& items) {
  std::vector<size_t> out;
  for (size_t i = 0; i < items.size(); ++i) {
    if (!items[i].example.empty()) out.push_back(i);
  }
  draws.shuffle(out);
  return out;
}

EvalSample make_sample(const SampleMaker& maker, const RecallPlan& plan, int64_t length,
                       int64_t index) {
  RandomDraws draws = maker.draws(plan.task, length, index);
  auto items = plan.draw(draws, length / plan.least_tokens + 1);
  EvalSample out;
  out.cell.length = length;
  out.metric = plan.metric;
  out.max_new_tokens = plan.max_new_tokens;
  out.context = maker.tokenizer.encode("");  // bos
  append(out.context, maker.piece(plan.before));
  const auto questions = maker.piece(plan.questions);
  const size_t num_shown = num_examples(length);
  size_t longest = 0;  // of the questions that may come
  for (const Item& item : items) longest = std::max(longest, maker.piece(item.example).size());
  const auto reserved = static_cast<int64_t>(questions.size() + (num_shown + 1) * longest);
  append(out.context, make_body(maker, plan, length - num_tokens(out) - reserved, items));

  auto askable = draw_askable(draws, items);
  check_arg(askable.size() > num_shown,
            fmt::format("a context of {} tokens is too small: less than {} things to ask for fit",
                        length, num_shown + 1));
  append(out.context, questions);
  for (size_t i = 0; i < num_shown; ++i) {
    append(out.context, maker.piece(items[askable.back()].example));
    askable.pop_back();
  }
  for (size_t i = 0; i < std::min(askable.size(), kQuestions); ++i) {
    const Item& item = items[askable[i]];
    out.questions.push_back({maker.piece(item.cue), item.references});
  }
  return out;
}

std::vector<EvalSample> make_all(const SampleMaker& maker, const RecallPlan& plan) {
  std::vector<EvalSample> out;
  for (const int64_t length : maker.lengths) {
    for (int64_t i = 0; i < maker.num_samples(kSamples); ++i) {
      out.push_back(make_sample(maker, plan, length, i));
    }
  }
  return out;
}

// Distinct names of things: nouns first, then "red acorn".
std::vector<std::string> draw_things(RandomDraws& draws, int64_t count) {
  std::vector<std::string> out(nouns().begin(), nouns().end());
  draws.shuffle(out);
  std::set<std::string> known;
  while (std::ssize(out) < count) {
    const auto adjective = adjectives()[draws.below(adjectives().size())];
    auto thing = fmt::format("{} {}", adjective, nouns()[draws.below(nouns().size())]);
    if (known.insert(thing).second) out.push_back(std::move(thing));
  }
  return out;
}

std::vector<Item> draw_table(RandomDraws& draws, int64_t count) {
  std::vector<Item> out;
  std::set<std::string> numbers;
  auto things = draw_things(draws, count);
  things.resize(static_cast<size_t>(count));
  for (const std::string& thing : things) {
    std::string number = draws.number(5);
    while (!numbers.insert(number).second) number = draws.number(5);
    const std::string line = fmt::format("\n{}: {}", thing, number);
    out.push_back({line, line, fmt::format("\n{}:", thing), {number}});
  }
  return out;
}

// "The price of the lamp is 4821.": one fact of each thing.
std::vector<Item> draw_facts(RandomDraws& draws, int64_t count) {
  constexpr const char* kProperties[] = {"price", "age", "weight"};
  std::vector<Item> out;
  auto things = draw_things(draws, count);
  things.resize(static_cast<size_t>(count));
  for (const auto& thing : things) {
    const char* property = kProperties[draws.below(std::size(kProperties))];
    const auto number = draws.number(5);
    const auto cue = fmt::format("The {} of the {} is", property, thing);
    out.push_back({fmt::format(" {} {}.", cue, number),
                   fmt::format("\n{} {}.", cue, number),
                   fmt::format("\n{}", cue),
                   {number}});
  }
  return out;
}

// Lists that are linked: "lamp: 4821 river", "river: 2070 stone", "stone: 9934 end".
std::vector<Item> draw_chains(RandomDraws& draws, int64_t count) {
  constexpr size_t kLinks = 3;
  const auto things = draw_things(draws, count + 3);
  std::vector<Item> out;
  for (size_t first = 0; std::ssize(out) < count; first += kLinks) {
    std::vector<std::string> numbers;
    std::string all = "\n";
    for (size_t link = 0; link < kLinks; ++link) {
      numbers.push_back(draws.number(4));
      const std::string next = link + 1 == kLinks ? "end" : things[first + link + 1];
      out.push_back(
          {fmt::format("\n{}: {} {}", things[first + link], numbers.back(), next), "", "", {}});
      all += out.back().text;
    }
    // The last link is where the whole chain has been told.
    out.back().example = all;
    out.back().cue = fmt::format("\n\n{}:", things[first]);
    out.back().references = numbers;
  }
  return out;
}

// Sentences of a text from a random one on, one a line, that go on as they began. Each of them
// once: a short text has fewer of them than are wanted.
std::vector<Item> draw_sentences(const std::vector<std::string>& sentences, RandomDraws& draws,
                                 int64_t count) {
  constexpr size_t kCueWords = 4, kWords = 8, kMostWords = 24;
  constexpr int64_t kRoomForAll = 100;  // below, no room goes to sentences that can't be asked for
  std::vector<Item> out;
  std::set<std::string> known;
  const size_t first = sentences.empty() ? 0 : draws.below(sentences.size());
  for (size_t i = 0; i < sentences.size() && std::ssize(out) < count; ++i) {
    std::istringstream in(sentences[(first + i) % sentences.size()]);
    std::vector<std::string> words;
    for (std::string word; in >> word;) words.push_back(word);
    const auto line = fmt::format("\n{}", fmt::join(words, " "));
    if (words.size() < kCueWords + kWords || words.size() > kMostWords) {
      if (count >= kRoomForAll) out.push_back({line, "", "", {}});
      continue;
    }
    const std::span all = words;
    auto cue = fmt::format("\n{}", fmt::join(all.first(kCueWords), " "));
    if (!known.insert(cue).second) continue;
    out.push_back({line,
                   line,
                   std::move(cue),
                   {fmt::format("{}", fmt::join(all.subspan(kCueWords, kWords), " "))}});
  }
  return out;
}

}  // namespace

// The wording of all of them was chosen for SmolLM2-135M: numbers behind one-word keys, and lines
// that stand in the text as they are asked for.
std::vector<EvalSample> make_recall_table(const SampleMaker& maker) {
  return make_all(maker, {.task = "recall_table",
                          .before = "The numbers of some things:\n",
                          .questions = "\n\nSome of these numbers once more:\n",
                          .max_new_tokens = 8,
                          .metric = EvalMetric::kContained,
                          .least_tokens = 6,
                          .draw = draw_table});
}

std::vector<EvalSample> make_recall_facts(const SampleMaker& maker) {
  return make_all(maker, {.task = "recall_facts",
                          .before = "What is known about some things:\n",
                          .questions = "\n\nSome of this once more:\n",
                          .max_new_tokens = 8,
                          .metric = EvalMetric::kContained,
                          .least_tokens = 8,
                          .draw = draw_facts});
}

std::vector<EvalSample> make_recall_chain(const SampleMaker& maker) {
  auto samples = make_all(maker, {.task = "recall_chain",
                                  .before = "Numbers of things, and which thing comes next:\n",
                                  .questions = "\n\nSome of them once more, one after another:\n",
                                  .max_new_tokens = 32,
                                  .metric = EvalMetric::kContained,
                                  .least_tokens = 8,
                                  .draw = draw_chains,
                                  .max_items = 48});
  for (EvalSample& sample : samples) sample.stop = EvalStop::kNothing;
  return samples;
}

std::vector<EvalSample> make_recall_copy(const SampleMaker& maker) {
  const auto sentences = split_sentences(maker.options.haystack);
  const auto draw = [&](RandomDraws& draws, int64_t count) {
    return draw_sentences(sentences, draws, count);
  };
  return make_all(maker, {.task = "recall_copy",
                          .before = "Lines of a text:\n",
                          .questions = "\n\nSome of these lines again:\n",
                          .max_new_tokens = 40,
                          .metric = EvalMetric::kLeadingWords,
                          .least_tokens = 12,
                          .draw = draw});
}

}  // namespace kvquant
