// What all commands share: common flags, streams, progress, tables, exit codes.
#pragma once

#include <CLI/CLI.hpp>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/progress.h"
#include "bench/result.h"
#include "kvquant/preset.h"
#include "model/model.h"

namespace kvquant::cli {

enum ExitCode : int {
  kDone = 0,
  kCheckFailed = 1,  // a check, budget or --max-… failed
  kBadInput = 2,     // bad usage or input
  kResources = 3,    // out of memory, disk full, device error
  kInterrupted = 130,
};

struct CommonOptions {
  std::string model;  // empty: smollm2 when present, else embedded
  int threads = 0;
  std::string device = "cpu";
  std::string precision = "auto";
  std::string weights = "auto";
  std::vector<std::string> kv;
  std::string key_codec, value_codec;  // -ctk, -ctv
  std::string calibration, preset;
  int64_t context = 0;
  int64_t ubatch = 512;
  uint64_t seed = 42;
  std::string json;  // file, "-" for stdout; empty: none
  bool quiet = false;
  bool absorb = false;
};

// Checks of numbers: CLI11's own name the ends of double's range, and let NaN and overflow pass.
CLI::Validator at_least(int64_t least);

// Which groups of common flags a command takes.
enum Flags : unsigned { kModelFlags = 1, kSpecFlags = 2, kRunFlags = 4, kAbsorbFlag = 8 };
void add_common_flags(CLI::App& command, CommonOptions& options, unsigned flags);

// A file's text. Throws FormatError with its path when it is not UTF-8.
std::string read_utf8(const std::string& path);

// What --preset names; nothing without it. Throws what get_preset_info does.
std::optional<Preset> preset_of(const CommonOptions& options);

// Where a command can run a model.
enum class RunsOn { kCpu, kCpuOrGpu };
// With the calibration of --calib or of the preset, which has to fit the model. Throws
// std::invalid_argument for --device cuda where the command, or a flag beside it, is for CPUs only.
Model load_model(const CommonOptions& options, RunsOn runs_on = RunsOn::kCpu);
// What load_model says of --device before it reads anything, where others load the model.
void check_devices(const CommonOptions& options, RunsOn runs_on);
Precision precision_of(const CommonOptions& options);

// --kv (each one), or -ctk/-ctv as one spec, and that of --preset; or `defaults`. Prints warnings
// to stderr.
std::vector<CacheSpec> specs_of(const CommonOptions& options,
                                const std::vector<std::string>& defaults);

// Says on stderr, unless quiet, which of the specs have layers without a fast kernel.
void tell_expanded_layers(const CommonOptions& options, const std::vector<CacheSpec>& specs,
                          const Model& model);

// With --absorb, unless quiet: which of the specs have nothing that it changes; at the end, what it
// has taken.
void tell_unabsorbed(const CommonOptions& options, const std::vector<CacheSpec>& specs,
                     const Model& model);
void tell_absorbed(const CommonOptions& options, Model& model);

// A bar with ETA on a terminal, plain lines every few seconds otherwise, nothing when quiet. The
// callback throws Interrupted after Ctrl-C.
Progress progress_on_stderr(const CommonOptions& options, const std::string& what);

struct Interrupted {};
bool was_interrupted();  // since the last clear
void clear_interrupted();
void install_interrupt_handler();
int interrupt_fd();  // readable while was_interrupted()

// "a  b  c" with aligned columns, the first left, others right; or a Markdown table.
enum class TableStyle { kText, kMarkdown };
std::string format_table(const std::vector<std::vector<std::string>>& rows,
                         TableStyle style = TableStyle::kText);

std::string format_bytes(int64_t bytes);  // "1.5 MiB"

// "8GiB", "8G" (the same), "512mib", "8GB" (powers of ten), "1000000". Throws
// std::invalid_argument.
int64_t parse_bytes(const std::string& text);

// Writes the document where --json says; returns whether it went to stdout (then nothing else
// should).
void write_json(const CommonOptions& options, const Json& document);
bool json_on_stdout(const CommonOptions& options);

Json common_config(const CommonOptions& options, Model& model);

// Says on stderr that figures are optimistic because the calibration has seen the text.
void warn_of_overlap();

// "calibrated by FILE (error-saved, 16 × 2048 tokens)", or "not calibrated".
std::string describe_calibration(const Model& model);

}  // namespace kvquant::cli
