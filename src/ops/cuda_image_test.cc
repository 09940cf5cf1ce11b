#include "ops/cuda_image.h"

#include <gtest/gtest.h>

#include <cstring>

#include "base/buffer.h"

namespace kvquant {
namespace {

TEST(CudaImage, HoldsPiecesListsAndRowsOnceAndBringsOutputsBack) {
  const std::vector<uint8_t> a = {1, 2, 3}, b(70, 4);
  const std::vector<const void*> items = {a.data(), b.data(), a.data()};
  const std::vector<float> in = {1, 2, -1, 3, 4, -1};
  std::vector<float> out(6, 9);
  CudaImage image;
  struct Asked {
    const void* a;
    const void* const* list;
    const float* in;
    float* out;
  };
  const auto ask = [&]() -> Asked {
    return {image.address(a.data(), 2), image.list(items, 3),
            image.input_rows(in.data(), {2, 2, 3}), image.output_rows(out.data(), {2, 2, 3})};
  };
  ask();
  image.place(nullptr);
  Buffer<std::byte> memory(image.num_bytes());
  EXPECT_EQ(image.num_bytes(), 64 * 5);
  image.place(memory.data());
  const Asked got = ask();
  image.fill(memory.data());
  EXPECT_EQ(image.address(nullptr, 5), nullptr);
  EXPECT_EQ(got.list[0], got.a);
  EXPECT_EQ(got.list[2], got.a);
  EXPECT_EQ(std::memcmp(got.a, a.data(), 3), 0);  // as much as anyone asked for
  EXPECT_EQ(static_cast<const uint8_t*>(got.list[1])[2], 4);
  for (int i = 0; i < 4; ++i) EXPECT_EQ(got.in[i], static_cast<float>(i + 1));
  for (int i = 0; i < 4; ++i) got.out[i] = static_cast<float>(10 + i);
  image.read_back(memory.data() + image.first_output());
  EXPECT_EQ(out, (std::vector<float>{10, 11, 9, 12, 13, 9}));
}

}  // namespace
}  // namespace kvquant
