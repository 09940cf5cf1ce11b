#include "eval/context_reader.h"

#include <algorithm>

namespace kvquant {
namespace {

int64_t common_prefix(std::span<const int32_t> a, std::span<const int32_t> b) {
  return std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin();
}

}  // namespace

KvCache::SequenceId ContextReader::read(std::span<const int32_t> context,
                                        std::span<const int32_t> next) {
  const int64_t reusable = common_prefix(last_, context);
  while (!kept_.empty() && kept_.back().length > reusable) {
    cache_.drop(kept_.back().id);
    kept_.pop_back();
  }
  const auto length = std::ssize(context);
  int64_t begin = kept_.empty() ? 0 : kept_.back().length;
  const KvCache::SequenceId id =
      kept_.empty() ? cache_.add_sequence() : cache_.fork(kept_.back().id);
  const int64_t shared = common_prefix(context, next);
  while (begin < length) {
    const int64_t size = std::min(ubatch_, length - begin);
    const ForwardChunk chunk{
        id, context.subspan(static_cast<size_t>(begin), static_cast<size_t>(size))};
    transformer_.forward({&chunk, 1}, cache_);
    begin += size;
    if (size == ubatch_ && begin <= shared) kept_.push_back({begin, cache_.fork(id)});
  }
  last_ = context;
  return id;
}

}  // namespace kvquant
