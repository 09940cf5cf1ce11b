// What the makers of all tasks share: the user's options, the prompt's frame, random streams, how
// many samples of which lengths.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "eval/eval_tasks.h"
#include "eval/prompt_parts.h"
#include "eval/random_draws.h"

namespace kvquant {

inline constexpr int64_t kAllLines = INT64_MAX;  // of a file

struct SampleMaker {
  const Tokenizer& tokenizer;
  const EvalTaskOptions& options;
  PromptFrame frame;
  std::vector<int64_t> lengths;  // ascending

  // As many as the user wants, else `by_itself`.
  int64_t num_samples(int64_t by_itself) const;
  int64_t limited(int64_t count) const;  // --limit

  // A stream of its own for every sample: any of them can be made alone.
  CounterRng rng(std::string_view task, int64_t length, int64_t index) const;
  RandomDraws draws(std::string_view task, int64_t length, int64_t index) const {
    return RandomDraws(rng(task, length, index));
  }

  std::vector<int32_t> piece(std::string_view text) const { return encode_piece(tokenizer, text); }
  // What follows the context: question, end of the user's turn and what the answer begins with.
  // Both may be empty, but not both together where the frame is plain.
  std::vector<int32_t> question(const std::string& question,
                                const std::string& answer_prefix) const;
};

// Tokens of pieces that come again and again.
class PieceCache {
 public:
  explicit PieceCache(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}
  const std::vector<int32_t>& operator()(const std::string& text);

 private:
  const Tokenizer& tokenizer_;
  std::unordered_map<std::string, std::vector<int32_t>> known_;
};

void append(std::vector<int32_t>& to, std::span<const int32_t> tokens);

// How often `part` stands in a text, overlapping ones included.
int64_t count_of(std::string_view text, std::string_view part);

// The largest n in [least, most] that fits, by binary search: fits(n) must be true up to some n and
// false from there on. least - 1 when not even that one fits.
int64_t largest_fitting(int64_t least, int64_t most, const std::function<bool(int64_t)>& fits);

// Throws std::invalid_argument unless `least` tokens fit into `length`.
void check_room(int64_t length, int64_t least, const std::string& what);

}  // namespace kvquant
