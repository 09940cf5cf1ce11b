#include "cache/sparse_pages.h"

#include <gtest/gtest.h>

namespace kvquant {
namespace {

TEST(SparsePages, EntriesFollowOneAnotherThroughPages) {
  SparsePagePlace before{-1, 0, 1};
  for (int64_t entry = 0; entry < 100000; ++entry) {
    const SparsePagePlace now = sparse_page_of(entry);
    if (before.i + 1 == before.size) {
      ASSERT_EQ(now.page, before.page + 1) << entry;
      ASSERT_EQ(now.i, 0) << entry;
      ASSERT_EQ(sparse_pages_capacity(now.page), entry);
      ASSERT_EQ(sparse_pages_capacity(now.page + 1), entry + now.size);
      ASSERT_TRUE(now.size == 512 || now.size * 8 <= entry) << entry;
    } else {
      ASSERT_EQ(now.page, before.page) << entry;
      ASSERT_EQ(now.i, before.i + 1) << entry;
      ASSERT_EQ(now.size, before.size) << entry;
    }
    before = now;
  }
}

}  // namespace
}  // namespace kvquant
