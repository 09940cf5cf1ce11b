// Cache specs as arguments.
#pragma once

#include <nanobind/stl/string.h>
#include <nanobind/stl/variant.h>

#include <string>
#include <variant>

#include "cache/kv_cache.h"
#include "kvquant/spec.h"

namespace kvquant::python {

using SpecArgument = std::variant<std::string, CacheSpec>;

CacheSpec to_spec(const SpecArgument& spec);    // throws what parse_spec does
CacheMode parse_mode(const std::string& name);  // "strict", "as-served"
const char* mode_name(CacheMode mode);

}  // namespace kvquant::python
