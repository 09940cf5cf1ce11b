#include "cache/device_pending.h"

#include <cassert>
#include <numeric>
#include <utility>

#include "kvquant/error.h"

namespace kvquant {

DevicePending::DevicePending(CudaDevice& device, int64_t num_heads, int64_t head_dim)
    : device_(device),
      num_heads_(num_heads),
      head_dim_(head_dim),
      rows_(device),
      outside_(device),
      masks_(device),
      counts_(device) {}

int64_t DevicePending::num_bytes() const {
  return rows_.num_bytes() + outside_.num_bytes() + masks_.num_bytes() + counts_.num_bytes();
}

Half* DevicePending::take(int64_t num_rows) {
  assert(has_room(num_rows));
  Half* rows = rows_.data() + used_ * row_size();
  used_ += num_rows;
  return rows;
}

// Numbers outside their ranges, where they may mean that ranges are fitted anew.
void DevicePending::find_drift(std::vector<Encoded>& encoded) {
  int64_t num_rows = 0;
  for (const Entry& entry : entries_) {
    num_rows += entry.side->can_drift(entry.num_rows) ? entry.num_rows : 0;
  }
  if (num_rows == 0) return;
  outside_.reserve_discarding(num_rows);
  int64_t first = 0;
  for (const Entry& entry : entries_) {
    if (!entry.side->can_drift(entry.num_rows)) continue;
    device_.run(entry.side->outside(entry.rows, entry.num_rows, outside_.data() + first));
    first += entry.num_rows;
  }
  const auto counts = outside_.read(num_rows);
  auto of_entry = counts.begin();
  for (size_t i = 0; i < entries_.size(); ++i) {
    const Entry& entry = entries_[i];
    if (!entry.side->can_drift(entry.num_rows)) continue;
    const auto end = of_entry + entry.num_rows;
    encoded[i].has_drifted =
        entry.side->have_drifted(std::accumulate(of_entry, end, int64_t{0}), entry.num_rows);
    of_entry = end;
  }
}

// Where masks and counts of outliers go.
void DevicePending::place_outliers(std::vector<Encoded>& encoded) {
  num_counts_ = 0;
  for (size_t i = 0; i < entries_.size(); ++i) {
    if (!entries_[i].side->has_outliers()) continue;
    encoded[i].first_count = num_counts_;
    encoded[i].num_counts = entries_[i].side->num_pieces(entries_[i].num_rows);
    num_counts_ += encoded[i].num_counts;
  }
  counts_.reserve_discarding(num_counts_);
  masks_.reserve_discarding(num_counts_ * head_dim_);
  if (num_counts_ == 0) return;
  device_.clear(counts_.data(), num_counts_ * 4);  // of what is not encoded in halves
  for (Encoded& of : encoded) {
    of.outliers = {masks_.data() + of.first_count * head_dim_, counts_.data() + of.first_count};
  }
}

DeviceRows DevicePending::widen(const Entry& entry, int64_t first_token,
                                const DeviceEncodeTools& tools) const {
  tools.rows.reserve_discarding(entry.num_rows * row_size());
  device_.run(CudaWiden{entry.rows, tools.rows.data(), entry.num_rows, row_size()});
  entry.side->transform(tools.rows.data(), entry.num_rows, first_token, tools.encoder);
  return {tools.rows.data(), entry.num_rows};
}

std::vector<Half> DevicePending::read(const Entry& entry, bool with_kept) const {
  const int64_t num_kept = with_kept ? entry.num_kept : 0, size = row_size();
  std::vector<Half> out(static_cast<size_t>((entry.num_rows + num_kept) * size));
  const auto bytes = [&](int64_t num_rows) {
    return num_rows * size * static_cast<int64_t>(sizeof(Half));
  };
  device_.copy_out(out.data(), entry.rows, bytes(entry.num_rows));
  if (num_kept > 0) {
    device_.copy_out(out.data() + entry.num_rows * size, entry.kept, bytes(num_kept));
  }
  return out;
}

void DevicePending::begin(const Entry& entry, Encoded& encoded,
                          const DeviceEncodeTools& tools) const {
  DeviceNuqSide& side = *entry.side;
  DeviceRows rows = widen(entry, side.num_tokens(), tools);
  if (side.is_fitted() && !encoded.has_drifted) {
    side.begin_append(rows, encoded.outliers, tools.encoder);
    encoded.is_halfway = side.has_outliers();
    return;
  }
  // Ranges are fitted to all exact tokens: a first chunk of few tokens says little.
  const auto host = read(entry, /*with_kept=*/!side.is_fitted());
  const HalfRows all{{}, host, row_size()};
  if (!side.is_fitted()) side.fit(all, tools.encoder);
  rows.host = all.head(entry.num_rows);
  side.append(rows, tools.encoder);
}

template <class Fn>
void DevicePending::guard(const Entry& entry, Fn&& fn) {
  if (broken_.contains(entry.sequence)) return;
  try {
    fn();
  } catch (const OutOfMemory&) {
    broken_.insert(entry.sequence);
    failure_ = std::current_exception();
  }
}

void DevicePending::encode(const DeviceEncodeTools& tools,
                           const std::function<void(int64_t)>& on_broken) {
  if (entries_.empty()) return;
  std::vector<Encoded> encoded(entries_.size());
  find_drift(encoded);
  place_outliers(encoded);
  for (size_t i = 0; i < entries_.size(); ++i) {
    guard(entries_[i], [&] { begin(entries_[i], encoded[i], tools); });
  }
  const auto counts = counts_.read(num_counts_);
  for (size_t i = 0; i < entries_.size(); ++i) {
    const Encoded& of = encoded[i];
    if (!of.is_halfway) continue;
    guard(entries_[i], [&] {
      const auto own = std::span(counts).subspan(static_cast<size_t>(of.first_count),
                                                 static_cast<size_t>(of.num_counts));
      const Entry& entry = entries_[i];
      const int64_t first_token = entry.side->num_tokens() - entry.num_rows;
      entry.side->end_append(widen(entry, first_token, tools), of.outliers, own, tools.encoder);
    });
  }
  entries_.clear();
  used_ = 0;
  for (const int64_t sequence : broken_) on_broken(sequence);
  broken_.clear();
  if (failure_ != nullptr) std::rethrow_exception(std::exchange(failure_, nullptr));
}

}  // namespace kvquant
