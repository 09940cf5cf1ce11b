// Cache files: what is loaded goes on as if it had never left, and what is damaged, hostile or of
// something else is refused without a trace.
#include "cache/cache_file.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <memory>
#include <numeric>

#include "base/file.h"
#include "base/hash.h"
#include "cache/kv_cache_test_feed.h"
#include "kvquant/error.h"
#include "quant/calibration_test_data.h"

namespace kvquant {
namespace {

using test::FedCache;
using test::Row;
using test::stream;

constexpr const char* kSpecs[] = {"fp16",
                                  "fp32,block=64",
                                  "nuq4-1%",
                                  "nuq3,block=64",
                                  "nuq3-2%,block=64",
                                  "k=nuq4-1%,v=had+nuq4,sink=4,recent=64",
                                  "int8,sink=70,recent=30",
                                  "k=nuq2-5%,v=fp16",
                                  "k=bf16,v=had+nuq3-1%,layers=1:int4",
                                  "k=fp16,v=lnns,block=64",
                                  "k=nuq4-1%,v=lnns+nuq3-5%,sink=3,recent=30",
                                  "k=fp32,v=lnns+int8",
                                  "k=lnns,v=fp16,block=64",
                                  "k=lnns+nuq3-5%,v=nuq4-1%,sink=3,recent=30",
                                  "lnns+int8,layers=1:k=fp16"};
constexpr CacheMode kModes[] = {CacheMode::kStrict, CacheMode::kAsServed};
const CacheFileInfo kInfo{"test", "00ff00ff00ff00ff"};

std::vector<int32_t> ids(int64_t count) {
  std::vector<int32_t> out(static_cast<size_t>(count));
  std::iota(out.begin(), out.end(), 1000);
  return out;
}

class CacheFileTest : public testing::Test {
 protected:
  std::string path() const {
    const auto* info = testing::UnitTest::GetInstance()->current_test_info();
    return testing::TempDir() + "kvquant_cache_file_" + info->name();
  }
  void TearDown() override { std::filesystem::remove(path()); }

  // Saves `length` tokens in a file and returns its bytes.
  std::string saved(const char* spec, CacheMode mode, int64_t length) const {
    FedCache fed(spec, mode);
    const auto id = fed.cache.add_sequence();
    if (length > 0) fed.append(id, stream(length), 0, length);
    save_cache(fed.cache, id, ids(length), kInfo, path());
    return read_text(path());
  }
};

// What loading these bytes says; nothing may be left of them.
std::string refusal(FedCache& fed, const std::string& bytes) {
  const int64_t before = fed.cache.memory_bytes();
  try {
    const CacheFile file = parse_cache_file(std::as_bytes(std::span(bytes)), "file");
    check_cache_file_fits(file, fed.cache, kInfo.model_fingerprint);
    check_cache_file_hashes(file);
    restore_cache(fed.cache, file);
  } catch (const FormatError& error) {
    EXPECT_EQ(fed.cache.memory_bytes(), before);
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
    return error.what();
  }
  return "accepted";
}

TEST_F(CacheFileTest, WhatIsLoadedGoesOnWithTheSameBits) {
  for (const CacheMode mode : kModes) {
    for (const char* spec : kSpecs) {
      for (const int64_t length : {1, 64, 131, 400}) {
        SCOPED_TRACE(fmt::format("{} {} {}", spec, mode == CacheMode::kStrict, length));
        FedCache from(spec, mode), to(spec, mode, 2);
        const auto rows = stream(length + 205);
        const auto a = from.cache.add_sequence();
        from.append(a, rows, 0, length);
        save_cache(from.cache, a, ids(length), kInfo, path());
        const LoadedSequence loaded = load_cache(to.cache, kInfo.model_fingerprint, path());
        EXPECT_EQ(loaded.tokens, ids(length));
        ASSERT_EQ(to.cache.length(loaded.id), length);
        int64_t done = length;
        for (const int64_t num_new : {1, 3, 130, 1, 70}) {
          from.append(a, rows, done, num_new);
          to.append(loaded.id, rows, done, num_new);
          done += num_new;
          ASSERT_EQ(from.contents(a), to.contents(loaded.id)) << done;
        }
      }
    }
  }
}

TEST_F(CacheFileTest, ALoadedSequenceSavesTheSameBytes) {
  for (const CacheMode mode : kModes) {
    for (const char* spec : kSpecs) {
      const std::string bytes = saved(spec, mode, 333);
      FedCache fed(spec, mode);
      const LoadedSequence loaded = load_cache(fed.cache, kInfo.model_fingerprint, path());
      save_cache(fed.cache, loaded.id, loaded.tokens, kInfo, path());
      EXPECT_EQ(read_text(path()), bytes) << spec;
    }
  }
}

TEST_F(CacheFileTest, ForksSplicesAndTruncatedSequencesComeBackToo) {
  for (const CacheMode mode : kModes) {
    for (const char* spec : {"nuq4-1%,block=64,sink=4,recent=0", "nuq3,sink=4,recent=0"}) {
      FedCache from(spec, mode), to(spec, mode);
      const auto rows = stream(900);
      const auto a = from.cache.add_sequence();
      from.append(a, rows, 0, 260);  // 4 sinks and 4 tiles
      const auto b = from.cache.fork(a);
      from.cache.splice(b, a, 68, 128);
      const auto c = from.cache.fork(b);
      from.append(c, rows, 388, 40);
      if (mode == CacheMode::kAsServed) from.cache.truncate(c, 410);
      for (const auto id : {b, c}) {
        const int64_t length = from.cache.length(id);
        save_cache(from.cache, id, ids(length), kInfo, path());
        const LoadedSequence loaded = load_cache(to.cache, kInfo.model_fingerprint, path());
        for (const int64_t first : {length, length + 100}) {
          from.append(id, rows, first, 100);
          to.append(loaded.id, rows, first, 100);
          ASSERT_EQ(from.contents(id), to.contents(loaded.id)) << spec << " " << first;
        }
      }
    }
  }
}

TEST_F(CacheFileTest, AnEmptySequenceComesBackEmpty) {
  saved("nuq4-1%", CacheMode::kAsServed, 0);
  FedCache fed("nuq4-1%", CacheMode::kAsServed);
  const LoadedSequence loaded = load_cache(fed.cache, kInfo.model_fingerprint, path());
  EXPECT_EQ(fed.cache.length(loaded.id), 0);
  EXPECT_TRUE(loaded.tokens.empty());
}

TEST_F(CacheFileTest, WithACalibrationOnlyTheSameOneFits) {
  const CalibrationShape shape{2, 6, 3, 16};
  const auto calibration = std::make_shared<const Calibration>(test_calibration(shape));
  const auto per_head = std::make_shared<const Calibration>(
      test_calibration(shape, {.codebooks = CodebookScope::kHead}));
  auto other = std::make_shared<Calibration>(*calibration);
  other->layers[1].value.codebooks[2][3] += 1e-3f;
  ThreadPool pool(1);
  const RopeTable rope(16, 1000, 10000);
  const auto make = [&](std::shared_ptr<const Calibration> with) {
    return KvCache({2, 3, 16}, parse_spec("nuq4-1%"), CacheMode::kAsServed, rope, pool, with);
  };
  std::vector<float> flat;
  const auto x = test::as_chunk(stream(200), 3, flat);
  for (const auto& [used, codebooks_differ] :
       {std::pair(calibration, per_head), {per_head, calibration}}) {
    KvCache from = make(used), to = make(used);
    const auto id = from.add_sequence();
    for (int64_t layer = 0; layer < 2; ++layer) from.append(layer, id, x, x);
    save_cache(from, id, ids(200), kInfo, path());
    const std::string bytes = read_text(path());
    const LoadedSequence loaded = load_cache(to, kInfo.model_fingerprint, path());
    save_cache(to, loaded.id, loaded.tokens, kInfo, path());
    EXPECT_EQ(read_text(path()), bytes);
    for (const auto& wrong : {std::shared_ptr<const Calibration>(other), codebooks_differ, {}}) {
      KvCache cache = make(wrong);
      try {
        load_cache(cache, kInfo.model_fingerprint, path());
        ADD_FAILURE() << "accepted";
      } catch (const FormatError& error) {
        EXPECT_NE(std::string(error.what()).find("calibration"), std::string::npos) << error.what();
      }
    }
  }
}

TEST_F(CacheFileTest, WhatDiffersIsNamed) {
  const std::string bytes = saved("nuq4-1%", CacheMode::kAsServed, 200);
  FedCache other_spec("nuq3-1%", CacheMode::kAsServed),
      other_mode("nuq4-1%,sink=4,recent=64", CacheMode::kStrict);
  EXPECT_NE(refusal(other_spec, bytes).find("spec"), std::string::npos);
  EXPECT_NE(refusal(other_mode, bytes).find("mode"), std::string::npos);
  FedCache fed("nuq4-1%", CacheMode::kAsServed);
  try {
    load_cache(fed.cache, "another model", path());
    ADD_FAILURE() << "accepted";
  } catch (const FormatError& error) {
    EXPECT_NE(std::string(error.what()).find(path() + ": its model is"), std::string::npos);
  }
  ThreadPool pool(1);
  const RopeTable rope(16, 1000, 10000), short_rope(16, 100, 10000);
  KvCache deeper({3, 3, 16}, parse_spec("nuq4-1%"), CacheMode::kAsServed, rope, pool);
  EXPECT_THROW(load_cache(deeper, kInfo.model_fingerprint, path()), FormatError);
  KvCache shorter({2, 3, 16}, parse_spec("nuq4-1%"), CacheMode::kAsServed, short_rope, pool);
  EXPECT_THROW(load_cache(shorter, kInfo.model_fingerprint, path()), FormatError);
  EXPECT_THROW(load_cache(fed.cache, "", path() + ".not_there"), IoError);
}

TEST_F(CacheFileTest, EveryChangedByteIsNoticed) {
  const std::string bytes = saved("nuq3-1%,block=64,layers=1:fp16", CacheMode::kAsServed, 140);
  FedCache fed("nuq3-1%,block=64,layers=1:fp16", CacheMode::kAsServed);
  ASSERT_EQ(refusal(fed, bytes), "accepted");
  for (size_t i = 0; i < bytes.size(); i += i < 100 ? 1 : 61) {
    std::string changed = bytes;
    changed[i] = static_cast<char>(changed[i] ^ 4);
    ASSERT_NE(refusal(fed, changed), "accepted") << i;
  }
}

TEST_F(CacheFileTest, ATruncatedOrLongerFileIsRefused) {
  const std::string bytes = saved("nuq4-1%,block=64", CacheMode::kStrict, 70);
  FedCache fed("nuq4-1%,block=64", CacheMode::kStrict);
  for (size_t size = 0; size < bytes.size(); size += size < 100 ? 1 : 97) {
    ASSERT_NE(refusal(fed, bytes.substr(0, size)), "accepted") << size;
  }
  EXPECT_NE(refusal(fed, bytes + '\0').find("behind the last section"), std::string::npos);
}

// The file with a text of its header replaced by another, and the header's hash made right.
std::string with_header(std::string bytes, const std::string& from, const std::string& to) {
  uint64_t size = 0;
  std::memcpy(&size, &bytes[16], 8);
  std::string header = bytes.substr(32, size);
  EXPECT_NE(header.find(from), std::string::npos) << from << " in " << header;
  header.replace(header.find(from), from.size(), to);
  const std::string data = bytes.substr((32 + size + 63) / 64 * 64);
  size = header.size();
  Hash64 hash;
  hash.add_bytes(std::as_bytes(std::span(header)));
  const uint64_t value = hash.value();
  bytes = bytes.substr(0, 32) + header;
  std::memcpy(&bytes[16], &size, 8);
  std::memcpy(&bytes[24], &value, 8);
  bytes.resize((bytes.size() + 63) / 64 * 64);
  return bytes + data;
}

TEST_F(CacheFileTest, AHeaderThatLiesIsRefused) {
  const std::string bytes = saved("nuq4-1%,block=64", CacheMode::kAsServed, 200);
  FedCache fed("nuq4-1%,block=64", CacheMode::kAsServed);
  ASSERT_EQ(refusal(fed, with_header(bytes, "\"test\"", "\"later\"")), "accepted");
  const std::pair<const char*, const char*> lies[] = {
      {"\"num_tokens\":200", "\"num_tokens\":201"},
      {"\"num_tokens\":200", "\"num_tokens\":-1"},
      {"\"num_tokens\":200", "\"num_tokens\":4611686018427387954"},  // times 4: 200 in 64 bits
      {"\"num_encoded\":128", "\"num_encoded\":64"},
      {"\"num_encoded\":128", "\"num_encoded\":192"},
      {"\"num_encoded\":128", "\"num_encoded\":129"},
      {"\"num_encoded\":128", "\"num_encoded\":-9223372036854775808"},
      {"\"bytes\":800", "\"bytes\":9223372036854775807"},
      {"\"bytes\":800", "\"bytes\":-800"},
      {"\"bytes\":800", "\"bytes\":8e300"},
      {"\"offset\":0", "\"offset\":64"},
      {"\"offset\":0", "\"offset\":9223372036854775807"},
      {"layers.1.key.sinks", "layers.1.key.window"},
      {"\"tokens_hash\":\"", "\"tokens_hash\":\"0"},
      {"\"head_dim\":16", "\"head_dim\":9223372036854775807"},
      {"\"mode\":\"as-served\"", "\"mode\":1"},
      {"\"sections\":[", "\"sections\":[7,"},
      {"\"sections\":[", "\"sections\":[],\"more\":["},
      {"{", "[{"}};
  for (const auto& [from, to] : lies) {
    EXPECT_NE(refusal(fed, with_header(bytes, from, to)), "accepted") << to;
  }
}

TEST_F(CacheFileTest, OtherVersionsAndByteOrdersAreToldApart) {
  const std::string bytes = saved("fp16", CacheMode::kAsServed, 3);
  FedCache fed("fp16", CacheMode::kAsServed);
  const auto with_byte = [&](size_t at, char to) {
    std::string out = bytes;
    out[at] = to;
    return refusal(fed, out);
  };
  EXPECT_NE(with_byte(0, 'k').find("not a cache file"), std::string::npos);
  EXPECT_NE(with_byte(8, 2).find("version 2"), std::string::npos);
  std::string swapped = bytes;
  std::swap(swapped[12], swapped[15]);
  std::swap(swapped[13], swapped[14]);
  EXPECT_NE(refusal(fed, swapped).find("byte order"), std::string::npos);
}

// Copies of all sections, to be spoilt.
struct Spoilt {
  explicit Spoilt(const StoredSequence& from) : stored(from) {
    for (StoredSection& section : stored.sections) {
      std::vector<std::byte> copy;
      for (const auto& piece : section.pieces) copy.insert(copy.end(), piece.begin(), piece.end());
      bytes.push_back(copy);
      section.pieces = {std::span<const std::byte>(bytes.back())};
    }
  }
  template <class T>
  void set(const std::string& name, size_t index, T value) {
    for (size_t i = 0; i < stored.sections.size(); ++i) {
      if (stored.sections[i].name != name) continue;
      ASSERT_LE((index + 1) * sizeof(T), bytes[i].size()) << name;
      std::memcpy(bytes[i].data() + index * sizeof(T), &value, sizeof(T));
      return;
    }
    ADD_FAILURE() << "no section " << name;
  }
  StoredSequence stored;
  std::vector<std::vector<std::byte>> bytes;
};

class HostileSections : public testing::Test {
 protected:
  void feed(const char* spec, int64_t length) {
    fed = std::make_unique<FedCache>(spec, CacheMode::kStrict);
    id = fed->cache.add_sequence();
    fed->append(id, stream(length), 0, length);
  }
  template <class T>
  void expect_refused(const std::string& section, size_t index, T value, const std::string& part) {
    Spoilt spoilt(fed->cache.store(id));
    spoilt.set(section, index, value);
    const int64_t before = fed->cache.memory_bytes();
    try {
      fed->cache.restore(spoilt.stored);
      ADD_FAILURE() << section << " " << index << " accepted";
    } catch (const FormatError& error) {
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
    EXPECT_EQ(fed->cache.memory_bytes(), before);
  }

  std::unique_ptr<FedCache> fed;
  KvCache::SequenceId id = 0;
};

// nuq4-5%, block=128, 70 tokens of 3 heads with 16 channels: tile 0 is full, tile 1 has 6 tokens.
TEST_F(HostileSections, OutliersOutOfPlaceAreRefused) {
  feed("nuq4-5%,block=128,recent=10", 70);
  ASSERT_NO_THROW(fed->cache.drop(fed->cache.restore(Spoilt(fed->cache.store(id)).stored)));
  const KvBlockLayout layout = kv_block_layout({KvSide::kKey, 4, true, 3, 16, 2});
  const auto starts = static_cast<size_t>(layout.starts) / 4;
  const auto counts = static_cast<size_t>(layout.counts) / 2;
  const std::string blocks = "layers.1.key.blocks", entries = "layers.1.key.outliers";
  expect_refused<uint32_t>(blocks, starts, 1, "expected from 0");
  expect_refused<uint32_t>(blocks, starts + 3, 0xFFFFFFFF, "expected from");
  expect_refused<uint16_t>(blocks, counts, 0xFFFF, "expected from");
  expect_refused<uint16_t>(blocks, counts + 5, 0xFFFF, "expected");
  expect_refused<uint16_t>(entries, 0, 0xFFFF, "out of range");   // channel 1023
  expect_refused<uint16_t>(entries, 0, 16 * 64, "out of range");  // channel 16
  expect_refused<uint16_t>(entries, 2, 0, "out of");              // entry 1 before entry 0
  expect_refused<uint16_t>(entries, 1, 0x7C00, "not finite");     // infinity
}

TEST_F(HostileSections, CodesUnderOutliersMustBeZero) {
  feed("nuq4-5%,block=128,recent=10", 70);
  const StoredSequence stored = fed->cache.store(id);
  const auto entries = std::find_if(
      stored.sections.begin(), stored.sections.end(),
      [](const StoredSection& section) { return section.name == "layers.1.key.outliers"; });
  ASSERT_NE(entries, stored.sections.end());
  uint16_t place = 0;  // of the first outlier, which is one of the first tile of the first head
  std::memcpy(&place, entries->pieces.at(0).data(), sizeof place);
  std::vector<uint8_t> tile(code_tile_bytes(4, 16));
  add_code(tile.data(), 4, code_place(KvSide::kKey, 16, place % 64, place / 64), 15);
  const auto byte = std::find_if(tile.begin(), tile.end(), [](uint8_t b) { return b != 0; });
  expect_refused<uint8_t>("layers.1.key.blocks", static_cast<size_t>(byte - tile.begin()), 0xFF,
                          "is not 0");
}

TEST_F(HostileSections, UnusedTilesMustBeEmpty) {
  feed("nuq4-5%,block=256", 70);  // tiles 2 and 3 of 4 are unused
  const KvBlockLayout layout = kv_block_layout({KvSide::kKey, 4, true, 3, 16, 4});
  const std::string blocks = "layers.0.key.blocks";
  expect_refused<uint16_t>(blocks, static_cast<size_t>(layout.counts) / 2 + 6, 1, "expected from");
  expect_refused<uint8_t>(blocks, static_cast<size_t>(layout.codes(0, 2)), 1, "unused");
}

TEST_F(HostileSections, NumbersThatCannotBeAreRefused) {
  feed("nuq4,sink=4,recent=8", 70);
  const KvBlockLayout layout = kv_block_layout({KvSide::kValue, 4, false, 3, 16, 4});
  const auto scales = static_cast<size_t>(layout.scales) / 2;
  const auto zeros = static_cast<size_t>(layout.zeros) / 2;
  expect_refused<uint16_t>("layers.0.value.blocks", scales + 1, 0xBC00, "tile 0");  // -1
  expect_refused<uint16_t>("layers.0.value.blocks", scales + 255, 0x7E00, "tile 3");
  expect_refused<uint16_t>("layers.0.value.blocks", zeros + 64, 0x7C00, "tile 1");
  expect_refused<uint16_t>("layers.1.key.ranges", 5, 0xBC00, "negative");
  expect_refused<uint16_t>("layers.1.key.ranges", 50, 0x7C00, "number 50 is not finite");
  expect_refused<uint16_t>("layers.1.value.sinks", 7, 0xFC00, "number 7 is not finite");
  expect_refused<uint16_t>("layers.1.value.window", 9, 0x7D00, "number 9 is not finite");
  for (const char* spec : {"fp16", "bf16", "fp32"}) {
    feed(spec, 70);
    expect_refused<uint32_t>("layers.1.key.blocks", 77, 0x7F80FF80, "not finite");
  }
}

TEST_F(HostileSections, SegmentsOfKeysMustAscendWithinTheTiles) {
  feed("nuq4,block=128", 300);  // 5 tiles
  const StoredSequence stored = fed->cache.store(id);
  const auto with = [&](const std::vector<int32_t>& starts) {
    Spoilt spoilt(stored);
    for (StoredSection& section : spoilt.stored.sections) {
      if (section.name != "layers.1.key.segments" && section.name != "layers.1.key.ranges")
        continue;
      if (section.name.ends_with("segments")) {
        section.pieces = {std::as_bytes(std::span(starts))};
      } else {
        for (size_t i = 0; i < starts.size(); ++i) section.pieces.push_back(section.pieces.front());
      }
    }
    fed->cache.drop(fed->cache.restore(spoilt.stored));
  };
  EXPECT_NO_THROW(with({}));
  EXPECT_NO_THROW(with({1, 4}));
  for (const std::vector<int32_t>& starts : std::vector<std::vector<int32_t>>{
           {0}, {-1}, {5}, {2, 2}, {3, 1}, {1, 2, 3, 4, 5}, {INT32_MAX}, {1, INT32_MIN}}) {
    EXPECT_THROW(with(starts), FormatError) << starts.front();
  }
}

TEST_F(HostileSections, SectionsMustBeAllThereAndOfTheirSize) {
  feed("nuq4-1%,sink=4", 70);
  const StoredSequence stored = fed->cache.store(id);
  for (size_t i = 0; i < stored.sections.size(); ++i) {
    StoredSequence without = stored, shorter = stored, twice = stored;
    without.sections.erase(without.sections.begin() + static_cast<int64_t>(i));
    twice.sections.insert(twice.sections.begin() + static_cast<int64_t>(i), stored.sections[i]);
    EXPECT_THROW(fed->cache.restore(without), FormatError) << stored.sections[i].name;
    EXPECT_THROW(fed->cache.restore(twice), FormatError) << stored.sections[i].name;
    if (shorter.sections[i].num_bytes() == 0) continue;
    auto& last = shorter.sections[i].pieces.back();
    last = last.first(last.size() - 1);
    EXPECT_THROW(fed->cache.restore(shorter), FormatError) << stored.sections[i].name;
  }
  EXPECT_EQ(fed->cache.length(fed->cache.restore(stored)), 70);
}

TEST_F(CacheFileTest, ALimitOfMemoryHoldsForLoadingToo) {
  saved("nuq4-1%,block=64", CacheMode::kAsServed, 400);
  FedCache fed("nuq4-1%,block=64", CacheMode::kAsServed);
  const int64_t before = fed.cache.memory_bytes();
  for (const int64_t limit : {100, 10000, 20000}) {
    fed.cache.set_max_bytes(limit);
    EXPECT_THROW(load_cache(fed.cache, kInfo.model_fingerprint, path()), OutOfMemory) << limit;
    EXPECT_EQ(fed.cache.memory_bytes(), before);
  }
  fed.cache.set_max_bytes(0);
  EXPECT_NO_THROW(load_cache(fed.cache, kInfo.model_fingerprint, path()));
}

TEST_F(CacheFileTest, SavingIsRefusedAmidAChunkAndWithOtherTokens) {
  FedCache fed("nuq4", CacheMode::kAsServed);
  const auto id = fed.cache.add_sequence();
  fed.append(id, stream(20), 0, 20);
  EXPECT_THROW(save_cache(fed.cache, id, ids(19), kInfo, path()), std::invalid_argument);
  std::vector<float> flat;
  const auto x = test::as_chunk(stream(1), 3, flat);
  fed.cache.append(0, id, x, x);
  EXPECT_THROW(save_cache(fed.cache, id, ids(21), kInfo, path()), std::invalid_argument);
  EXPECT_FALSE(std::filesystem::exists(path()));
}

}  // namespace
}  // namespace kvquant
