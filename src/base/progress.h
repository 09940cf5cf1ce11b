// How long calls tell their caller how far they are. A callback may throw to stop the call.
#pragma once

#include <cstdint>
#include <functional>

namespace kvquant {

// done of total units (tokens, as a rule). An empty function is allowed: use report().
using Progress = std::function<void(int64_t done, int64_t total)>;

inline void report(const Progress& progress, int64_t done, int64_t total) {
  if (progress) progress(done, total);
}

}  // namespace kvquant
