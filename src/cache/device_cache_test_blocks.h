// For tests: blocks of a cache in the memory of a device against those of KvCache.
#pragma once

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "formats/codec_table.h"
#include "ops/attend.h"
#include "ops/cuda_device.h"

namespace kvquant::test {

// Of each block, all bytes but most_other: keys that are turned before they are stored may differ
// here and there by what fused multiplications make of them.
inline void compare_blocks(CudaDevice& device, const CodedSide& mine, const CodedSide& other,
                           int64_t most_other) {
  ASSERT_EQ(mine.blocks.size(), other.blocks.size());
  std::vector<std::byte> block(static_cast<size_t>(mine.layout.num_bytes));
  for (size_t i = 0; i < mine.blocks.size(); ++i) {
    device.copy_out(block.data(), mine.blocks[i], mine.layout.num_bytes);
    int64_t num_other = 0;
    for (size_t k = 0; k < block.size(); ++k) num_other += block[k] != other.blocks[i][k] ? 1 : 0;
    ASSERT_LE(num_other, most_other) << "block " << i;
  }
}

}  // namespace kvquant::test
