// The commands. Each add_* registers a subcommand with its flags; its callback does the work and
// returns through exit_code.
#pragma once

#include <CLI/CLI.hpp>

namespace kvquant::cli {

// exit_code outlives the app; a command sets it when it isn't 0.
void add_demo(CLI::App& app, int& exit_code);
void add_info(CLI::App& app, int& exit_code);
void add_formats(CLI::App& app, int& exit_code);
void add_generate(CLI::App& app, int& exit_code);
void add_chat(CLI::App& app, int& exit_code);
void add_calibrate(CLI::App& app, int& exit_code);
void add_perplexity(CLI::App& app, int& exit_code);
void add_make_model(CLI::App& app, int& exit_code);
void add_bench(CLI::App& app, int& exit_code);
void add_eval(CLI::App& app, int& exit_code);
void add_allocate(CLI::App& app, int& exit_code);
void add_tune(CLI::App& app, int& exit_code);
void add_presets(CLI::App& app, int& exit_code);
void add_sweep(CLI::App& app, int& exit_code);
void add_report(CLI::App& app, int& exit_code);
void add_export(CLI::App& app, int& exit_code);
void add_energy(CLI::App& app, int& exit_code);

}  // namespace kvquant::cli
