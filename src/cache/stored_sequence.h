// A sequence of a KvCache as named sections of bytes: what KvCache::store hands out and
// KvCache::restore takes. docs/formats.md ("Cache file") lists the sections, their order and what
// is in them. Nothing is owned here: sections are views of the cache, or of a mapped file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/half.h"

namespace kvquant {

struct StoredSection {
  std::string name;                                  // "layers.3.key.blocks"
  std::vector<std::span<const std::byte>> pieces{};  // one behind the other

  int64_t num_bytes() const;
};

struct StoredSequence {
  std::string origin;  // what errors name: the path of a file
  int64_t num_tokens = 0;
  int64_t num_encoded = 0;  // compressed tokens, the same in all layers that compress a side
  std::vector<StoredSection> sections{};
};

// Reads sections in order. `stored` must outlive it. Everything throws FormatError, "origin:
// section name: rule".
class SectionReader {
 public:
  explicit SectionReader(const StoredSequence& stored) : stored_(stored) {}

  const StoredSequence& stored() const { return stored_; }

  // Begins the next section, which must have this name; returns its bytes.
  int64_t open(const std::string& name);
  // Begins the next section, which must have this name and so many bytes.
  void open(const std::string& name, int64_t num_bytes);
  // The next bytes of the section.
  void read(void* out, int64_t num_bytes);
  // The same as numbers, which must be finite.
  void read_halves(Half* out, int64_t count);
  void finish() const;  // no section may be left

  [[noreturn]] void fail(const std::string& rule) const;  // about the open section

 private:
  const StoredSequence& stored_;
  size_t next_ = 0;  // section
  size_t piece_ = 0;
  size_t offset_ = 0;  // in the piece
};

// Appends a section of `count` elements.
template <class T>
void add_section(std::vector<StoredSection>& sections, std::string name, const T* data,
                 int64_t count) {
  sections.push_back(
      {std::move(name), {std::as_bytes(std::span(data, static_cast<size_t>(count)))}});
}

constexpr bool is_finite(Half x) { return (x.bits & 0x7C00) != 0x7C00; }
constexpr bool is_scale(Half x) { return is_finite(x) && (x.bits <= 0x8000); }  // -0 is one

}  // namespace kvquant
