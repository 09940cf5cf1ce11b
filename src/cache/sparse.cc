// The checks of kvquant/sparse.h, and its dense and standard forms.
#include "kvquant/sparse.h"

#include <fmt/format.h>

#include <bit>
#include <cmath>
#include <stdexcept>
#include <utility>

#include "base/check.h"
#include "base/half.h"
#include "cache/blocked_sparse.h"
#include "cache/out_of_memory.h"

namespace kvquant {
namespace {

struct TokenRules {
  const char* name;
  int64_t width;
  SparseValueType value_type;
};

[[noreturn]] void refuse_value(const TokenRules& rules, int64_t token, int32_t index, float value) {
  const char* rule = std::isfinite(value) ? "an fp16 number" : "finite";
  throw std::invalid_argument(
      fmt::format("{}: the value of token {} at index {} must be {}, it is {:.9g}", rules.name,
                  token, index, rule, value));
}

bool is_half(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  constexpr uint32_t kSmallestNormal = 0x38800000, kLargest = 0x477FE000;
  if ((bits & 0x7FFFFFFF) - kSmallestNormal <= kLargest - kSmallestNormal) {
    return (bits & 0x1FFF) == 0;
  }
  return std::bit_cast<uint32_t>(round_to_half(x)) == bits;
}

void check_entries(const TokenRules& rules, int64_t token, std::span<const int32_t> indices,
                   std::span<const float> values) {
  int64_t previous = -1;
  for (const int32_t index : indices) {
    if (index <= previous || index >= rules.width) {
      throw std::invalid_argument(
          fmt::format("{}: indices of token {} must ascend within 0..{}, {} comes after {}",
                      rules.name, token, rules.width - 1, index, previous));
    }
    previous = index;
  }
  const bool half = rules.value_type == SparseValueType::kF16;
  for (size_t i = 0; i < values.size(); ++i) {
    const bool exact = !half || is_half(values[i]);
    if (!exact || !std::isfinite(values[i])) refuse_value(rules, token, indices[i], values[i]);
  }
}

void check_counts(const char* name, size_t num_indices, size_t num_values) {
  if (num_indices != num_values) {
    throw std::invalid_argument(fmt::format(
        "{}: as many values as indices are needed, got {} and {}", name, num_values, num_indices));
  }
}

}  // namespace

BlockedTokens::BlockedTokens(const char* name, int64_t width, int64_t block_size,
                             SparseValueType value_type)
    : width_(width), name_(name), block_size_(block_size), value_type_(value_type) {
  check_arg(1 <= width && width <= kSparseMostWidth,
            fmt::format("{}: a token has 1 to {} channels, got {}", name, kSparseMostWidth, width));
  check_arg(1 <= block_size && block_size <= kSparseMostBlockSize,
            fmt::format("{}: block_size is 1 to {} tokens, got {}", name, kSparseMostBlockSize,
                        block_size));
  check_arg(value_type == SparseValueType::kF32 || value_type == SparseValueType::kF16,
            fmt::format("{}: unknown value type {}", name, static_cast<int>(value_type)));
}

BlockedTokens::BlockedTokens(BlockedTokens&& other) noexcept = default;
BlockedTokens& BlockedTokens::operator=(BlockedTokens&& other) noexcept = default;
BlockedTokens::~BlockedTokens() = default;

BlockedSparse& BlockedTokens::made_tokens() {
  if (!tokens_) {
    tokens_ = or_out_of_memory(
        name_, [&] { return std::make_unique<BlockedSparse>(width_, block_size_, value_type_); });
  }
  return *tokens_;
}

void BlockedTokens::append_token(std::span<const int32_t> indices, std::span<const float> values) {
  check_counts(name_, indices.size(), values.size());
  check_entries({name_, width_, value_type_}, num_tokens(), indices, values);
  made_tokens().append(indices, values);
}

void BlockedTokens::append_batch(std::span<const int64_t> offsets, std::span<const int32_t> indices,
                                 std::span<const float> values) {
  check_counts(name_, indices.size(), values.size());
  const auto num_entries = static_cast<int64_t>(indices.size());
  check_arg(
      !offsets.empty() && offsets.front() == 0 && offsets.back() == num_entries,
      fmt::format("{}: offsets of a batch must start at 0 and end at {}", name_, num_entries));
  const auto entries = [&](auto all, size_t t) {
    return all.subspan(static_cast<size_t>(offsets[t]),
                       static_cast<size_t>(offsets[t + 1] - offsets[t]));
  };
  const size_t num_new = offsets.size() - 1;
  for (size_t t = 0; t < num_new; ++t) {
    if (offsets[t + 1] < offsets[t] || offsets[t + 1] > num_entries) {
      throw std::invalid_argument(
          fmt::format("{}: offsets of a batch must not descend, {} follows {}", name_,
                      offsets[t + 1], offsets[t]));
    }
    check_entries({name_, width_, value_type_}, num_tokens() + static_cast<int64_t>(t),
                  entries(indices, t), entries(values, t));
  }
  if (num_new == 0) return;
  BlockedSparse& tokens = made_tokens();
  for (size_t t = 0; t < num_new; ++t) tokens.append(entries(indices, t), entries(values, t));
}

int64_t BlockedTokens::num_tokens() const { return tokens_ ? tokens_->num_tokens() : 0; }
int64_t BlockedTokens::num_nonzeros() const { return tokens_ ? tokens_->num_nonzeros() : 0; }
int64_t BlockedTokens::num_blocks() const { return tokens_ ? tokens_->num_blocks() : 0; }

SparseFootprint BlockedTokens::memory_footprint() const {
  return tokens_ ? tokens_->footprint() : SparseFootprint{};
}

void BlockedTokens::check_token(int64_t token) const {
  check_arg(0 <= token && token < num_tokens(),
            fmt::format("{}: token {} of {} was asked for", name_, token, num_tokens()));
}

int64_t BlockedTokens::num_nonzeros(int64_t token) const {
  check_token(token);
  const auto range = tokens_->entries_of(token);
  return range.end - range.first;
}

std::vector<SparsePiece> BlockedTokens::pieces(int64_t token) const {
  check_token(token);
  std::vector<SparsePiece> pieces;
  auto range = tokens_->entries_of(token);
  while (range.first < range.end) {
    pieces.push_back(tokens_->piece_of(range));
    range.first += pieces.back().count;
  }
  return pieces;
}

StandardSparse BlockedTokens::standard() const {
  return or_out_of_memory(name_, [&] {
    StandardSparse standard;
    standard.offsets.reserve(static_cast<size_t>(num_tokens()) + 1);
    standard.indices.reserve(static_cast<size_t>(num_nonzeros()));
    standard.values.reserve(static_cast<size_t>(num_nonzeros()));
    standard.offsets.push_back(0);
    for (int64_t t = 0; t < num_tokens(); ++t) {
      standard.offsets.push_back(tokens_->entries_of(t).end);
    }
    for (int64_t first = 0; first < num_nonzeros();) {
      const SparsePiece piece = tokens_->piece_of({first, num_nonzeros()});
      for (int64_t i = 0; i < piece.count; ++i) {
        standard.indices.push_back(piece.index(i));
        standard.values.push_back(piece.value(i));
      }
      first += piece.count;
    }
    return standard;
  });
}

SparseDense BlockedTokens::dense(Order order) const {
  return or_out_of_memory(name_, [&] {
    const bool rows = order == Order::kTokensAreRows;
    SparseDense dense{rows ? num_tokens() : width_, rows ? width_ : num_tokens(), {}};
    dense.values.resize(static_cast<size_t>(dense.num_rows * dense.num_cols));
    const int64_t token_stride = rows ? width_ : 1;
    const int64_t index_stride = rows ? 1 : num_tokens();
    for (int64_t t = 0; t < num_tokens(); ++t) {
      for (auto range = tokens_->entries_of(t); range.first < range.end;) {
        const SparsePiece piece = tokens_->piece_of(range);
        for (int64_t i = 0; i < piece.count; ++i) {
          dense.values[static_cast<size_t>(t * token_stride + piece.index(i) * index_stride)] =
              piece.value(i);
        }
        range.first += piece.count;
      }
    }
    return dense;
  });
}

}  // namespace kvquant
