#include <algorithm>
#include <cmath>
#include <numbers>
#include <set>

#include "base/check.h"
#include "eval/planted_tasks.h"
#include "eval/ruler.h"
#include "eval/word_lists.h"

namespace kvquant {
namespace {

std::string joined(const std::vector<std::string>& items, const char* between) {
  std::string out;
  for (const auto& item : items) out += (out.empty() ? "" : between) + item;
  return out;
}

std::vector<std::string> new_words(RandomDraws& draws, size_t count, int num_letters, char first) {
  std::set<std::string> known;
  std::vector<std::string> out;
  while (out.size() < count) {
    std::string word = draws.letters(num_letters, first);
    if (known.insert(word).second) out.push_back(std::move(word));
  }
  return out;
}

// ---- vt

struct Chain {
  std::string value;
  std::vector<std::string> names, sentences;
};

Chain draw_chain(RandomDraws& draws) {
  constexpr size_t kHops = 4;
  Chain chain{draws.number(5), new_words(draws, kHops + 1, 5, 'A'), {}};
  for (size_t i = 0; i <= kHops; ++i) {
    const std::string from = i == 0 ? chain.value : "VAR " + chain.names[i - 1];
    chain.sentences.push_back(" Set VAR " + chain.names[i] + " = " + from + ".");
  }
  return chain;
}

std::string vt_question(const Chain& chain) {
  return "Which five variables have the value " + chain.value + ", directly or through others?";
}
std::string vt_prefix(const Chain& chain) {
  return "The five variables with the value " + chain.value + " are";
}

// The chain's sentences in their order, at random borders of the filler.
std::vector<int32_t> scattered(const SampleMaker& maker, const Filler& filler, const Chain& chain,
                               RandomDraws& draws) {
  std::vector<size_t> places;
  for (size_t i = 0; i < chain.sentences.size(); ++i) {
    places.push_back(draws.below(filler.borders.size()));
  }
  std::sort(places.begin(), places.end());
  std::vector<int32_t> out;
  size_t at = 0;
  for (size_t i = 0; i < places.size(); ++i) {
    const auto end = static_cast<size_t>(filler.borders[places[i]]);
    append(out, std::span(filler.tokens).subspan(at, end - at));
    append(out, maker.piece(chain.sentences[i]));
    at = end;
  }
  append(out, std::span(filler.tokens).subspan(at));
  return out;
}

// ---- cwe

struct WordCounts {
  int common, other;
};
constexpr int64_t kCommonWords = 10;

// "1. acorn 2. actor", each word as often as it is to be.
class NumberedList {
 public:
  // Of the first num_words of the vocabulary.
  static std::vector<std::string> items(const std::vector<std::string>& vocabulary,
                                        int64_t num_words, WordCounts counts) {
    std::vector<std::string> out;
    for (int64_t i = 0; i < num_words; ++i) {
      const int times = i < kCommonWords ? counts.common : counts.other;
      out.insert(out.end(), static_cast<size_t>(times), vocabulary[static_cast<size_t>(i)]);
    }
    return out;
  }

  explicit NumberedList(const Tokenizer& tokenizer) : piece_(tokenizer) {}

  // Tokens of items 1, 2, ... in this order; their count doesn't depend on it.
  std::vector<int32_t> tokens(const std::vector<std::string>& items) {
    std::vector<int32_t> out;
    for (size_t i = 0; i < items.size(); ++i) {
      std::string number = i == 0 ? "" : " ";
      number += std::to_string(i + 1);
      append(out, piece_(number + "."));
      append(out, piece_(" " + items[i]));
    }
    return out;
  }

 private:
  PieceCache piece_;
};

// All words in random order; compounds of two where they are not enough.
std::vector<std::string> draw_vocabulary(RandomDraws& draws, size_t at_least) {
  std::vector<std::string> words;
  for (const auto word : nouns()) words.emplace_back(word);
  for (const auto word : adjectives()) words.emplace_back(word);
  draws.shuffle(words);
  std::set<std::string> known;
  while (words.size() < at_least) {
    std::string word(nouns()[draws.below(nouns().size())]);
    word += "-" + std::string(nouns()[draws.below(nouns().size())]);
    if (known.insert(word).second) words.push_back(std::move(word));
  }
  return words;
}

constexpr const char* kCweQuestion =
    "Which ten words stand in the list most often? Name each of them once.";
constexpr const char* kCwePrefix = "The ten words that stand in the list most often are";

// ---- fwe

constexpr double kZipf = 2.0;
constexpr double kZeta = std::numbers::pi * std::numbers::pi / 6;  // of 2

int64_t zipf_count(int64_t num_words, int64_t rank) {
  return static_cast<int64_t>(static_cast<double>(num_words) *
                              std::pow(static_cast<double>(rank), -kZipf) / kZeta);
}

}  // namespace

std::vector<EvalSample> make_vt(const SampleMaker& maker) {
  constexpr int64_t kExampleNoise = 120;  // tokens
  const Sentences noise = encode_sentences(maker.tokenizer, kNoiseText);
  std::vector<EvalSample> out;
  for (const int64_t length : maker.lengths) {
    RandomDraws example_draws = maker.draws("vt example", length, 0);
    const Chain example = draw_chain(example_draws);
    auto instruction = maker.frame.before;
    append(instruction, maker.piece("Variables are set to values in the text below, hidden among "
                                    "other sentences. A variable can be set to what another one "
                                    "is.\n\nAn example:"));
    append(instruction, scattered(maker, fill(noise, 0, kExampleNoise), example, example_draws));
    append(instruction,
           maker.piece("\nQuestion: " + vt_question(example) + "\nAnswer: " + vt_prefix(example) +
                       " " + joined(example.names, ", ") + ".\n\nNow the text:"));
    for (int64_t i = 0; i < maker.num_samples(kRulerSamples); ++i) {
      RandomDraws draws = maker.draws("vt", length, i);
      const Chain chain = draw_chain(draws);
      EvalSample sample;
      sample.cell.length = length;
      sample.max_new_tokens = ruler_answer_tokens("vt");
      sample.context = instruction;
      sample.questions.push_back(
          {maker.question(vt_question(chain), vt_prefix(chain)), chain.names});
      int64_t room = length - num_tokens(sample);
      for (const auto& sentence : chain.sentences) room -= std::ssize(maker.piece(sentence));
      check_room(length, length - room + 1, "instruction, example, variables, question and answer");
      append(sample.context, scattered(maker, fill(noise, 0, room), chain, draws));
      out.push_back(std::move(sample));
    }
  }
  return out;
}

std::vector<EvalSample> make_cwe(const SampleMaker& maker) {
  constexpr int64_t kShort = 4096;  // tokens: below, words stand more seldom
  NumberedList list(maker.tokenizer);
  std::vector<EvalSample> out;
  for (const int64_t length : maker.lengths) {
    const bool is_short = length < kShort;
    const WordCounts counts = is_short ? WordCounts{6, 1} : WordCounts{30, 3};
    RandomDraws example_draws = maker.draws("cwe example", length, 0);
    const auto example = draw_vocabulary(example_draws, 0);
    auto example_items = NumberedList::items(example, is_short ? 20 : 40,
                                             is_short ? WordCounts{3, 1} : WordCounts{10, 3});
    example_draws.shuffle(example_items);
    const std::vector<std::string> example_answer(example.begin(), example.begin() + kCommonWords);
    auto instruction = maker.frame.before;
    append(instruction,
           maker.piece("Some words stand in the numbered list below more often than others. "
                       "Remember the ten most frequent ones.\n\nAn example:\n"));
    append(instruction, list.tokens(example_items));
    append(instruction,
           maker.piece(std::string("\nQuestion: ") + kCweQuestion + "\nAnswer: " + kCwePrefix +
                       " " + joined(example_answer, ", ") + ".\n\nNow the list:\n"));
    for (int64_t i = 0; i < maker.num_samples(kRulerSamples); ++i) {
      RandomDraws draws = maker.draws("cwe", length, i);
      const auto vocabulary = draw_vocabulary(draws, static_cast<size_t>(length));
      EvalSample sample;
      sample.cell.length = length;
      sample.max_new_tokens = ruler_answer_tokens("cwe");
      sample.context = instruction;
      sample.questions.push_back(
          {maker.question(kCweQuestion, kCwePrefix),
           std::vector<std::string>(vocabulary.begin(), vocabulary.begin() + kCommonWords)});
      const int64_t room = length - num_tokens(sample);
      const int64_t num_words = largest_fitting(kCommonWords + 1, length, [&](int64_t n) {
        return std::ssize(list.tokens(NumberedList::items(vocabulary, n, counts))) <= room;
      });
      check_arg(num_words > kCommonWords,
                "a context of " + std::to_string(length) +
                    " tokens is too small: eleven words don't fit as often as they are to stand");
      auto items = NumberedList::items(vocabulary, num_words, counts);
      draws.shuffle(items);
      append(sample.context, list.tokens(items));
      out.push_back(std::move(sample));
    }
  }
  return out;
}

std::vector<EvalSample> make_fwe(const SampleMaker& maker) {
  constexpr int64_t kTokensPerWord = 50;  // of the vocabulary
  constexpr int64_t kLeastWords = 30;  // the fourth word stands in the text, and no other so often
  constexpr const char* kQuestion =
      "Which three coded words stand in the text most often? Dots are no word.";
  constexpr const char* kPrefix = "The three coded words that stand in the text most often are";
  std::vector<EvalSample> out;
  for (const int64_t length : maker.lengths) {
    const int64_t num_coded = length / kTokensPerWord;
    check_room(length, 6 * kTokensPerWord, "six coded words and what else there is");
    for (int64_t i = 0; i < maker.num_samples(kRulerSamples); ++i) {
      RandomDraws draws = maker.draws("fwe", length, i);
      auto coded = new_words(draws, static_cast<size_t>(num_coded), 6, 'a');
      const std::vector<std::string> answer(coded.begin() + 1, coded.begin() + 4);
      coded[0] = "...";
      PieceCache piece(maker.tokenizer);
      EvalSample sample;
      sample.cell.length = length;
      sample.max_new_tokens = ruler_answer_tokens("fwe");
      sample.context = maker.frame.before;
      append(sample.context,
             maker.piece("The text below is made of coded words. Find out which of them are the "
                         "most frequent ones, and leave dots '...' aside.\n\n"));
      sample.questions.push_back({maker.question(kQuestion, kPrefix), answer});
      const int64_t room = length - num_tokens(sample);
      const auto count_tokens = [&](int64_t num_words) {
        int64_t total = 0;
        for (int64_t rank = 1; rank <= num_coded; ++rank) {
          total += zipf_count(num_words, rank) *
                   std::ssize(piece(" " + coded[static_cast<size_t>(rank - 1)]));
        }
        return total;
      };
      const int64_t num_words = largest_fitting(kLeastWords, 2 * length,
                                                [&](int64_t n) { return count_tokens(n) <= room; });
      check_arg(num_words >= kLeastWords,
                "a context of " + std::to_string(length) +
                    " tokens is too small: " + std::to_string(kLeastWords) + " words don't fit");
      std::vector<size_t> order;
      for (int64_t rank = 1; rank <= num_coded; ++rank) {
        order.insert(order.end(), static_cast<size_t>(zipf_count(num_words, rank)),
                     static_cast<size_t>(rank - 1));
      }
      draws.shuffle(order);
      for (const size_t word : order) append(sample.context, piece(" " + coded[word]));
      out.push_back(std::move(sample));
    }
  }
  return out;
}

}  // namespace kvquant
