// Rows that have left the windows of sequences (as served) and are not encoded yet. Those of all
// layers of a device are encoded together behind the last one: the host waits for the device twice
// in a chunk, for what it must know about drifting keys and outliers, instead of in every layer.
#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <set>
#include <span>
#include <vector>

#include "cache/device_side.h"

namespace kvquant {

// With what rows are encoded.
struct DeviceEncodeTools {
  DeviceEncoder encoder;
  DeviceArray<float>& rows;  // scratch
};

class DevicePending {
 public:
  struct Entry {
    DeviceNuqSide* side = nullptr;  // must stay
    int64_t sequence = 0;
    const Half* rows = nullptr;  // [num_rows, row_size], whole tiles
    int64_t num_rows = 0;
    const Half* kept = nullptr;  // those behind them, which stay in the window; must stay, too
    int64_t num_kept = 0;
  };

  DevicePending(CudaDevice& device, int64_t num_heads, int64_t head_dim);

  bool has_room(int64_t num_rows) const { return (used_ + num_rows) * row_size() <= rows_.size(); }
  // Makes it. Requires that nothing is pending.
  void reserve(int64_t num_rows) { rows_.reserve_discarding(num_rows * row_size()); }
  // Where rows go until they are encoded. Requires has_room().
  Half* take(int64_t num_rows);
  void add(const Entry& entry) { entries_.push_back(entry); }

  // Encodes all. When memory runs out the sequence is told of and the others go on; then throws
  // OutOfMemory.
  void encode(const DeviceEncodeTools& tools, const std::function<void(int64_t)>& on_broken);
  int64_t num_bytes() const;  // on the device

 private:
  struct Encoded {
    bool is_halfway = false;  // its outliers are missing
    bool has_drifted = false;
    DeviceNuqSide::Outliers outliers{};
    int64_t first_count = 0, num_counts = 0;
  };
  int64_t row_size() const { return num_heads_ * head_dim_; }
  void find_drift(std::vector<Encoded>& encoded);
  void place_outliers(std::vector<Encoded>& encoded);
  // The first row being that of token first_token of the side.
  DeviceRows widen(const Entry& entry, int64_t first_token, const DeviceEncodeTools& tools) const;
  std::vector<Half> read(const Entry& entry, bool with_kept) const;
  void begin(const Entry& entry, Encoded& encoded, const DeviceEncodeTools& tools) const;
  template <class Fn>
  void guard(const Entry& entry, Fn&& fn);

  CudaDevice& device_;
  int64_t num_heads_, head_dim_;
  DeviceArray<Half> rows_;
  int64_t used_ = 0;  // rows
  std::vector<Entry> entries_;
  DeviceArray<int32_t> outside_;
  DeviceArray<uint64_t> masks_;
  DeviceArray<int32_t> counts_;
  int64_t num_counts_ = 0;
  std::set<int64_t> broken_;
  std::exception_ptr failure_;
};

}  // namespace kvquant
