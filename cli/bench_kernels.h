// kvquant bench kernels.
#pragma once

#include <CLI/CLI.hpp>

namespace kvquant::cli {

void add_bench_kernels(CLI::App& bench, int& exit_code);

}  // namespace kvquant::cli
