// A model as Python holds it: with the guard of all that runs on it.
#pragma once

#include <memory>
#include <vector>

#include "arrays.h"
#include "guard.h"
#include "model/model.h"

namespace kvquant::python {

struct Engine {
  explicit Engine(Model loaded) : model(std::move(loaded)) {}

  Model model;
  Guard guard;
};

// Token ids: a list or tuple, or an array of integers, [n].
std::vector<int32_t> to_tokens(const char* name, nanobind::handle tokens);

}  // namespace kvquant::python
