#include "model/utf8.h"

#include <cassert>
#include <cstring>

namespace kvquant {
namespace {

struct Lead {
  int size;               // bytes of the character, 0: no character starts so
  unsigned second_first;  // range of the second byte
  unsigned second_last;
};

// Table 3-7 of the Unicode standard.
Lead lead_of(unsigned byte) {
  if (byte < 0x80) return {1, 0, 0};
  if (byte < 0xC2) return {0, 0, 0};
  if (byte < 0xE0) return {2, 0x80, 0xBF};
  if (byte < 0xF0) return {3, byte == 0xE0 ? 0xA0u : 0x80u, byte == 0xED ? 0x9Fu : 0xBFu};
  if (byte < 0xF5) return {4, byte == 0xF0 ? 0x90u : 0x80u, byte == 0xF4 ? 0x8Fu : 0xBFu};
  return {0, 0, 0};
}

}  // namespace

Utf8Sequence utf8_sequence(std::string_view text, int64_t offset) {
  assert(offset >= 0 && offset < static_cast<int64_t>(text.size()));
  using Kind = Utf8Sequence::Kind;
  const auto byte = [&](int64_t i) { return static_cast<unsigned char>(text[i]); };
  const Lead lead = lead_of(byte(offset));
  if (lead.size == 0) return {Kind::kInvalid, 1};
  const int64_t available = static_cast<int64_t>(text.size()) - offset;
  for (int i = 1; i < lead.size; ++i) {
    if (i == available) return {Kind::kIncomplete, i};
    const unsigned first = i == 1 ? lead.second_first : 0x80;
    const unsigned last = i == 1 ? lead.second_last : 0xBF;
    if (byte(offset + i) < first || byte(offset + i) > last) return {Kind::kInvalid, i};
  }
  return {Kind::kCharacter, lead.size};
}

int64_t find_invalid_utf8(std::string_view text) {
  const auto size = static_cast<int64_t>(text.size());
  int64_t offset = 0;
  while (offset < size) {
    uint64_t eight_bytes = ~uint64_t{0};
    if (size - offset >= 8) std::memcpy(&eight_bytes, text.data() + offset, 8);
    if ((eight_bytes & 0x8080808080808080u) == 0) {
      offset += 8;
      continue;
    }
    const Utf8Sequence sequence = utf8_sequence(text, offset);
    if (sequence.kind != Utf8Sequence::Kind::kCharacter) return offset;
    offset += sequence.size;
  }
  return -1;
}

void append_utf8(std::string& text, char32_t character) {
  assert(character <= 0x10FFFF);
  const auto tail = [&](int shift) {
    return static_cast<char>(0x80 | ((character >> shift) & 0x3F));
  };
  if (character < 0x80) {
    text += static_cast<char>(character);
  } else if (character < 0x800) {
    text += {static_cast<char>(0xC0 | (character >> 6)), tail(0)};
  } else if (character < 0x10000) {
    text += {static_cast<char>(0xE0 | (character >> 12)), tail(6), tail(0)};
  } else {
    text += {static_cast<char>(0xF0 | (character >> 18)), tail(12), tail(6), tail(0)};
  }
}

}  // namespace kvquant
