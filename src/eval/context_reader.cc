#include "eval/context_reader.h"

#include <algorithm>

namespace kvquant {
namespace {

int64_t common_prefix(std::span<const int32_t> a, std::span<const int32_t> b) {
  return std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin();
}

}  // namespace

Runner::SequenceId ContextReader::read(std::span<const int32_t> context,
                                       std::span<const int32_t> next) {
  const int64_t reusable = common_prefix(last_, context);
  while (!kept_.empty() && kept_.back().length > reusable) {
    runner_.drop(kept_.back().id);
    kept_.pop_back();
  }
  const auto length = std::ssize(context);
  int64_t begin = kept_.empty() ? 0 : kept_.back().length;
  const Runner::SequenceId id =
      kept_.empty() ? runner_.add_sequence() : runner_.fork(kept_.back().id);
  const int64_t shared = common_prefix(context, next);
  while (begin < length) {
    const int64_t size = std::min(ubatch_, length - begin);
    const ForwardChunk chunk{
        id, context.subspan(static_cast<size_t>(begin), static_cast<size_t>(size))};
    runner_.forward({&chunk, 1});
    begin += size;
    if (size == ubatch_ && begin <= shared) kept_.push_back({begin, runner_.fork(id)});
  }
  last_ = context;
  return id;
}

}  // namespace kvquant
