#include "model/unigram.h"

#include <algorithm>
#include <limits>

#include "model/text_normalizer.h"

namespace kvquant {
namespace {

constexpr float kUnkPenalty = 10;          // an unknown character is so much worse than any piece
constexpr double kUserPiecePenalty = 0.1;  // of one user-defined piece more

// Requires: the first byte of a character.
int64_t character_bytes(char first) {
  const auto byte = static_cast<unsigned char>(first);
  return byte < 0x80 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
}

// Pieces [first, end) in sorted order that begin with the text of a node, `depth` bytes.
struct Range {
  int32_t node;
  size_t first, end, depth;
};

}  // namespace

Unigram::Unigram(const UnigramData& data)
    : unk_(data.unk),
      spaces_(data.spaces),
      has_byte_ids_(data.has_byte_ids),
      byte_ids_(data.byte_ids) {
  float least = std::numeric_limits<float>::max();
  float largest = std::numeric_limits<float>::min();  // the smallest above zero: as the library's
  for (const UnigramPiece& piece : data.pieces) {
    if (piece.kind != UnigramPiece::Kind::kNormal) continue;
    least = std::min(least, piece.score);
    largest = std::max(largest, piece.score);
  }
  unk_score_ = least - kUnkPenalty;
  for (const UnigramPiece& piece : data.pieces) {
    const float bonus = static_cast<float>(piece.text.size()) * largest;
    scores_.push_back(piece.kind == UnigramPiece::Kind::kUserDefined ? bonus - kUserPiecePenalty
                                                                     : double{piece.score});
  }
  build_trie(data.pieces);
}

void Unigram::build_trie(const std::vector<UnigramPiece>& pieces) {
  std::vector<std::pair<std::string_view, int32_t>> sorted;
  for (size_t id = 0; id < pieces.size(); ++id) {
    if (pieces[id].kind == UnigramPiece::Kind::kOther) continue;
    sorted.emplace_back(pieces[id].text, static_cast<int32_t>(id));
  }
  std::sort(sorted.begin(), sorted.end());
  nodes_.emplace_back();
  labels_.push_back(0);
  std::vector<Range> ranges = {{0, 0, sorted.size(), 0}};
  for (size_t i = 0; i < ranges.size(); ++i) {
    auto [node, first, end, depth] = ranges[i];
    if (first < end && sorted[first].first.size() == depth)
      nodes_[node].piece = sorted[first++].second;
    nodes_[node].first_child = static_cast<int32_t>(nodes_.size());
    while (first < end) {
      const char byte = sorted[first].first[depth];
      const size_t begin = first;
      while (first < end && sorted[first].first[depth] == byte) ++first;
      ranges.push_back({static_cast<int32_t>(nodes_.size()), begin, first, depth + 1});
      nodes_.emplace_back();
      labels_.push_back(static_cast<unsigned char>(byte));
      ++nodes_[node].num_children;
    }
  }
}

int32_t Unigram::child(int32_t node, unsigned char byte) const {
  const auto first = labels_.begin() + nodes_[node].first_child;
  const auto end = first + nodes_[node].num_children;
  const auto found = std::lower_bound(first, end, byte);
  return found != end && *found == byte ? static_cast<int32_t>(found - labels_.begin()) : -1;
}

std::vector<Unigram::Best> Unigram::search(std::string_view text) const {
  const auto size = static_cast<int32_t>(text.size());
  std::vector<Best> best(text.size() + 1);
  for (int32_t begin = 0; begin < size;) {
    const float so_far = best[begin].score;
    const auto first_end = static_cast<int32_t>(begin + character_bytes(text[begin]));
    bool has_character = false;
    int32_t node = 0;
    for (int32_t at = begin; at < size;) {
      node = child(node, static_cast<unsigned char>(text[at]));
      if (node < 0) break;
      ++at;
      const int32_t piece = nodes_[node].piece;
      if (piece < 0) continue;
      const double score = scores_[piece] + so_far;
      if (best[at].begin < 0 || score > best[at].score) {
        best[at] = {static_cast<float>(score), begin, piece};
      }
      has_character |= at == first_end;
    }
    const float unknown = unk_score_ + so_far;
    Best& next = best[first_end];
    if (!has_character && (next.begin < 0 || unknown > next.score)) next = {unknown, begin, unk_};
    begin = first_end;
  }
  return best;
}

void Unigram::encode(std::string_view text, std::vector<int32_t>& ids) const {
  const std::string marked = sentencepiece_text(text, spaces_);
  const std::vector<Best> best = search(marked);
  std::vector<int32_t> ends;
  for (auto end = static_cast<int32_t>(marked.size()); end > 0; end = best[end].begin) {
    ends.push_back(end);
  }
  bool was_unknown = false;
  for (auto end = ends.rbegin(); end != ends.rend(); ++end) {
    const Best& last = best[*end];
    const bool is_unknown = last.piece == unk_;
    if (is_unknown && has_byte_ids_) {
      for (int32_t i = last.begin; i < *end; ++i) {
        ids.push_back(byte_ids_[static_cast<unsigned char>(marked[i])]);
      }
    } else if (!is_unknown || !was_unknown) {  // neighbouring unknowns are one
      ids.push_back(last.piece);
    }
    was_unknown = is_unknown;
  }
}

}  // namespace kvquant
