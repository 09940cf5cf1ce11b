// Moments and quantiles per channel of calibration data. Sums in double, in an order that does not
// depend on the number of threads.
#pragma once

#include <cstdint>
#include <functional>
#include <iterator>
#include <span>
#include <vector>

#include "base/threads.h"
#include "kvquant/tensor_view.h"

namespace kvquant {

// Rows of several sequences of seq_len rows each, of which the first num_skipped are left out.
struct SampleRows {
  int64_t seq_len = 0;
  int64_t num_skipped = 0;  // less than seq_len
};

// Shares of the values that lie below, in percent.
inline constexpr double kQuantiles[] = {0.1, 0.5, 1,  2.5,  5,  10,   25,  50,
                                        75,  90,  95, 97.5, 99, 99.5, 99.9};
inline constexpr int64_t kNumQuantiles = std::size(kQuantiles);

// Per channel, [heads, head_dim].
struct ChannelStatistics {
  std::vector<float> mean, variance;    // variance of the population: divided by the count
  std::vector<float> minimum, maximum;  // of what an fp16 cache stores
  std::vector<float> quantiles;         // [kNumQuantiles, heads, head_dim], nearest rank, fp16
};

// Called with the sorted values of one channel, rounded to fp16: head * head_dim + channel. Calls
// come from all threads, for different channels.
using SortedChannel = std::function<void(int64_t channel, std::span<const float> sorted)>;

// Statistics of x [n * seq_len, heads, head_dim], head rows gapless. `each` may be empty; it is
// there for whatever else needs a channel's distribution, so that it is sorted once. Throws
// std::invalid_argument when no row is left, FormatError when a value is not finite in fp16.
ChannelStatistics channel_statistics(TensorView<const float, 3> x, const SampleRows& rows,
                                     ThreadPool& pool, const SortedChannel& each = {});

// E[x^2] per channel, [heads, head_dim].
std::vector<float> second_moments(TensorView<const float, 3> x, const SampleRows& rows,
                                  ThreadPool& pool);

}  // namespace kvquant
