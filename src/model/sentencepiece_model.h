// Reads sentencepiece models (tokenizer.model), a protobuf message of pieces with scores and of how
// text is normalized (github.com/google/sentencepiece, sentencepiece_model.proto). Byte-pair models
// without normalization (Llama 1 and 2, Mistral, Gemma) become scores for our merges; what these
// don't do (unigram models, unused pieces, spaces taken away) the sentencepiece library runs.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "model/tokenizer_data.h"

namespace kvquant {

// The model as tokenizer data; `TokenizerData::sentencepiece` is `bytes` when the library has to
// run it. Throws FormatError that begins with "tokenizer.model" naming what is wrong, or not
// supported: normalization by a character map, word and character models, spaces as suffixes.
TokenizerData tokenizer_from_sentencepiece(std::string_view bytes);

// A model run by the library. Thread-safe after construction.
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
