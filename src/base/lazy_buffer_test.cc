#include "base/lazy_buffer.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <utility>
#include <vector>

#include "kvquant/error.h"

namespace kvquant {
namespace {

// Pages of the buffer that are in memory.
int64_t resident_pages(LazyBuffer<float>& buffer) {
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t num_bytes = static_cast<size_t>(buffer.size()) * sizeof(float);
  std::vector<unsigned char> pages((num_bytes + page - 1) / page);
  if (mincore(buffer.data(), num_bytes, pages.data()) != 0) return -1;
  int64_t count = 0;
  for (const unsigned char flags : pages) count += flags & 1;
  return count;
}

TEST(LazyBuffer, IsZeroAndTakesMemoryWhereItIsWritten) {
  constexpr int64_t kSize = int64_t{16} << 20;
  LazyBuffer<float> buffer(kSize);
  EXPECT_EQ(buffer.size(), kSize);
  EXPECT_EQ(resident_pages(buffer), 0);
  buffer.data()[5] = 1;
  buffer.data()[kSize - 1] = 2;
  EXPECT_EQ(std::as_const(buffer).data()[5], 1);
  EXPECT_EQ(buffer.data()[6], 0);
  const int64_t resident = resident_pages(buffer);
  EXPECT_GE(resident, 2);
  EXPECT_LE(resident, 1024);  // of 16384; huge pages are 512 small ones
}

TEST(LazyBuffer, MovesWithoutCopying) {
  LazyBuffer<int> first(1000);
  first.data()[999] = 7;
  const int* data = first.data();
  const LazyBuffer<int> second = std::move(first);
  EXPECT_EQ(second.data(), data);
  EXPECT_EQ(second.data()[999], 7);
}

TEST(LazyBuffer, MayBeEmptyAndRefusesSizesThatOverflow) {
  EXPECT_EQ(LazyBuffer<int>(0).data(), nullptr);
  EXPECT_EQ(LazyBuffer<int>().size(), 0);
  EXPECT_THROW(LazyBuffer<double>(-1), OutOfMemory);
  EXPECT_THROW(LazyBuffer<double>(INT64_MAX / 4), OutOfMemory);
  EXPECT_THROW(LazyBuffer<char>(int64_t{1} << 60), OutOfMemory);
}

}  // namespace
}  // namespace kvquant
