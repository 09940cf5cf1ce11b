#include "cache/stored_sequence.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "base/quote.h"
#include "kvquant/error.h"

namespace kvquant {

int64_t StoredSection::num_bytes() const {
  int64_t sum = 0;
  for (const auto& piece : pieces) sum += static_cast<int64_t>(piece.size());
  return sum;
}

void SectionReader::fail(const std::string& rule) const {
  throw FormatError(
      fmt::format("{}: section {}: {}", stored_.origin, stored_.sections[next_ - 1].name, rule));
}

int64_t SectionReader::open(const std::string& name) {
  if (next_ == stored_.sections.size()) {
    throw FormatError(fmt::format("{}: section {} is missing", stored_.origin, name));
  }
  const StoredSection& section = stored_.sections[next_];
  if (section.name != name) {
    throw FormatError(fmt::format("{}: section {} is {}, expected {}", stored_.origin, next_,
                                  quote(section.name), name));
  }
  ++next_;
  piece_ = 0;
  offset_ = 0;
  return section.num_bytes();
}

void SectionReader::open(const std::string& name, int64_t num_bytes) {
  const int64_t found = open(name);
  if (found != num_bytes) fail(fmt::format("{} bytes, expected {}", found, num_bytes));
}

void SectionReader::read(void* out, int64_t num_bytes) {
  const auto& pieces = stored_.sections[next_ - 1].pieces;
  auto* to = static_cast<std::byte*>(out);
  for (auto left = static_cast<size_t>(num_bytes); left > 0;) {
    if (piece_ == pieces.size()) fail("too short");
    const auto rest = pieces[piece_].subspan(offset_);
    const size_t count = std::min(left, rest.size());
    if (count > 0) std::memcpy(to, rest.data(), count);
    to += count;
    left -= count;
    offset_ += count;
    if (count == rest.size()) {
      ++piece_;
      offset_ = 0;
    }
  }
}

void SectionReader::read_halves(Half* out, int64_t count) {
  read(out, count * static_cast<int64_t>(sizeof(Half)));
  const Half* bad = std::find_if_not(out, out + count, [](Half x) { return is_finite(x); });
  if (bad != out + count) fail(fmt::format("number {} is not finite", bad - out));
}

void SectionReader::finish() const {
  if (next_ == stored_.sections.size()) return;
  throw FormatError(fmt::format("{}: section {} is {}, but all that was expected is there",
                                stored_.origin, next_, quote(stored_.sections[next_].name)));
}

}  // namespace kvquant
