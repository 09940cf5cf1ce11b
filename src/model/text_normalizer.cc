#include "model/text_normalizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <memory>
#include <new>

#include "model/utf8.h"

namespace kvquant {
namespace {

struct Free {
  void operator()(utf8proc_uint8_t* bytes) const { std::free(bytes); }
};

// Below U+0300, whose lead byte is 0xCC, every text is in normal form C.
bool is_surely_nfc(std::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return static_cast<unsigned char>(c) < 0xCC; });
}

constexpr std::array<std::string_view, 25> kWhiteSpace{
    " ",      "\t",     "\n",     "\v",     "\f",     "\r",     "\u0085", "\u00A0", "\u1680",
    "\u2000", "\u2001", "\u2002", "\u2003", "\u2004", "\u2005", "\u2006", "\u2007", "\u2008",
    "\u2009", "\u200A", "\u2028", "\u2029", "\u202F", "\u205F", "\u3000"};

}  // namespace

std::string to_nfc(std::string_view text) {
  if (is_surely_nfc(text)) return std::string(text);
  utf8proc_uint8_t* bytes = nullptr;
  const auto size =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                   static_cast<utf8proc_ssize_t>(text.size()), &bytes,
                   static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  const std::unique_ptr<utf8proc_uint8_t, Free> owner(bytes);
  if (size < 0) throw std::bad_alloc();  // the text is valid: nothing else can go wrong
  return {reinterpret_cast<const char*>(bytes), static_cast<size_t>(size)};
}

std::string replace_all(std::string_view text, std::string_view from, std::string_view to) {
  std::string result;
  result.reserve(text.size() + text.size() / 4);
  for (size_t start = 0;;) {
    const size_t found = text.find(from, start);
    result += text.substr(start, found - start);
    if (found == std::string_view::npos) return result;
    result += to;
    start = found + from.size();
  }
}

std::string sentencepiece_text(std::string_view text, SentencepieceSpaces spaces) {
  std::string out;
  if (spaces.remove_extra) {
    text.remove_prefix(std::min(text.find_first_not_of(' '), text.size()));
  }
  if (text.empty()) return out;
  out.reserve(text.size() + text.size() / 2);
  if (spaces.add_prefix) out += kSpaceMark;
  char last = 0;
  for (const char c : text) {
    if (c != ' ') {
      out += c;
    } else if (!spaces.remove_extra || last != ' ') {
      out += kSpaceMark;
    }
    last = c;
  }
  while (spaces.remove_extra && out.ends_with(kSpaceMark)) {
    out.resize(out.size() - kSpaceMark.size());
  }
  return out;
}

size_t leading_white_space(std::string_view text) {
  size_t size = 0;
  while (true) {
    const auto found =
        std::find_if(kWhiteSpace.begin(), kWhiteSpace.end(),
                     [&](std::string_view space) { return text.substr(size).starts_with(space); });
    if (found == kWhiteSpace.end()) return size;
    size += found->size();
  }
}

size_t trailing_white_space(std::string_view text) {
  size_t size = text.size();
  while (true) {
    const auto found =
        std::find_if(kWhiteSpace.begin(), kWhiteSpace.end(),
                     [&](std::string_view space) { return text.substr(0, size).ends_with(space); });
    if (found == kWhiteSpace.end()) return text.size() - size;
    size -= found->size();
  }
}

}  // namespace kvquant
