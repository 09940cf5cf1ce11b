// The normalised Walsh-Hadamard transform of one vector, in the order of operations that all others
// follow bit by bit (ops/hadamard.h has its definition).
#pragma once

#include <cmath>
#include <cstdint>

namespace kvquant {

// In place; elements x[i * stride]. Requires a power of two as size.
template <class T>
void walsh_hadamard(T* x, int64_t stride, int64_t size) noexcept {
  for (int64_t span = 1; span < size; span *= 2) {
    for (int64_t i = 0; i < size; ++i) {
      if ((i & span) != 0) continue;
      const T a = x[i * stride], b = x[(i + span) * stride];
      x[i * stride] = a + b;
      x[(i + span) * stride] = a - b;
    }
  }
  const T norm = 1 / std::sqrt(static_cast<T>(size));
  for (int64_t i = 0; i < size; ++i) x[i * stride] *= norm;
}

}  // namespace kvquant
