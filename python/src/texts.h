// Texts as token ids: arguments of calibration and tuning.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <utility>
#include <vector>

#include "model/calibrate.h"

namespace kvquant::python {

using NamedTokens = std::vector<std::pair<std::string, nanobind::object>>;

std::vector<TokenizedText> to_texts(const NamedTokens& named);  // throws what to_tokens does

}  // namespace kvquant::python
