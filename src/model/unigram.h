// Unigram segmentation (arXiv 1804.10959) as the sentencepiece library does it: of all ways to cut
// a text into pieces, the one with the largest sum of scores. The library's sums, of f32 over the
// whole text, are kept to the bit, because they decide between ways that are nearly as good.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "model/text_normalizer.h"

namespace kvquant {

struct UnigramPiece {
  enum class Kind {
    kNormal,
    kUserDefined,  // always taken where it occurs
    kOther,        // not found in texts: unused, control, byte and unknown pieces
  };
  std::string text;
  float score = 0;
  Kind kind = Kind::kNormal;
};

struct UnigramData {
  std::vector<UnigramPiece> pieces;        // by id; no two of the same text
  int32_t unk = 0;                         // of a character in no piece
  bool has_byte_ids = false;               // then such a character is its bytes
  std::array<int32_t, 256> byte_ids = {};  // by byte
  SentencepieceSpaces spaces;
};

// Thread-safe after construction.
class Unigram {
 public:
  explicit Unigram(const UnigramData& data);

  // Appends the ids of the pieces. Requires: valid UTF-8 of less than 2^29 bytes.
  void encode(std::string_view text, std::vector<int32_t>& ids) const;

 private:
  // Of the trie; children are neighbours, in the order of their bytes.
  struct Node {
    int32_t first_child = 0;
    int32_t num_children = 0;
    int32_t piece = -1;
  };
  // The best way to cut the text up to a place: its last piece.
  struct Best {
    float score = 0;
    int32_t begin = -1;
    int32_t piece = -1;
  };

  void build_trie(const std::vector<UnigramPiece>& pieces);
  int32_t child(int32_t node, unsigned char byte) const;
  std::vector<Best> search(std::string_view text) const;

  std::vector<Node> nodes_;
  std::vector<unsigned char> labels_;  // by node: the byte that leads to it
  std::vector<double> scores_;         // by piece
  float unk_score_ = 0;
  int32_t unk_ = 0;
  SentencepieceSpaces spaces_;
  bool has_byte_ids_ = false;
  std::array<int32_t, 256> byte_ids_ = {};
};

}  // namespace kvquant
