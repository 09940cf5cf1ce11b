// kvquant bench harness.
#pragma once

#include <CLI/CLI.hpp>

namespace kvquant::cli {

void add_bench_harness(CLI::App& bench, int& exit_code);

}  // namespace kvquant::cli
