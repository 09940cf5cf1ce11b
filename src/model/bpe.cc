#include "model/bpe.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <limits>
#include <queue>

namespace kvquant {
namespace {

constexpr uint64_t kNoPair = std::numeric_limits<uint64_t>::max();
constexpr int32_t kNoRank = std::numeric_limits<int32_t>::max();

// Above this many symbols the queue wins over scanning for the lowest rank.
constexpr size_t kShort = 48;

uint64_t pair_of(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

}  // namespace

BpeMerges::BpeMerges(std::span<const BpeMerge> merges) {
  assert(merges.size() < static_cast<size_t>(kNoRank));
  const size_t num_slots = std::bit_ceil(merges.size() * 2 + 2);
  table_.assign(num_slots, Entry{kNoPair, kNoRank, -1});
  shift_ = 64 - std::countr_zero(num_slots);
  for (const BpeMerge& merge : merges) {
    const uint64_t pair = pair_of(merge.left, merge.right);
    Entry& entry = table_[slot_of(pair)];
    if (entry.pair == kNoPair) entry = {pair, merge.rank, merge.merged};
  }
}

// The slot of the pair, or the empty one where it would be.
size_t BpeMerges::slot_of(uint64_t pair) const {
  constexpr uint64_t kGoldenRatio = 0x9E3779B97F4A7C15u;
  size_t slot = static_cast<size_t>((pair ^ pair >> 32) * kGoldenRatio >> shift_);
  while (table_[slot].pair != pair && table_[slot].pair != kNoPair) {
    slot = (slot + 1) & (table_.size() - 1);
  }
  return slot;
}

const BpeMerges::Entry& BpeMerges::find(int32_t left, int32_t right) const {
  return table_[slot_of(pair_of(left, right))];
}

void BpeMerges::apply(std::vector<int32_t>& symbols) const {
  if (symbols.size() < 2) return;
  if (symbols.size() <= kShort) {
    apply_to_short(symbols);
  } else {
    apply_to_long(symbols);
  }
}

void BpeMerges::apply_to_short(std::vector<int32_t>& symbols) const {
  const Entry* merges[kShort];  // of the pair (i, i + 1)
  size_t num_pairs = symbols.size() - 1;
  for (size_t i = 0; i < num_pairs; ++i) merges[i] = &find(symbols[i], symbols[i + 1]);
  while (num_pairs > 0) {
    size_t best = 0;
    for (size_t i = 1; i < num_pairs; ++i) {
      if (merges[i]->rank < merges[best]->rank) best = i;
    }
    if (merges[best]->rank == kNoRank) break;
    symbols[best] = merges[best]->merged;
    std::copy(symbols.begin() + best + 2, symbols.begin() + num_pairs + 1,
              symbols.begin() + best + 1);
    std::copy(merges + best + 1, merges + num_pairs, merges + best);
    --num_pairs;
    if (best > 0) merges[best - 1] = &find(symbols[best - 1], symbols[best]);
    if (best < num_pairs) merges[best] = &find(symbols[best], symbols[best + 1]);
  }
  symbols.resize(num_pairs + 1);
}

void BpeMerges::apply_to_long(std::vector<int32_t>& symbols) const {
  const auto num_symbols = static_cast<int32_t>(symbols.size());
  std::vector<int32_t> next(symbols.size());  // num_symbols: none. Merged symbols have id -1
  std::vector<int32_t> previous(symbols.size());
  struct Candidate {
    int32_t rank;
    int32_t left;  // position
  };
  const auto later = [](Candidate a, Candidate b) {
    return a.rank != b.rank ? a.rank > b.rank : a.left > b.left;
  };
  std::vector<Candidate> candidates;
  const auto rank_at = [&](int32_t left) {
    if (symbols[left] < 0 || next[left] == num_symbols) return kNoRank;
    return find(symbols[left], symbols[next[left]]).rank;
  };
  for (int32_t i = 0; i < num_symbols; ++i) {
    next[i] = i + 1;
    previous[i] = i - 1;
    if (const int32_t rank = rank_at(i); rank != kNoRank) candidates.push_back({rank, i});
  }
  std::priority_queue queue(later, std::move(candidates));
  while (!queue.empty()) {
    const Candidate candidate = queue.top();
    queue.pop();
    const int32_t left = candidate.left;
    if (rank_at(left) != candidate.rank) continue;  // a neighbour was merged in between
    const int32_t right = next[left];
    symbols[left] = find(symbols[left], symbols[right]).merged;
    symbols[right] = -1;
    next[left] = next[right];
    if (next[left] != num_symbols) previous[next[left]] = left;
    for (const int32_t position : {previous[left], left}) {
      const int32_t rank = position < 0 ? kNoRank : rank_at(position);
      if (rank != kNoRank) queue.push({rank, position});
    }
  }
  std::erase(symbols, -1);
}

}  // namespace kvquant
