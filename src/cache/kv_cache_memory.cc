// How many bytes a cache holds.
#include <algorithm>

#include "cache/kv_cache_impl.h"

namespace kvquant {

int64_t KvCache::memory_bytes() const {
  int64_t bytes = impl_->account.held_bytes() + impl_->parameter_bytes();
  for (const auto& [id, sequence] : impl_->sequences) {
    if (sequence.unsettled != nullptr) bytes += sequence.staging.memory_bytes();
    for (const auto& layer : sequence.layers) bytes += layer->table_bytes();
  }
  return bytes;
}

int64_t KvCache::memory_bytes(std::span<const SequenceId> ids) const {
  int64_t bytes = impl_->parameter_bytes();
  for (const SequenceId id : ids) {
    const Impl::Sequence& sequence = impl_->find(id);
    if (sequence.unsettled != nullptr) bytes += sequence.staging.memory_bytes();
    for (const auto& layer : sequence.layers)
      bytes += layer->counted_bytes() + layer->table_bytes();
  }
  return bytes;
}

int64_t KvCache::scratch_bytes() const {
  int64_t bytes = impl_->view.scratch_bytes();
  for (const auto& [id, sequence] : impl_->sequences) {
    if (sequence.unsettled == nullptr) bytes += sequence.staging.memory_bytes();
  }
  return bytes;
}

int64_t KvCache::peak_bytes() const {
  const int64_t elsewhere = memory_bytes() + scratch_bytes() - impl_->account.held_bytes();
  return impl_->account.peak_bytes() + elsewhere;
}

void KvCache::reset_peak() { impl_->account.reset_peak(); }

}  // namespace kvquant
