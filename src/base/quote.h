// Text from a file, made safe for a one-line message: quoted, clipped, without control bytes.
#pragma once

#include <string>
#include <string_view>

namespace kvquant {

// "text" in double quotes; bytes that are not printable ASCII, quotes and backslashes as \xNN; at
// most 64 bytes of it are shown, then "...".
inline std::string quote(std::string_view text) {
  constexpr size_t kMaxShown = 64;
  constexpr char kHex[] = "0123456789abcdef";
  std::string out = "\"";
  for (const char c : text.substr(0, kMaxShown)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7F && c != '"' && c != '\\') {
      out += c;
    } else {
      out += {'\\', 'x', kHex[byte >> 4], kHex[byte & 15]};
    }
  }
  return out + (text.size() > kMaxShown ? "...\"" : "\"");
}

}  // namespace kvquant
