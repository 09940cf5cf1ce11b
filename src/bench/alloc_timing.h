// Timings of keeping outliers while a sequence grows, one token at a time, in three ways:
//   blocked  BlockedCSRMatrix (kvquant/sparse.h): nothing moves
//   copy     every append makes arrays of the new size and copies all, as torch.cat does
//   doubling std::vector: copies all when full, into twice the room
// All keep the same bytes: 32-bit offsets, 16-bit indices, fp16 values. They are compared entry by
// entry before anything is timed.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

namespace kvquant {

enum class AllocVariant { kBlocked, kCopy, kDoubling };
inline constexpr std::array kAllocVariants = {AllocVariant::kBlocked, AllocVariant::kCopy,
                                              AllocVariant::kDoubling};
const char* name_of(AllocVariant variant);

// The defaults are 8 KV heads of 128 channels with 1% outliers.
struct AllocTimingShape {
  int64_t num_channels = 1024;
  int64_t outliers_per_token = 10;  // on average; a token has two more or fewer at most
  int64_t block_size = 256;
  int num_runs = 5;  // of copying, alternating with five times as many of the others
};

// One variant at one length. The time of an append is its median over runs, without the clock's
// own. Shorter sequences are repeated side by side until 32768 tokens are appended, so that every
// length has as many samples.
struct AllocTiming {
  AllocVariant variant = AllocVariant::kBlocked;
  int64_t num_tokens = 0;  // of a sequence
  double total_ms = 0;     // one sequence
  double append_ns = 0;    // mean of the last tenth of its appends: the cost at that length
  double median_ns = 0, max_ns = 0;
  // Four ways to look at the tail:
  double p99_ns = 0;         // 99th percentile of all appends, where doublings are too rare to show
  double chunk_p99_ns = 0;   // 99th percentile of 64 appends in a row, per append
  double growth_p99_ns = 0;  // 99th percentile of the appends that ask for memory
  double time_p99_ns = 0;    // appends longer than this take 1% of the time: what a request that
                             // comes at a random moment may have to wait for
  int64_t peak_bytes = 0;    // of a sequence, old and new arrays during a copy
  int64_t final_bytes = 0;   // allocated, not only used
};

// One result per length and variant, variants in the order of kAllocVariants. The calling thread
// stays on one core afterwards. Throws std::invalid_argument on a bad shape or a length outside
// 10..131072, std::runtime_error when a variant returns other entries than it was given.
std::vector<AllocTiming> time_alloc(const AllocTimingShape& shape,
                                    std::span<const int64_t> lengths);

struct AllocCheck {
  const char* name = "";
  int64_t num_tokens = 0;
  double ratio = 0, target = 0;
  const char* direction = "";  // "at most" or "at least"
  bool passed = false;
};

// What blocked storage promises, for those of 1024, 2048, 8192 and 32768 tokens that were timed.
// The tail is judged by the time-weighted 99th percentile: a doubling vector copies so rarely that
// 99 in 100 appends never see it, but what comes at a random moment does.
std::vector<AllocCheck> check_alloc(std::span<const AllocTiming> timings);

}  // namespace kvquant
