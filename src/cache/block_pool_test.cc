// Blocks with several users: the pool, and lists of blocks that share and copy them.
#include "cache/block_pool.h"

#include <gtest/gtest.h>

#include <string>

#include "cache/block_list.h"
#include "kvquant/error.h"

namespace kvquant {
namespace {

TEST(BlockPool, ReusesAndClearsWhatIsGivenBack) {
  BlockPool pool(128);
  std::byte* first = pool.take();
  std::byte* second = pool.take();
  EXPECT_NE(first, second);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(first) % 64, 0u);
  first[5] = std::byte{7};
  const int64_t held = pool.slab_bytes();
  pool.give(first);
  EXPECT_EQ(pool.num_taken(), 1);
  EXPECT_EQ(pool.take(), first);
  EXPECT_EQ(first[5], std::byte{0});
  EXPECT_EQ(pool.slab_bytes(), held);
  BlockPool large(int64_t{3} << 20);  // larger than a slab
  EXPECT_NE(large.take(), large.take());
}

TEST(BlockPool, ABlockIsFreeWhenItsLastUserGivesItBack) {
  MemoryAccount account;
  BlockPool pool(64, &account);
  std::byte* block = pool.take();
  std::byte* other = pool.take();
  EXPECT_FALSE(pool.is_shared(block));
  pool.share(block);
  pool.share(block);
  EXPECT_EQ(pool.num_taken(), 2);
  EXPECT_EQ(account.held_bytes(), 128);
  pool.give(block);
  EXPECT_TRUE(pool.is_shared(block));
  pool.give(block);
  EXPECT_FALSE(pool.is_shared(block));
  EXPECT_NE(pool.take(), block);
  pool.give(block);
  EXPECT_EQ(account.held_bytes(), 128);
  EXPECT_EQ(pool.take(), block);
  EXPECT_FALSE(pool.is_shared(other));
}

TEST(BlockPool, KnowsTheUsersOfBlocksInManySlabs) {
  BlockPool pool(int64_t{256} << 10);  // four to a slab
  std::vector<std::byte*> blocks;
  for (int i = 0; i < 30; ++i) blocks.push_back(pool.take());
  for (size_t i = 0; i < blocks.size(); i += 3) pool.share(blocks[i]);
  for (size_t i = 0; i < blocks.size(); ++i) EXPECT_EQ(pool.is_shared(blocks[i]), i % 3 == 0) << i;
  for (std::byte* block : blocks) pool.give(block);
  EXPECT_EQ(pool.num_taken(), 10);
}

TEST(BlockPool, TakesNothingBeyondTheLimitOfItsAccount) {
  MemoryAccount account;
  BlockPool pool(64, &account);
  account.set_max_bytes(150);
  std::byte* first = pool.take();
  pool.take();
  try {
    pool.take();
    FAIL();
  } catch (const OutOfMemory& error) {
    EXPECT_STREQ(error.what(),
                 "cache: 64 bytes more than the 128 held would exceed the limit of 150 "
                 "bytes");
  }
  EXPECT_EQ(pool.num_taken(), 2);
  pool.give(first);
  EXPECT_EQ(pool.take(), first);
  account.set_max_bytes(0);
  EXPECT_NO_THROW(pool.take());
}

TEST(BlockList, AForkCopiesWhatItWrites) {
  BlockPool pool(64);
  BlockList<std::byte> list(pool);
  list.own(0, 3);
  for (int i = 0; i < 3; ++i) list[i][7] = std::byte(i);
  BlockList<std::byte> fork = list.fork();
  EXPECT_EQ(pool.num_taken(), 3);
  fork.own(2, 4);
  EXPECT_EQ(pool.num_taken(), 5);
  EXPECT_EQ(fork[1], list[1]);
  EXPECT_NE(fork[2], list[2]);
  EXPECT_EQ(fork[2][7], std::byte{2});
  EXPECT_EQ(fork[3][7], std::byte{0});
  std::byte* last = list[2];
  list.own(2, 3);  // nobody else has it any more
  EXPECT_EQ(list[2], last);
  list.shrink(1);
  EXPECT_EQ(list.size(), 1);
  EXPECT_EQ(pool.num_taken(), 4);
  { const BlockList<std::byte> moved = std::move(fork); }
  EXPECT_EQ(pool.num_taken(), 1);
}

TEST(BlockList, KeepsItsContentsWhenMemoryRunsOut) {
  MemoryAccount account;
  BlockPool pool(64, &account);
  BlockList<std::byte> list(pool);
  list.own(0, 2);
  list[1][0] = std::byte{9};
  BlockList<std::byte> fork = list.fork();
  account.set_max_bytes(128);
  EXPECT_THROW(fork.own(0, 2), OutOfMemory);
  EXPECT_THROW(list.own(0, 3), OutOfMemory);
  EXPECT_EQ(fork[1], list[1]);
  EXPECT_EQ(list[1][0], std::byte{9});
  EXPECT_EQ(list.size(), 2);
}

}  // namespace
}  // namespace kvquant
