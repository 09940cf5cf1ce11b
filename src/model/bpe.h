// Byte-pair merges on token ids (arXiv 1508.07909): the adjacent pair of the lowest rank, the
// leftmost of equals, becomes one token until no pair has a merge. sentencepiece's merges are the
// same with ranks by score; pairs of equal scores have equal ranks.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace kvquant {

struct BpeMerge {
  int32_t left = 0;
  int32_t right = 0;
  int32_t merged = 0;
  int32_t rank = 0;
};

// Thread-safe after construction.
class BpeMerges {
 public:
  // Of two merges of the same pair the first counts. Requires: ids and ranks >= 0, fewer than 2^31
  // merges.
  explicit BpeMerges(std::span<const BpeMerge> merges);

  // Merges `symbols` in place. Requires: fewer than 2^31 of them.
  void apply(std::vector<int32_t>& symbols) const;

 private:
  struct Entry {
    uint64_t pair;
    int32_t rank;
    int32_t merged;
  };

  const Entry& find(int32_t left, int32_t right) const;
  size_t slot_of(uint64_t pair) const;
  void apply_to_short(std::vector<int32_t>& symbols) const;
  void apply_to_long(std::vector<int32_t>& symbols) const;

  std::vector<Entry> table_;  // open addressing, a power of two, at most half full
  int shift_ = 0;
};

}  // namespace kvquant
