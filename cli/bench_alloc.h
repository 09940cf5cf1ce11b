// kvquant bench alloc.
#pragma once

#include <CLI/CLI.hpp>

namespace kvquant::cli {

void add_bench_alloc(CLI::App& bench, int& exit_code);

}  // namespace kvquant::cli
