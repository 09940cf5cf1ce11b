#include "formats/json_fields.h"

#include <gtest/gtest.h>

#include "kvquant/error.h"

namespace kvquant {
namespace {

Json parse(const std::string& text) { return parse_json_object(text, "a.json"); }

TEST(JsonFields, ValuesAreReadAndNullCountsAsAbsent) {
  const Json json = parse(R"({"i": 3, "f": 1e3, "x": 0.5, "b": true, "t": "é", "n": null})");
  EXPECT_EQ(json_integer(json, "i", "p"), 3);
  EXPECT_EQ(json_integer(json, "f", "p"), 1000);
  EXPECT_EQ(json_number(json, "x", "p"), 0.5);
  EXPECT_EQ(json_number(json, "i", "p"), 3.0);
  EXPECT_EQ(json_boolean(json, "b", "p"), true);
  EXPECT_EQ(json_text(json, "t", "p"), "é");
  EXPECT_EQ(json_integer(json, "n", "p"), std::nullopt);
  EXPECT_EQ(json_text(json, "absent", "p"), std::nullopt);
}

TEST(JsonFields, ListsOfIntegersMayBeOneInteger) {
  const Json json = parse(R"({"one": 2, "two": [2, 5], "bad": [1, "x"]})");
  EXPECT_EQ(json_integers(json, "one", "p"), (std::vector<int64_t>{2}));
  EXPECT_EQ(json_integers(json, "two", "p"), (std::vector<int64_t>{2, 5}));
  EXPECT_TRUE(json_integers(json, "absent", "p").empty());
  EXPECT_THROW(json_integers(json, "bad", "p"), FormatError);
}

TEST(JsonFields, OtherTypesAreRefused) {
  const Json json = parse(R"({"x": 0.5, "t": "3", "big": 18446744073709551615, "huge": 1e300})");
  EXPECT_THROW(json_integer(json, "x", "p"), FormatError);
  EXPECT_THROW(json_integer(json, "t", "p"), FormatError);
  EXPECT_THROW(json_integer(json, "big", "p"), FormatError);
  EXPECT_THROW(json_integer(json, "huge", "p"), FormatError);
  EXPECT_THROW(json_number(json, "t", "p"), FormatError);
  EXPECT_THROW(json_boolean(json, "t", "p"), FormatError);
  EXPECT_THROW(json_text(json, "x", "p"), FormatError);
  EXPECT_THROW(require_integer(json, "absent", "p"), FormatError);
}

TEST(JsonFields, WhatIsNotAnObjectIsRefused) {
  for (const char* text :
       {"", "[]", "3", "{", "{}x", "{\"a\": NaN}", "{\"a\": 1e999}", "{\"a\": \"\xff\"}",
        R"({"a": 1, "a": 2})", R"({"x": {"a": 1, "b": {}, "a": 2}})"}) {
    EXPECT_THROW(parse(text), FormatError) << text;
  }
  EXPECT_THROW(parse("{\"a\":" + std::string(100000, '[')), FormatError);
  EXPECT_NO_THROW(parse(R"({"x": {"a": 1}, "y": {"a": 1}})"));
}

}  // namespace
}  // namespace kvquant
