// One random number after another, from a stream that is a function of its seed.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "base/rng.h"

namespace kvquant {

class RandomDraws {
 public:
  explicit RandomDraws(const CounterRng& rng) : rng_(rng) {}

  // In [0, n), 0 < n < 2^32.
  size_t below(size_t n) { return rng_.below(at_++, static_cast<uint32_t>(n)); }
  double uniform() { return rng_.uniform(at_++); }

  template <typename T>
  void shuffle(std::vector<T>& values) {  // Fisher and Yates
    for (size_t n = values.size(); n > 1; --n) std::swap(values[n - 1], values[below(n)]);
  }

  std::string number(int num_digits) {  // the first is not 0
    std::string out(1, static_cast<char>('1' + below(9)));
    while (static_cast<int>(out.size()) < num_digits) out += static_cast<char>('0' + below(10));
    return out;
  }
  std::string letters(int count, char first) {  // from `first`, 'a' or 'A', on
    std::string out;
    for (int i = 0; i < count; ++i) out += static_cast<char>(first + static_cast<char>(below(26)));
    return out;
  }
  std::string uuid() {  // RFC 4122, version 4
    constexpr char kHex[] = "0123456789abcdef";
    std::string out;
    for (int i = 0; i < 32; ++i) {
      if (i == 8 || i == 12 || i == 16 || i == 20) out += '-';
      out += i == 12 ? '4' : i == 16 ? kHex[8 + below(4)] : kHex[below(16)];
    }
    return out;
  }

 private:
  CounterRng rng_;
  uint64_t at_ = 0;
};

}  // namespace kvquant
