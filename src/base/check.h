// Checks for mistakes that a caller can make. They stay on in release builds, so an op calls them
// once per call, before it dispatches. Inside kernels use assert(): kernels are noexcept.
#pragma once

#include <stdexcept>
#include <string>

namespace kvquant {

// `message` names the op and its rule: "attend: q must have the head_dim of the cache".
inline void check_arg(bool ok, const char* message) {
  if (!ok) throw std::invalid_argument(message);
}
inline void check_arg(bool ok, const std::string& message) {
  if (!ok) throw std::invalid_argument(message);
}

}  // namespace kvquant
