#include "cache/device_rows.h"

namespace kvquant {

DeviceRowQueue::DeviceRowQueue(CudaDevice& device, int64_t num_heads, int64_t head_dim)
    : device_(device),
      num_heads_(num_heads),
      head_dim_(head_dim),
      narrow_targets_(device),
      move_targets_(device),
      stored_{Stored{{}, DeviceArray<CudaDenseTarget>(device)},
              Stored{{}, DeviceArray<CudaDenseTarget>(device)},
              Stored{{}, DeviceArray<CudaDenseTarget>(device)}} {}

int64_t DeviceRowQueue::num_bytes() const {
  int64_t bytes = narrow_targets_.num_bytes() + move_targets_.num_bytes();
  for (const Stored& of : stored_) bytes += of.targets.num_bytes();
  return bytes;
}

void DeviceRowQueue::narrow(const float* rows, int64_t stride, int64_t num_rows, Half* to) {
  flush_moves();
  for (int64_t i = 0; i < num_rows; ++i) {
    narrow_.push_back({rows + i * stride, to + i * row_size()});
  }
}

void DeviceRowQueue::store(DenseType type, std::span<const CudaDenseTarget> targets) {
  flush_moves();
  auto& waiting = stored_[static_cast<size_t>(type)].waiting;
  waiting.insert(waiting.end(), targets.begin(), targets.end());
}

void DeviceRowQueue::move(const Half* from, int64_t num_rows, Half* to) {
  flush_rows();
  for (int64_t i = 0; i < num_rows; ++i) {
    move_.push_back({from + i * row_size(), to + i * row_size()});
  }
}

void DeviceRowQueue::flush() {
  flush_moves();
  flush_rows();
}

void DeviceRowQueue::flush_moves() {
  if (move_.empty()) return;
  device_.run(CudaMove{staged(device_, std::span<const CudaMoveTarget>(move_), move_targets_),
                       std::ssize(move_), row_size()});
  move_.clear();
}

void DeviceRowQueue::flush_rows() {
  if (!narrow_.empty()) {
    device_.run(
        CudaNarrow{staged(device_, std::span<const CudaNarrowTarget>(narrow_), narrow_targets_),
                   std::ssize(narrow_), row_size()});
    narrow_.clear();
  }
  for (int i = 0; i < kNumTypes; ++i) {
    auto& [waiting, targets] = stored_[static_cast<size_t>(i)];
    if (waiting.empty()) continue;
    device_.run(CudaDense{staged(device_, std::span<const CudaDenseTarget>(waiting), targets),
                          static_cast<DenseType>(i), std::ssize(waiting), num_heads_, head_dim_});
    waiting.clear();
  }
}

}  // namespace kvquant
