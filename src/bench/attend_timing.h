// Timings of attention: a decode step at a depth, and a prefill chunk that ends there, over an fp16
// cache and over coded ones. The cache holds several layers, so that a decode step reads it from
// memory and not from a processor cache. Results are compared with the reference before anything is
// timed. Runs over fp16 and over codes alternate: what the machine does meanwhile hits both.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/backend.h"
#include "base/threads.h"
#include "formats/precision.h"
#include "kvquant/spec.h"

namespace kvquant {

struct AttendTimingShape {
  int64_t num_layers = 8;
  int64_t num_heads = 8;
  int64_t num_kv_heads = 8;
  int64_t head_dim = 128;
  int64_t depth = 16384;  // tokens in the cache
  int64_t chunk = 512;    // queries of a prefill chunk, the last `chunk` of `depth` tokens
  Precision precision = Precision::kBF16;
  Backend backend = Backend::kReference;
  int num_runs = 10;  // timed ones, after one to warm up
};

struct AttendTiming {
  std::string spec;
  double decode_ms = 0;  // median of one token through all layers
  double decode_best_ms = 0;
  double decode_gb_per_s = 0;  // cache_bytes over the median, 1 GB = 1e9 bytes
  double decode_to_fp16 = 0;   // this time over that of fp16, median over neighbouring runs
  double prefill_ms = 0;       // median of one chunk through one layer; 0 if chunk is 0
  double prefill_best_ms = 0;
  double prefill_gflop_per_s = 0;  // 4 * head_dim per pair of query head and key it sees
  double prefill_to_fp16 = 0;
  int64_t cache_bytes = 0;  // that a decode step reads: of codes, parameters and outliers
};

// Throws std::invalid_argument unless the shape is whole and every spec can be timed on it: both
// sides coded, or both dense and of one type.
void check_attend_timing(const AttendTimingShape& shape, std::span<const CacheSpec> specs);

// fp16 first, then each spec; windows and layer overrides of a spec are left out. One coded cache
// exists at a time beside the one of fp16. Throws as check_attend_timing does, and
// std::runtime_error when results are wrong.
std::vector<AttendTiming> time_attend(const AttendTimingShape& shape,
                                      std::span<const CacheSpec> specs, ThreadPool& pool);

}  // namespace kvquant
