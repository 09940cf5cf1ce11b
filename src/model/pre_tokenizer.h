// Cuts a text into the words that byte-pair merges never cross, with the pattern of the model
// family. Patterns are those of the models' publishers; whitespace is spelled out because PCRE2's
// \s differs from Unicode's White_Space in U+180E. Letters and digits are those of the installed
// PCRE2's Unicode version (10.42: Unicode 14).
#pragma once

#include <functional>
#include <string_view>
#include <vector>

#include "model/tokenizer_data.h"

namespace kvquant {

// Thread-safe after construction.
class WordSplitter {
 public:
  explicit WordSplitter(PreTokenizer pre_tokenizer);
  ~WordSplitter();
  WordSplitter(WordSplitter&&) noexcept;

  // Calls `word` with every word from left to right; together they are the text. Falcon's words may
  // end inside a character. Requires: valid UTF-8.
  void split(std::string_view text, const std::function<void(std::string_view)>& word) const;

 private:
  struct Stage;
  void split_from(size_t stage, std::string_view text,
                  const std::function<void(std::string_view)>& word) const;

  std::vector<Stage> stages_;  // each cuts the words of the one before; none: the text is one word
};

}  // namespace kvquant
