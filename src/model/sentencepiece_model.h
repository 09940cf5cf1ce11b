// Reads sentencepiece models (tokenizer.model), a protobuf message of pieces with scores and of how
// text is normalized (github.com/google/sentencepiece, sentencepiece_model.proto). Byte-pair models
// (Llama 1 and 2, Mistral, Gemma) become scores for our merges; what these can't do the
// sentencepiece library runs: unused pieces, and unigram models, of which it checks that they are
// sound, while the search is ours again (unigram.h).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "model/tokenizer_data.h"
#include "model/unigram.h"

namespace kvquant {

// The model as tokenizer data; `TokenizerData::sentencepiece` is `bytes` when the library has to
// run it. Throws FormatError that begins with "tokenizer.model" naming what is wrong, or not
// supported: normalization by a character map, word and character models, spaces as suffixes.
TokenizerData tokenizer_from_sentencepiece(std::string_view bytes);

// What unigram.h needs of a model; none where it is not a unigram model, or has pieces that only
// the library knows what to do with. Requires: tokenizer_from_sentencepiece took the bytes.
std::optional<UnigramData> unigram_from_sentencepiece(std::string_view bytes);

// A model that the library takes, run by it or by Unigram. Thread-safe after construction.
class SentencepieceModel {
 public:
  // Throws FormatError when the library doesn't take it.
  explicit SentencepieceModel(std::string_view bytes);
  ~SentencepieceModel();

  // Appends the ids of the pieces. Requires: valid UTF-8. Throws FormatError when the model turns
  // out to contradict itself.
  void encode(std::string_view text, std::vector<int32_t>& ids) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace kvquant
