#include "model/tokenizer.h"
#include "model/utf8.h"

namespace kvquant {
namespace {

constexpr std::string_view kReplacement = "\uFFFD";

}  // namespace

std::string StreamDecoder::next(int32_t id) {
  const std::string_view bytes = tokenizer_->token_bytes(id);
  if (tokenizer_->is_special(id)) return "";
  pending_ += bytes;
  std::string text;
  size_t offset = 0;
  while (offset < pending_.size()) {
    const Utf8Sequence sequence = utf8_sequence(pending_, static_cast<int64_t>(offset));
    if (sequence.kind == Utf8Sequence::Kind::kIncomplete) break;
    const bool is_character = sequence.kind == Utf8Sequence::Kind::kCharacter;
    text += is_character ? std::string_view(pending_).substr(offset, sequence.size) : kReplacement;
    offset += sequence.size;
  }
  pending_.erase(0, offset);
  return text;
}

std::string StreamDecoder::finish() {
  const bool is_cut = !pending_.empty();
  pending_.clear();
  return is_cut ? std::string(kReplacement) : "";
}

}  // namespace kvquant
