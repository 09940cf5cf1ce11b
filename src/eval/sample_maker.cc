#include "eval/sample_maker.h"

#include <algorithm>

#include "base/check.h"
#include "base/hash.h"

namespace kvquant {

int64_t SampleMaker::num_samples(int64_t by_itself) const {
  return limited(options.num_samples > 0 ? options.num_samples : by_itself);
}

int64_t SampleMaker::limited(int64_t count) const {
  return options.limit > 0 ? std::min(options.limit, count) : count;
}

CounterRng SampleMaker::rng(std::string_view task, int64_t length, int64_t index) const {
  Hash64 stream;
  stream.add_text(task);
  stream.add_integer(length);
  stream.add_integer(index);
  return CounterRng(options.seed, stream.value());
}

std::vector<int32_t> SampleMaker::question(const std::string& question,
                                           const std::string& answer_prefix) const {
  if (frame.after.empty()) {
    const std::string asked = question.empty() ? "" : "\n\nQuestion: " + question;
    const std::string prefix = answer_prefix.empty() ? "" : " " + answer_prefix;
    return piece(asked + "\nAnswer:" + prefix);
  }
  auto tokens = question.empty() ? std::vector<int32_t>() : piece("\n\n" + question);
  append(tokens, frame.after);
  if (!answer_prefix.empty()) append(tokens, piece(answer_prefix));
  return tokens;
}

const std::vector<int32_t>& PieceCache::operator()(const std::string& text) {
  const auto [found, is_new] = known_.try_emplace(text);
  if (is_new) found->second = encode_piece(tokenizer_, text);
  return found->second;
}

void append(std::vector<int32_t>& to, std::span<const int32_t> tokens) {
  to.insert(to.end(), tokens.begin(), tokens.end());
}

int64_t count_of(std::string_view text, std::string_view part) {
  int64_t count = 0;
  for (size_t at = text.find(part); at != std::string_view::npos; at = text.find(part, at + 1)) {
    ++count;
  }
  return count;
}

int64_t largest_fitting(int64_t least, int64_t most, const std::function<bool(int64_t)>& fits) {
  int64_t step = 1, good = least - 1;
  while (good < most) {  // gallop: what fits is far below what there is
    const int64_t next = std::min(most, good + step);
    if (!fits(next)) {
      most = next - 1;
      break;
    }
    good = next;
    step *= 2;
  }
  while (good < most) {
    const int64_t middle = good + (most - good + 1) / 2;
    if (fits(middle)) {
      good = middle;
    } else {
      most = middle - 1;
    }
  }
  return good;
}

void check_room(int64_t length, int64_t least, const std::string& what) {
  check_arg(length >= least, "a context of " + std::to_string(length) + " tokens is too small: " +
                                 what + " take " + std::to_string(least));
}

}  // namespace kvquant
