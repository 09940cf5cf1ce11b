#include "model/tiktoken_ranks.h"

#include <fmt/core.h>

#include <charconv>
#include <optional>
#include <string>

#include "base/quote.h"
#include "kvquant/error.h"
#include "model/byte_alphabet.h"

namespace kvquant {
namespace {

int base64_value(char c) {
  if ('A' <= c && c <= 'Z') return c - 'A';
  if ('a' <= c && c <= 'z') return c - 'a' + 26;
  if ('0' <= c && c <= '9') return c - '0' + 52;
  if (c == '+') return 62;
  return c == '/' ? 63 : -1;
}

std::optional<std::string> decode_base64(std::string_view text) {
  if (text.empty() || text.size() % 4 != 0) return std::nullopt;
  size_t padding = 0;
  while (padding < 2 && text.ends_with('=')) {
    text.remove_suffix(1);
    ++padding;
  }
  std::string bytes;
  uint32_t bits = 0;
  int num_bits = 0;
  for (const char c : text) {
    const int value = base64_value(c);
    if (value < 0) return std::nullopt;
    bits = bits << 6 | static_cast<uint32_t>(value);
    num_bits += 6;
    if (num_bits < 8) continue;
    num_bits -= 8;
    bytes += static_cast<char>(bits >> num_bits & 0xFF);
  }
  return bytes;
}

struct Line {
  std::string bytes;
  size_t rank;
};

std::optional<Line> read_line(std::string_view line) {
  if (line.ends_with('\r')) line.remove_suffix(1);
  const size_t space = line.find(' ');
  if (space == std::string_view::npos) return std::nullopt;
  auto bytes = decode_base64(line.substr(0, space));
  const std::string_view digits = line.substr(space + 1);
  size_t rank = 0;
  const char* end = digits.data() + digits.size();
  const auto [stop, error] = std::from_chars(digits.data(), end, rank);
  if (!bytes || digits.empty() || error != std::errc() || stop != end) return std::nullopt;
  return Line{std::move(*bytes), rank};
}

}  // namespace

bool is_tiktoken_ranks(std::string_view text) {
  return read_line(text.substr(0, std::min<size_t>(text.find('\n'), 1024))).has_value();
}

TokenizerData tokenizer_from_tiktoken_ranks(std::string_view text) {
  TokenizerData data;
  data.pre_tokenizer = PreTokenizer::kLlama3;
  data.merge_order = MergeOrder::kScores;
  data.ignore_merges = true;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    const auto token = read_line(line);
    if (!token || token->rank != data.tokens.size()) {
      throw FormatError(fmt::format("tokenizer.model: line {} is {}, not a token in base64 and {}",
                                    data.tokens.size() + 1, quote(line), data.tokens.size()));
    }
    data.scores.push_back(-static_cast<float>(token->rank));
    data.tokens.push_back(to_byte_alphabet(token->bytes));
  }
  return data;
}

}  // namespace kvquant
