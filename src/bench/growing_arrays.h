// What `bench alloc` compares blocked storage with: the same compressed sparse rows in three plain
// arrays, copied at every append or whenever they are full. They check nothing, which is to their
// advantage.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <vector>

#include "base/half.h"
#include "kvquant/sparse.h"

namespace kvquant {

// The standard form of offsets, indices and values stored as below.
inline StandardSparse standard_of(std::span<const uint32_t> offsets,
                                  std::span<const uint16_t> indices, std::span<const Half> values) {
  StandardSparse standard;
  standard.offsets.assign(offsets.begin(), offsets.end());
  standard.indices.assign(indices.begin(), indices.end());
  for (const Half value : values) standard.values.push_back(to_float(value));
  return standard;
}

// Bytes of a store's arrays, in the order in which an append replaces them.
using ArrayBytes = std::array<int64_t, 3>;

// The most there was while arrays were replaced one after the other, the old one beside the new.
inline int64_t peak_while_replacing(const ArrayBytes& before, const ArrayBytes& now) {
  int64_t total = before[0] + before[1] + before[2], peak = total;
  for (size_t i = 0; i < now.size(); ++i) {
    if (now[i] == before[i]) continue;
    peak = std::max(peak, total + now[i]);
    total += now[i] - before[i];
  }
  return peak;
}

// Every append allocates exactly what is needed and copies everything.
class CopyOnAppend {
 public:
  void append_token(std::span<const int32_t> indices, std::span<const float> values) {
    const size_t count = indices.size();
    auto* to_offset = offsets_.extend(1);
    *to_offset = static_cast<uint32_t>(indices_.size + count);
    auto* to_index = indices_.extend(count);
    auto* to_value = values_.extend(count);
    for (size_t i = 0; i < count; ++i) {
      to_index[i] = static_cast<uint16_t>(indices[i]);
      to_value[i] = to_half(values[i]);
    }
  }

  StandardSparse to_standard_csr() const {
    StandardSparse standard = standard_of(offsets_.span(), indices_.span(), values_.span());
    standard.offsets.insert(standard.offsets.begin(), 0);
    return standard;
  }
  ArrayBytes array_bytes() const { return {offsets_.bytes(), indices_.bytes(), values_.bytes()}; }

 private:
  template <class T>
  struct Array {
    std::unique_ptr<T[]> data;
    size_t size = 0;

    T* extend(size_t count) {
      auto longer = std::make_unique_for_overwrite<T[]>(size + count);
      if (size > 0) std::memcpy(longer.get(), data.get(), size * sizeof(T));
      data = std::move(longer);
      size += count;
      return data.get() + (size - count);
    }
    std::span<const T> span() const { return {data.get(), size}; }
    int64_t bytes() const { return static_cast<int64_t>(size * sizeof(T)); }
  };

  Array<uint32_t> offsets_;  // ends; the first offset, 0, is not kept
  Array<uint16_t> indices_;
  Array<Half> values_;
};

// std::vectors, which double.
class DoublingVectors {
 public:
  void append_token(std::span<const int32_t> indices, std::span<const float> values) {
    for (size_t i = 0; i < indices.size(); ++i) {
      indices_.push_back(static_cast<uint16_t>(indices[i]));
      values_.push_back(to_half(values[i]));
    }
    offsets_.push_back(static_cast<uint32_t>(indices_.size()));
  }

  StandardSparse to_standard_csr() const {
    StandardSparse standard = standard_of(offsets_, indices_, values_);
    standard.offsets.insert(standard.offsets.begin(), 0);
    return standard;
  }
  ArrayBytes array_bytes() const {
    return {static_cast<int64_t>(indices_.capacity() * sizeof(uint16_t)),
            static_cast<int64_t>(values_.capacity() * sizeof(Half)),
            static_cast<int64_t>(offsets_.capacity() * sizeof(uint32_t))};
  }

 private:
  std::vector<uint32_t> offsets_;  // ends
  std::vector<uint16_t> indices_;
  std::vector<Half> values_;
};

}  // namespace kvquant
