// A cache of random tokens as attention reads it, dense or coded: what attend_timing times. Nothing
// is encoded: codes and latents are random, outliers are at random places at the rate of the codec.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/buffer.h"
#include "kvquant/spec.h"
#include "ops/attend.h"

namespace kvquant {

struct TimingCacheShape {
  int64_t num_layers = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t num_tokens = 0;  // at positions [0, num_tokens)
};

class TimingCache {
 public:
  // Windows and layer overrides of the spec are left out. Requires: what check_attend_timing
  // checks.
  TimingCache(const TimingCacheShape& shape, const CacheSpec& spec);
  ~TimingCache();
  TimingCache(const TimingCache&) = delete;
  TimingCache& operator=(const TimingCache&) = delete;

  // All tokens of a KV head: one run.
  std::span<const AttendRun> run(int64_t layer, int64_t kv_head) const {
    return std::span(runs_).subspan(static_cast<size_t>(layer * shape_.num_kv_heads + kv_head), 1);
  }
  // What attention reads once for all heads and layers: tiles, or codes, parameters and outliers.
  int64_t num_bytes() const { return num_bytes_; }

 private:
  struct CodedTokens;
  struct Latents;
  void make_dense(DenseType type, int64_t num_sides);
  std::unique_ptr<CodedTokens> make_side(KvSide side, const CacheSpec& spec,
                                         std::unique_ptr<Latents>& latents) const;
  void make_half_coded(const CacheSpec& spec);
  void make_coded(const CacheSpec& spec);

  TimingCacheShape shape_;
  int64_t num_bytes_ = 0;
  Buffer<std::byte> dense_;
  std::vector<const void*> key_tiles_, value_tiles_;
  std::unique_ptr<Latents> key_latents_, value_latents_;
  std::unique_ptr<CodedTokens> keys_, values_;
  RopeTable rope_;
  std::vector<AttendRun> runs_;
};

}  // namespace kvquant
