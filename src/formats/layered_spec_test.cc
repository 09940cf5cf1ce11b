#include "formats/layered_spec.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace kvquant {
namespace {

std::vector<Codec> codecs(std::initializer_list<const char*> names) {
  std::vector<Codec> out;
  for (const char* name : names) out.push_back(parse_spec(name).key);
  return out;
}

TEST(LayeredSpec, RunsOfLayersAreOneItem) {
  const auto keys = codecs({"nuq3-1%", "nuq3-1%", "int8", "int8", "nuq3-1%"});
  const auto values = codecs({"had+nuq4", "had+nuq2", "had+nuq2", "had+nuq2", "had+nuq4"});
  EXPECT_EQ(layered_spec(keys, values, parse_spec("sink=4,recent=16,block=128")),
            "k=nuq3-1%,v=had+nuq4,sink=4,recent=16,block=128,layers=2-3:k=int8,"
            "layers=1-3:v=had+nuq2");
}

TEST(LayeredSpec, OneCodecForAllNeedsNoItem) {
  const auto nuq = codecs({"nuq4", "nuq4"});
  EXPECT_EQ(layered_spec(nuq, nuq, {}), "nuq4");
  EXPECT_EQ(layered_spec(nuq, codecs({"fp16", "fp16"}), {}), "k=nuq4,v=fp16");
}

TEST(LayeredSpec, ThePlainCodecIsTheOneThatMakesTheTextShortest) {
  // nuq4 is in more layers, but in more runs int8 is.
  const auto keys = codecs({"int8", "nuq4", "int8", "nuq4", "nuq4", "nuq4", "int8"});
  EXPECT_EQ(
      layered_spec(keys, codecs({"int8", "int8", "int8", "int8", "int8", "int8", "int8"}), {}),
      "int8,layers=1:k=nuq4,layers=3-5:k=nuq4");
}

TEST(LayeredSpec, ParsesToTheCodecsThatItWasMadeFrom) {
  std::mt19937 rng(3);
  const auto some = codecs({"nuq2-1%", "nuq3-0.5%", "int8", "fp16", "nuq4"});
  for (int trial = 0; trial < 200; ++trial) {
    std::vector<Codec> keys(1 + rng() % 12), values(keys.size());
    for (Codec& codec : keys) codec = some[rng() % (1 + static_cast<size_t>(trial) % 5)];
    for (Codec& codec : values) codec = some[rng() % (1 + static_cast<size_t>(trial) % 5)];
    const CacheSpec spec = parse_spec(layered_spec(keys, values, parse_spec("sink=1")));
    EXPECT_EQ(spec.sink, 1);
    EXPECT_FALSE(spec.recent.has_value());
    for (size_t layer = 0; layer < keys.size(); ++layer) {
      ASSERT_EQ(spec.key_of(static_cast<int>(layer)), keys[layer]) << spec.text;
      ASSERT_EQ(spec.value_of(static_cast<int>(layer)), values[layer]) << spec.text;
    }
  }
}

}  // namespace
}  // namespace kvquant
