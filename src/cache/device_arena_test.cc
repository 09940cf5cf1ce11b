#include "cache/device_arena.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

#include "kvquant/error.h"

namespace kvquant {
namespace {

class Arenas : public ::testing::Test {
 protected:
  ThreadPool pool_{1, ThreadPool::Pin::kNo};
  std::unique_ptr<CudaDevice> device_ = emulated::open_device(pool_);
};

TEST_F(Arenas, AllocateOnceAndHandOutZeroedAlignedPieces) {
  DeviceArena arena(*device_, 1000);
  EXPECT_EQ(arena.num_bytes(), 1024);
  EXPECT_EQ(device_->allocated_bytes(), 1024);
  std::byte* a = arena.take(1);
  std::byte* b = arena.take(257);
  EXPECT_EQ(b - a, 256);
  EXPECT_EQ(arena.held_bytes(), 768);
  for (int i = 0; i < 512; ++i) EXPECT_EQ(b[i], std::byte{0});
  EXPECT_EQ(device_->allocated_bytes(), 1024);
}

TEST_F(Arenas, ABigPieceFitsAgainWhenItsNeighboursAreFree) {
  DeviceArena arena(*device_, 1024);
  std::byte* pieces[4];
  for (auto& piece : pieces) piece = arena.take(256);
  EXPECT_THROW(arena.take(1), OutOfMemory);
  arena.give(pieces[0]);
  arena.give(pieces[2]);
  EXPECT_THROW(arena.take(512), OutOfMemory) << "no two neighbours are free";
  arena.give(pieces[1]);
  EXPECT_EQ(arena.take(768), pieces[0]);
  EXPECT_EQ(arena.held_bytes(), 1024);
}

TEST_F(Arenas, PiecesLiveAsLongAsTheirLastUser) {
  DeviceArena arena(*device_, 1024);
  ArenaPiece<int> a(arena, 10);
  const int* data = a.data();
  device_->copy_in(a.data(), std::vector<int>(10, 7).data(), 40);
  ArenaPiece<int> b = a, c = b;
  EXPECT_EQ(arena.held_bytes(), 256);
  b.own();
  EXPECT_NE(b.data(), data);
  EXPECT_EQ(b.data()[9], 7);
  EXPECT_EQ(arena.held_bytes(), 512);
  a = ArenaPiece<int>();
  EXPECT_EQ(arena.held_bytes(), 512) << "c reads it";
  c.own();
  EXPECT_EQ(c.data(), data) << "it is the only user";
  c = b;
  EXPECT_EQ(arena.held_bytes(), 256);
  EXPECT_EQ(c.num_bytes(), 256);
  const ArenaPiece<int> low(arena, 64), high(arena, 128);  // all that is left
  EXPECT_THROW(b.own(), OutOfMemory);
  EXPECT_EQ(b.data(), c.data()) << "nothing has changed";
}

TEST_F(Arenas, PiecesNeverOverlapWhateverComesAndGoes) {
  DeviceArena arena(*device_, 64 << 10);
  std::mt19937 rng(3);
  std::map<std::byte*, int64_t> taken;
  int64_t held = 0;
  for (int step = 0; step < 3000; ++step) {
    if (rng() % 2 == 0 || taken.empty()) {
      const int64_t size = 256 * static_cast<int64_t>(1 + rng() % 20);
      try {
        std::byte* piece = arena.take(size);
        const auto next = taken.lower_bound(piece);
        if (next != taken.end()) {
          ASSERT_LE(piece + size, next->first);
        }
        if (next != taken.begin()) {
          const auto before = std::prev(next);
          ASSERT_LE(before->first + before->second, piece);
        }
        taken[piece] = size;
        held += size;
      } catch (const OutOfMemory&) {
      }
    } else {
      const auto gone = std::next(taken.begin(), static_cast<int64_t>(rng() % taken.size()));
      arena.give(gone->first);
      held -= gone->second;
      taken.erase(gone);
    }
    ASSERT_EQ(arena.held_bytes(), held);
  }
  for (const auto& [piece, size] : taken) arena.give(piece);
  EXPECT_EQ(arena.take(64 << 10), arena.data()) << "all is one piece again";
}

}  // namespace
}  // namespace kvquant
