#include "quant/statistics.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <string>

#include "base/buffer.h"
#include "base/check.h"
#include "base/half.h"
#include "base/parallel_tasks.h"
#include "kvquant/error.h"

namespace kvquant {
namespace {

constexpr int64_t kColumns = 16;  // channels gathered at once: a cache line of a row

int64_t kept_rows(TensorView<const float, 3> x, const SampleRows& rows) {
  check_arg(rows.seq_len > 0 && x.shape[0] % rows.seq_len == 0 && 0 <= rows.num_skipped &&
                rows.num_skipped < rows.seq_len && x.shape[0] > 0 && x.stride[2] == 1,
            "statistics: " + std::to_string(x.shape[0]) + " rows are not sequences of " +
                std::to_string(rows.seq_len) + " of which " + std::to_string(rows.num_skipped) +
                " are left out");
  return x.shape[0] / rows.seq_len * (rows.seq_len - rows.num_skipped);
}

// Calls fn(row) for every row that is not left out, in order.
template <class Fn>
void for_each_row(int64_t num_rows, const SampleRows& rows, const Fn& fn) {
  for (int64_t begin = 0; begin < num_rows; begin += rows.seq_len) {
    for (int64_t t = begin + rows.num_skipped; t < begin + rows.seq_len; ++t) fn(t);
  }
}

// fp16 numbers as integers in the order of their values; both zeros are one.
constexpr size_t kHalfKeys = 1 << 16;
uint16_t key_of(float x) {
  const uint16_t bits = to_half(x + 0.0f).bits;
  if (bits == 0x8000) return 0x8000;
  return (bits & 0x8000) != 0 ? static_cast<uint16_t>(~bits) : static_cast<uint16_t>(bits | 0x8000);
}
float value_of(uint16_t key) {
  return to_float(Half{(key & 0x8000) != 0 ? static_cast<uint16_t>(key & 0x7FFF)
                                           : static_cast<uint16_t>(~key)});
}

// Sorts channels by counting: a channel has tens of thousands of values, fp16 has 65,536.
class ChannelSorter {
 public:
  explicit ChannelSorter(int64_t num_rows) : counts_(kHalfKeys), sorted_(num_rows) {}

  // `values` [num_rows]. Returns them rounded to fp16 and sorted; empty when one is not finite.
  std::span<const float> sort(std::span<const float> values) {
    std::fill(counts_.span().begin(), counts_.span().end(), 0);
    for (const float x : values) ++counts_[key_of(x)];
    int64_t size = 0;
    for (size_t key = 0; key < kHalfKeys; ++key) {
      const int64_t count = counts_[static_cast<int64_t>(key)];
      if (count == 0) continue;
      const float value = value_of(static_cast<uint16_t>(key));
      if (!std::isfinite(value)) return {};
      std::fill_n(sorted_.data() + size, count, value);
      size += count;
    }
    return sorted_.span();
  }

 private:
  Buffer<int32_t> counts_;
  Buffer<float> sorted_;
};

struct Moments {
  std::array<double, kColumns> origin{}, sum{}, squares{};
};

// Copies `count` channels from `channel` on of one head to columns [count][num_rows], and sums.
Moments gather(TensorView<const float, 3> x, const SampleRows& rows, const int64_t (&at)[2],
               int64_t count, Buffer<float>& columns) {
  const int64_t num_rows = columns.size() / kColumns;
  Moments m;
  int64_t i = 0;
  for_each_row(x.shape[0], rows, [&](int64_t t) {
    const float* row = &x(t, at[0], at[1]);
    if (i == 0) std::copy_n(row, count, m.origin.begin());  // sums relative to it lose no digits
    for (int64_t c = 0; c < count; ++c) {
      const double d = double{row[c]} - m.origin[static_cast<size_t>(c)];
      m.sum[static_cast<size_t>(c)] += d;
      m.squares[static_cast<size_t>(c)] += d * d;
      columns[c * num_rows + i] = row[c];
    }
    ++i;
  });
  return m;
}

void set_channel(ChannelStatistics& out, int64_t channel, int64_t width,
                 std::span<const float> sorted) {
  const auto at = static_cast<size_t>(channel);
  out.minimum[at] = sorted.front();
  out.maximum[at] = sorted.back();
  const auto last = static_cast<double>(sorted.size() - 1);
  for (int64_t q = 0; q < kNumQuantiles; ++q) {
    const auto rank = static_cast<size_t>(std::llround(kQuantiles[q] / 100 * last));
    out.quantiles[static_cast<size_t>(q * width) + at] = sorted[rank];
  }
}

}  // namespace

ChannelStatistics channel_statistics(TensorView<const float, 3> x, const SampleRows& rows,
                                     ThreadPool& pool, const SortedChannel& each) {
  const int64_t num_rows = kept_rows(x, rows);
  const int64_t head_dim = x.shape[2], width = x.shape[1] * head_dim;
  const auto size = static_cast<size_t>(width);
  ChannelStatistics out;
  for (auto* values : {&out.mean, &out.variance, &out.minimum, &out.maximum}) values->resize(size);
  out.quantiles.resize(size * kNumQuantiles);

  const int64_t blocks_per_head = (head_dim + kColumns - 1) / kColumns;
  parallel_for_throwing(pool, x.shape[1] * blocks_per_head, [&](int64_t task, int) {
    const int64_t head = task / blocks_per_head;
    const int64_t first = task % blocks_per_head * kColumns;
    const int64_t count = std::min(kColumns, head_dim - first);
    Buffer<float> columns(kColumns * num_rows);
    ChannelSorter sorter(num_rows);
    const Moments moments = gather(x, rows, {head, first}, count, columns);
    for (int64_t c = 0; c < count; ++c) {
      const int64_t channel = head * head_dim + first + c;
      const auto i = static_cast<size_t>(c), at = static_cast<size_t>(channel);
      const auto sorted = sorter.sort(
          columns.span().subspan(i * static_cast<size_t>(num_rows), static_cast<size_t>(num_rows)));
      if (sorted.empty()) {
        throw FormatError("head " + std::to_string(head) + ", channel " +
                          std::to_string(first + c) + ": a value is not finite in fp16");
      }
      const double mean = moments.sum[i] / static_cast<double>(num_rows);
      const double square = moments.squares[i] / static_cast<double>(num_rows);
      out.mean[at] = static_cast<float>(moments.origin[i] + mean);
      out.variance[at] = static_cast<float>(std::max(square - mean * mean, 0.0));
      set_channel(out, channel, width, sorted);
      if (each) each(channel, sorted);
    }
  });
  return out;
}

std::vector<float> second_moments(TensorView<const float, 3> x, const SampleRows& rows,
                                  ThreadPool& pool) {
  const auto num_rows = static_cast<double>(kept_rows(x, rows));
  const int64_t head_dim = x.shape[2];
  std::vector<double> sums(static_cast<size_t>(x.shape[1] * head_dim));
  std::vector<float> out(sums.size());
  pool.parallel_for(x.shape[1], [&](int64_t head, int) {
    double* sum = sums.data() + head * head_dim;
    for_each_row(x.shape[0], rows, [&](int64_t t) {
      const float* row = &x(t, head, 0);
      for (int64_t c = 0; c < head_dim; ++c) sum[c] += double{row[c]} * row[c];
    });
    for (int64_t c = 0; c < head_dim; ++c) {
      out[static_cast<size_t>(head * head_dim + c)] = static_cast<float>(sum[c] / num_rows);
    }
  });
  return out;
}

}  // namespace kvquant
