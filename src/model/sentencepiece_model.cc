#include "model/sentencepiece_model.h"

#include <fmt/core.h>
#include <sentencepiece_processor.h>

#include <exception>
#include <string>

#include "kvquant/error.h"

namespace sentencepiece::logging {
void SetMinLogLevel(int level);  // exported, but in no installed header
}

namespace kvquant {

struct SentencepieceModel::Impl {
  sentencepiece::SentencePieceProcessor processor;
  std::optional<Unigram> unigram;  // instead of the processor
};

SentencepieceModel::SentencepieceModel(std::string_view bytes) : impl_(std::make_unique<Impl>()) {
  constexpr int kNothing = 3;  // errors come back as a status; nothing goes to stderr
  sentencepiece::logging::SetMinLogLevel(kNothing);
  std::string error;
  try {
    const auto status = impl_->processor.LoadFromSerializedProto(bytes);
    if (!status.ok()) error = fmt::format("code {}", static_cast<int>(status.code()));
  } catch (const std::exception&) {  // its trie throws where keys can't be
    error = "an exception";
  }
  if (!error.empty()) {
    throw FormatError("tokenizer.model: the sentencepiece library refuses it with " + error);
  }
  if (const auto data = unigram_from_sentencepiece(bytes)) {
    impl_ = std::make_unique<Impl>();  // the library has checked the model, that was all
    impl_->unigram.emplace(*data);
  }
}

SentencepieceModel::~SentencepieceModel() = default;

void SentencepieceModel::encode(std::string_view text, std::vector<int32_t>& ids) const {
  if (impl_->unigram) return impl_->unigram->encode(text, ids);
  std::vector<int> pieces;
  const auto status = impl_->processor.Encode(text, &pieces);
  if (!status.ok()) {
    throw FormatError(fmt::format("tokenizer.model: the sentencepiece library stops with code {}",
                                  static_cast<int>(status.code())));
  }
  ids.insert(ids.end(), pieces.begin(), pieces.end());
}

}  // namespace kvquant
