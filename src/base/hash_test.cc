#include "base/hash.h"

#include <gtest/gtest.h>

namespace kvquant {
namespace {

uint64_t hash_of(std::string_view text) {
  Hash64 hash;
  hash.add_bytes(std::as_bytes(std::span(text.data(), text.size())));
  return hash.value();
}

TEST(Hash64, EqualsThePublishedVectors) {  // of FNV-1a with 64 bits
  EXPECT_EQ(hash_of(""), 0xCBF29CE484222325u);
  EXPECT_EQ(hash_of("a"), 0xAF63DC4C8601EC8Cu);
  EXPECT_EQ(hash_of("foobar"), 0x85944171F73967E8u);
}

TEST(Hash64, TextsKeepTheirBoundaries) {
  Hash64 a, b;
  a.add_text("ab");
  a.add_text("c");
  b.add_text("a");
  b.add_text("bc");
  EXPECT_NE(a.value(), b.value());
}

TEST(Hash64, AnIntegerIsItsLittleEndianBytes) {
  Hash64 a;
  a.add_integer(0x0807060504030201);
  EXPECT_EQ(a.value(), hash_of("\x01\x02\x03\x04\x05\x06\x07\x08"));
}

TEST(Hash64, HexHasSixteenDigits) { EXPECT_EQ(Hash64().hex(), "cbf29ce484222325"); }

}  // namespace
}  // namespace kvquant
