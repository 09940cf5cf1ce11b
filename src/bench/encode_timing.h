// Timings of encoding a chunk of keys and values that comes from memory: the single pass of the
// engine, with error feedback for keys and without, the same as separate passes, and the
// reference. Results are compared with the reference before anything is timed.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/threads.h"

namespace kvquant {

struct EncodeTimingShape {
  int64_t num_kv_heads = 8;
  int64_t head_dim = 128;     // a multiple of 16
  int64_t num_tokens = 2048;  // a multiple of 64
  int bits = 4;               // 2, 3 or 4
  double outlier_percent = 1;
  int num_runs = 10;  // timed ones, after one to warm up
};

struct EncodeTiming {
  std::string name;  // "keys and values with feedback"
  double num_values = 0;
  double bytes = 0;   // of rows read, f32
  double time_s = 0;  // median of the runs
  double best_s = 0;
  double gvalues_per_s = 0;  // 1e9 values over the median
  double gb_per_s = 0;       // bytes over the median, 1 GB = 1e9 bytes
};

// Throws std::invalid_argument on bad shapes, std::runtime_error when results are wrong.
std::vector<EncodeTiming> time_encode(const EncodeTimingShape& shape, ThreadPool& pool);

}  // namespace kvquant
