// Failed allocations of standard containers as the library's own error.
#pragma once

#include <fmt/format.h>

#include <new>
#include <stdexcept>

#include "kvquant/error.h"

namespace kvquant {

// Returns make(). Throws OutOfMemory naming `op` when an allocation in it fails.
template <class Fn>
auto or_out_of_memory(const char* op, Fn&& make) {
  try {
    return make();
  } catch (const std::bad_alloc&) {
  } catch (const std::length_error&) {
  }
  throw OutOfMemory(fmt::format("{}: out of memory", op));
}

}  // namespace kvquant
