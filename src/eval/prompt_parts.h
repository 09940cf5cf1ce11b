// Prompts made of pieces that are tokenized apart, so that a sentence can be put between two others
// without a change of their tokens, and a context can be read once for several questions.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/chat_template.h"
#include "model/tokenizer.h"

namespace kvquant {

// What stands around the user's message: the chat template's text, or the tokenizer's bos alone.
struct PromptFrame {
  std::vector<int32_t> before, after;
};
// A format without name: plain text. Throws what render_chat does.
PromptFrame prompt_frame(const Tokenizer& tokenizer, const ChatFormat& format,
                         const ChatTokens& tokens);

// Tokens of a piece that continues a text. A space in front of it is one space, also where the
// tokenizer puts one there itself.
std::vector<int32_t> encode_piece(const Tokenizer& tokenizer, std::string_view text);

// A text cut behind its sentences and paragraphs; each piece begins with the white space that
// stands before it. Joined, they are the text, less white space at its end.
std::vector<std::string> split_sentences(std::string_view text);

// Sentences to fill a context with, over and over.
using Sentences = std::vector<std::vector<int32_t>>;  // tokens, none empty
Sentences encode_sentences(const Tokenizer& tokenizer, std::string_view text);

// Whole sentences from `first` on, around the end again and again, as long as they fit: at most
// `max_tokens`, and more than max_tokens minus the longest sentence. Requires a sentence.
struct Filler {
  std::vector<int32_t> tokens;
  std::vector<int64_t> borders;  // positions between sentences, ascending; 0 and the end are in it
};
Filler fill(const Sentences& sentences, size_t first, int64_t max_tokens);

// The border nearest to `position`, the lower one of two.
int64_t nearest_border(const Filler& filler, double position);

// How often `part` (not empty) occurs in `tokens`, overlapping ones included.
int64_t num_occurrences(std::span<const int32_t> tokens, std::span<const int32_t> part);

}  // namespace kvquant
