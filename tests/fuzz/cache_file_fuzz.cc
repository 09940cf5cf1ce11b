// Any bytes as a cache file: refused with FormatError, or a sequence that attention reads and that
// grows. The checksums are not asked, so that what is behind them is reached; the header's is made
// right.
#include "cache/cache_file.h"

#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "base/hash.h"
#include "kvquant/error.h"
#include "ops/attend.h"

namespace {

using namespace kvquant;

constexpr KvShape kShape{2, 2, 16};
constexpr int64_t kMaxTokens = 300;

ThreadPool& pool() {
  static ThreadPool threads(1, ThreadPool::Pin::kNo);
  return threads;
}

// A cache of the file's spec and mode, when it is one of those of the seeds.
KvCache* cache_for(const CacheFile& file) {
  static const RopeTable rope(kShape.head_dim, kMaxTokens, 10000);
  static std::vector<KvCache> caches = [] {
    std::vector<KvCache> out;
    for (const char* spec :
         {"fp16,block=64", "nuq3-5%,block=128", "k=int8,v=had+nuq4,block=64",
          "k=nuq2-2%,v=bf16,sink=3,recent=9,block=64", "k=lnns+nuq3-5%,v=bf16,sink=3,block=64",
          "k=lnns,v=lnns+int8,block=64"}) {
      for (const CacheMode mode : {CacheMode::kStrict, CacheMode::kAsServed}) {
        out.emplace_back(kShape, parse_spec(spec), mode, rope, pool());
      }
    }
    return out;
  }();
  for (KvCache& cache : caches) {
    try {
      check_cache_file_fits(file, cache, "fuzz");
      return &cache;
    } catch (const FormatError&) {
    }
  }
  return nullptr;
}

void read_and_grow(KvCache& cache, KvCache::SequenceId id) {
  const int64_t row_size = kShape.num_kv_heads * kShape.head_dim;
  std::vector<float> x(static_cast<size_t>(70 * row_size)), out(x.size());
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 19) - 9;
  for (const int64_t count : {1, 70, 1}) {
    const int64_t first = cache.length(id);
    if (first + count > kMaxTokens) return;
    const auto chunk =
        row_major<const float, 3>(x.data(), {count, kShape.num_kv_heads, kShape.head_dim});
    for (int64_t layer = 0; layer < kShape.num_layers; ++layer) {
      cache.append(layer, id, chunk, chunk);
      cache.prepare_view(layer, id);
      for (int64_t head = 0; head < kShape.num_kv_heads; ++head) {
        const AttendJob job{.query = x.data(),
                            .out = out.data(),
                            .query_stride = kShape.head_dim,
                            .num_queries = count,
                            .first_position = first,
                            .runs = cache.view(layer, id, head)};
        for (const Precision precision : {Precision::kF32, Precision::kBF16}) {
          attend({kShape.head_dim, /*group=*/1, 0.25f}, {&job, 1}, precision, pool());
        }
      }
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::vector<std::byte> bytes(size);
  if (size > 0) std::memcpy(bytes.data(), data, size);
  uint64_t header_bytes = 0;
  if (size >= 32) std::memcpy(&header_bytes, data + 16, 8);
  if (size >= 32 && header_bytes <= size - 32) {
    Hash64 hash;
    hash.add_bytes(std::span(bytes).subspan(32, header_bytes));
    const uint64_t value = hash.value();
    std::memcpy(bytes.data() + 24, &value, 8);
  }
  try {
    const CacheFile file = parse_cache_file(bytes, "fuzz");
    KvCache* cache = cache_for(file);
    if (cache == nullptr) return 0;
    const int64_t before = cache->memory_bytes();
    try {
      const LoadedSequence loaded = restore_cache(*cache, file);
      read_and_grow(*cache, loaded.id);
      cache->drop(loaded.id);
    } catch (const FormatError&) {
    }
    if (cache->memory_bytes() != before) std::abort();
  } catch (const FormatError&) {
  }
  return 0;
}
