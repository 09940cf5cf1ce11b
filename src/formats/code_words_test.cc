#include "formats/code_words.h"

#include <gtest/gtest.h>

#include <vector>

namespace kvquant {
namespace {

TEST(CodeWords, EveryCodeOfATileIsThatOfCodePlanes) {
  uint32_t state = 1;
  for (const int bits : {2, 3, 4, 8}) {
    for (const KvSide side : {KvSide::kKey, KvSide::kValue}) {
      for (const int64_t head_dim : {8, 16, 24, 80, 128}) {
        std::vector<uint32_t> words(static_cast<size_t>(code_tile_bytes(bits, head_dim) / 4));
        for (uint32_t& word : words) word = state = state * 1664525u + 1013904223u;
        const auto* bytes = reinterpret_cast<const uint8_t*>(words.data());
        for (int64_t token = 0; token < kTileTokens; ++token) {
          for (int64_t channel = 0; channel < head_dim; ++channel) {
            const CodePlace place = code_place(side, head_dim, token, channel);
            ASSERT_EQ(word_code_at(words.data(), bits, place), code_at(bytes, bits, place))
                << bits << " bits, head_dim " << head_dim << ", token " << token << ", channel "
                << channel;
          }
        }
      }
    }
  }
}

// The worked example of formats.md.
TEST(CodeWords, TheWorkedExampleOfTheFormatIsRead) {
  uint32_t tile[128] = {};
  reinterpret_cast<uint8_t*>(tile)[74] = 0x50;
  EXPECT_EQ(word_code_at(tile, 4, code_place(KvSide::kKey, 16, 18, 9)), 5);
}

}  // namespace
}  // namespace kvquant
