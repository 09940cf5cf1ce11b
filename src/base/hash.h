// A 64-bit hash for fingerprints: FNV-1a, byte by byte. Not for data an attacker chooses: equal
// hashes are easy to construct. http://www.isthe.com/chongo/tech/comp/fnv/
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace kvquant {

class Hash64 {
 public:
  void add_bytes(std::span<const std::byte> bytes) {
    for (const std::byte b : bytes) state_ = (state_ ^ static_cast<uint8_t>(b)) * kPrime;
  }
  // The length goes in too, so that "ab" + "c" differs from "a" + "bc".
  void add_text(std::string_view text) {
    add_integer(static_cast<int64_t>(text.size()));
    add_bytes(std::as_bytes(std::span(text.data(), text.size())));
  }
  void add_integer(int64_t value) {  // little-endian on every machine
    for (int i = 0; i < 8; ++i) {
      state_ = (state_ ^ (static_cast<uint64_t>(value) >> (8 * i) & 0xFF)) * kPrime;
    }
  }

  uint64_t value() const { return state_; }
  std::string hex() const {  // 16 digits
    constexpr char kDigits[] = "0123456789abcdef";
    std::string out(16, '0');
    for (int i = 0; i < 16; ++i) {
      out[static_cast<size_t>(i)] = kDigits[state_ >> (60 - 4 * i) & 15];
    }
    return out;
  }

 private:
  static constexpr uint64_t kPrime = 0x100000001B3;
  uint64_t state_ = 0xCBF29CE484222325;
};

}  // namespace kvquant
