#include "model/special_tokens.h"

#include <gtest/gtest.h>

namespace kvquant {
namespace {

void expect_match(SpecialTokens::Match match, int64_t offset, int64_t size, int32_t id) {
  EXPECT_EQ(match.offset, offset);
  EXPECT_EQ(match.size, size);
  EXPECT_EQ(match.id, id);
}

TEST(SpecialTokens, TheLeftmostAndThereTheLongestIsFound) {
  const SpecialTokens tokens({{"<|a|>", 1}, {"<|a|>b", 2}, {"|a", 3}, {"\u00E9", 4}});
  expect_match(tokens.find("x<|a|>c", 0), 1, 5, 1);
  expect_match(tokens.find("x<|a|>b", 0), 1, 6, 2);
  expect_match(tokens.find("x<|a|>b", 2), 2, 2, 3);
  expect_match(tokens.find("xx\u00E9", 0), 2, 2, 4);
}

TEST(SpecialTokens, WhiteSpaceBesideAMatchBelongsToItOnRequest) {
  const SpecialTokens tokens({{"<l>", 1, true, false}, {"<r>", 2, false, true}});
  expect_match(tokens.find("a \u3000<l> b", 0), 1, 7, 1);
  expect_match(tokens.find("a <r> \n b", 0), 2, 6, 2);
  expect_match(tokens.find("a  <l>", 2), 2, 4, 1);  // not what lies before `from`
}

TEST(SpecialTokens, WithoutAMatchTheEndIsReturned) {
  expect_match(SpecialTokens({{"<|a|>", 1}}).find("<|a|", 0), 4, 0, -1);
  expect_match(SpecialTokens({}).find("abc", 1), 3, 0, -1);
  expect_match(SpecialTokens({{"a", 1}}).find("a", 1), 1, 0, -1);
}

}  // namespace
}  // namespace kvquant
