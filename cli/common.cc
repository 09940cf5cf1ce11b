#include "cli/common.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <system_error>

#include "base/check.h"
#include "base/device.h"
#include "base/file.h"
#include "base/timer.h"
#include "cache/kv_cache.h"
#include "formats/codec_table.h"
#include "kvquant/error.h"
#include "model/calibration_source.h"
#include "model/presets.h"
#include "model/utf8.h"
#include "ops/cuda_device.h"

namespace kvquant::cli {
namespace {

volatile std::sig_atomic_t interrupted = 0;
int interrupt_pipe[2] = {-1, -1};  // a byte in it: interrupted

void on_interrupt(int) {
  if (interrupted != 0) _exit(kInterrupted);  // the second Ctrl-C doesn't wait
  interrupted = 1;
  const int error = errno;
  if (write(interrupt_pipe[1], "", 1) < 0) errno = error;
}

std::string format_eta(double seconds) {
  if (seconds < 90) return fmt::format("{:.0f} s", seconds);
  return fmt::format("{:.0f} min", seconds / 60);
}

bool is_word(const std::string& cell) {
  return !cell.empty() && std::isalpha(static_cast<unsigned char>(cell[0])) != 0;
}

// Characters, not bytes, of UTF-8 text: what it takes on a terminal, near enough.
size_t display_width(const std::string& text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

std::string name_of(const std::vector<int>& devices) {
  return fmt::format("cuda:{}", fmt::join(devices, ","));
}

// The indices of the GPUs that are asked for; none: the CPU is.
std::vector<int> devices_of(const CommonOptions& options, RunsOn runs_on) {
  const auto indices = parse_devices(options.device);
  if (indices.empty()) return indices;
  const auto check = [&](bool condition, const char* what) {
    check_arg(condition, fmt::format("--device {}: {}", options.device, what));
  };
  check(runs_on == RunsOn::kCpuOrGpu,
        "this command runs on the CPU only; generate, chat, perplexity, eval, bench and "
        "sweep run on GPUs");
  check(options.weights == "auto",
        "--weights is for the CPU; on GPUs weights are bf16 or f32, as --precision says");
  check(!options.absorb, "--absorb is for the CPU");
  if (is_device_emulated()) {
    fmt::print(stderr,
               "kvquant: warning: KVQUANT_BACKEND=cuda-emulated: the CPU plays device {}, "
               "slowly; this is for tests\n",
               name_of(indices));
  }
  return indices;
}

Json calibration_config(const Calibration* calibration) {
  if (calibration == nullptr) return nullptr;
  const CalibrationInfo& info = calibration->info;
  return {{"path", calibration->path.empty() ? Json(nullptr) : Json(calibration->path)},
          {"recipe", info.recipe},
          {"num_samples", info.num_samples},
          {"seq_len", info.seq_len},
          {"fingerprint", calibration_fingerprint(info)}};
}

// The file that --calib or --preset names; empty: none.
std::string calibration_file_of(const CommonOptions& options, const std::optional<Preset>& preset) {
  const std::string of_preset = preset ? calibration_path(*preset) : "";
  if (options.calibration.empty() || of_preset.empty()) return options.calibration + of_preset;
  std::error_code error;
  check_arg(std::filesystem::equivalent(options.calibration, of_preset, error) && !error,
            fmt::format("--calib {} and --preset {}, whose calibration is {}, exclude each other",
                        options.calibration, options.preset, of_preset));
  return of_preset;
}

WeightStorage weights_of(const CommonOptions& options) {
  if (options.weights == "bf16") return WeightStorage::kBF16;
  return options.weights == "int8" ? WeightStorage::kInt8 : WeightStorage::kAuto;
}

}  // namespace

CLI::Validator at_least(int64_t least) {
  return {[least](std::string& text) {
            int64_t value = 0;
            const char* end = text.data() + text.size();
            const auto [stop, error] = std::from_chars(text.data(), end, value);
            if (error == std::errc() && stop == end && value >= least) return std::string();
            return fmt::format("'{}' is not a whole number of at least {}", text, least);
          },
          fmt::format("INT>={}", least)};
}

void add_common_flags(CLI::App& command, CommonOptions& options, unsigned flags) {
  if (flags & kModelFlags) {
    command.add_option("-m,--model", options.model,
                       "GGUF file, Hugging Face directory, smollm2 or embedded "
                       "(default: smollm2 when present, else embedded)");
    command.add_option("-t,--threads", options.threads, "threads (default: all cores)")
        ->check(CLI::Range(1, 1024));
    command
        .add_option("--device", options.device,
                    "cpu, cuda[:N] or, for layers on several GPUs, cuda:N,M,... (generate, chat, "
                    "perplexity, eval, bench, sweep)")
        ->capture_default_str();
    command.add_option("--precision", options.precision, "arithmetic of matrix products")
        ->check(CLI::IsMember({"auto", "f32", "bf16"}))
        ->capture_default_str();
    command
        .add_option("--weights", options.weights,
                    "how matrices are kept: auto (codes of quantized files as they are, "
                    "else bf16), bf16, int8 (floats become 8-bit codes, too)")
        ->check(CLI::IsMember({"auto", "bf16", "int8"}))
        ->capture_default_str();
  }
  if (flags & kSpecFlags) {
    command
        .add_option("--kv", options.kv,
                    "cache spec, e.g. fp16, nuq3-1%, k=nuq4-0.5%,v=nuq3,sink=4,recent=64 "
                    "(repeat to compare)")
        ->allow_extra_args(false);
    command.add_option("--ctk,--cache-type-k", options.key_codec, "codec of keys (also -ctk)");
    command.add_option("--ctv,--cache-type-v", options.value_codec, "codec of values (also -ctv)");
    command
        .add_option("--calib", options.calibration, "calibration file, as kvquant calibrate writes")
        ->check([](const std::string& path) {  // an unset variable of a script, most likely
          return path.empty() ? "the path of the calibration file is empty" : std::string();
        });
    command
        .add_option("--preset", options.preset,
                    "preset file or name (kvquant presets lists them): its spec, with its "
                    "calibration")
        ->check([](const std::string& name) {
          return name.empty() ? "the name of the preset is empty" : std::string();
        });
  }
  if (flags & kAbsorbFlag) {
    command.add_flag("--absorb", options.absorb,
                     "low-rank values: fold their decoders into output projections, which takes "
                     "more memory and, as exact tokens need the plain projection, too, more time");
  }
  if (flags & kRunFlags) {
    command.add_option("-c,--ctx", options.context, "context in tokens (default: the model's)")
        ->check(CLI::PositiveNumber);
    command
        .add_option("--ub,--ubatch", options.ubatch,
                    "tokens that go through the layers at once (also -ub)")
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
    command.add_option("--seed", options.seed, "random seed")->capture_default_str();
  }
  command.add_option("--json", options.json, "write results as JSON to this file (- for stdout)")
      ->each([](const std::string& path) {  // now, not after the work
        if (!path.empty() && path != "-") check_writable(path);
      });
  command.add_flag("-q,--quiet", options.quiet, "no progress, no logs");
}

std::string read_utf8(const std::string& path) {
  std::string text = read_text(path);
  const int64_t at = find_invalid_utf8(text);
  if (at >= 0) throw FormatError(path + ": not UTF-8 at byte " + std::to_string(at));
  return text;
}

Precision precision_of(const CommonOptions& options) {
  if (options.precision == "f32") return Precision::kF32;
  if (options.precision == "bf16") return Precision::kBF16;
  return options.device == "cpu" ? default_precision() : Precision::kBF16;
}

std::optional<Preset> preset_of(const CommonOptions& options) {
  if (options.preset.empty()) return std::nullopt;
  return get_preset_info(options.model, options.preset);
}

void check_devices(const CommonOptions& options, RunsOn runs_on) {
  for (const int index : devices_of(options, runs_on)) find_model_device(index);
}

Model load_model(const CommonOptions& options, RunsOn runs_on) {
  const auto devices = devices_of(options, runs_on);
  const auto decoders = options.absorb ? ValueDecoders::kAbsorbed : ValueDecoders::kExpanded;
  Model model = Model::load(find_model(options.model), {.num_threads = options.threads,
                                                        .precision = precision_of(options),
                                                        .weights = weights_of(options),
                                                        .context = options.context,
                                                        .value_decoders = decoders,
                                                        .devices = devices});
  const auto preset = preset_of(options);
  if (preset) check_preset_fits(*preset, preset_model(model.checkpoint()));
  const std::string calibration = calibration_file_of(options, preset);
  if (!calibration.empty()) model.set_calibration(load_calibration(calibration));
  if (!devices.empty() && !options.quiet) {
    fmt::print(stderr, "kvquant: device {}: {}\n", name_of(devices), model.device_name());
  }
  return model;
}

std::vector<CacheSpec> specs_of(const CommonOptions& options,
                                const std::vector<std::string>& defaults) {
  std::vector<std::string> texts = options.kv;
  if (!options.key_codec.empty() || !options.value_codec.empty()) {
    check_arg(texts.empty(), "--kv and -ctk/-ctv exclude each other");
    check_arg(options.preset.empty(), "--preset and -ctk/-ctv exclude each other");
    texts = {"k=" + (options.key_codec.empty() ? "fp16" : options.key_codec) +
             ",v=" + (options.value_codec.empty() ? "fp16" : options.value_codec)};
  }
  if (const auto preset = preset_of(options)) texts.push_back(preset->spec);
  if (texts.empty()) texts = defaults;
  std::vector<CacheSpec> specs;
  for (const auto& text : texts) {
    specs.push_back(parse_spec(text));
    check_spec_built(specs.back());
    for (const auto& warning : spec_warnings(specs.back())) {
      fmt::print(stderr, "kvquant: warning: {}\n", warning);
    }
  }
  return specs;
}

void tell_expanded_layers(const CommonOptions& options, const std::vector<CacheSpec>& specs,
                          const Model& model) {
  if (options.quiet || model.is_on_device()) return;
  const int64_t num_layers = model.config().num_layers;
  for (const CacheSpec& spec : specs) {
    const int64_t count = num_expanded_layers(spec, num_layers);
    if (count == 0) continue;
    fmt::print(
        stderr,
        "kvquant: {}: no fast kernel reads the keys and values of {} of {} layers, which are of "
        "different kinds; their history is expanded at every step\n",
        spec.text, count, num_layers);
  }
}

void tell_unabsorbed(const CommonOptions& options, const std::vector<CacheSpec>& specs,
                     const Model& model) {
  if (!options.absorb || options.quiet) return;
  for (const CacheSpec& spec : specs) {
    bool has_any = false;
    for (int layer = 0; layer < model.config().num_layers; ++layer) {
      has_any |= has_latents(spec.value_of(layer));
    }
    if (has_any) continue;
    fmt::print(stderr, "kvquant: {}: no values are low-rank, --absorb changes nothing\n",
               spec.text);
  }
}

void tell_absorbed(const CommonOptions& options, Model& model) {
  if (!options.absorb || options.quiet) return;
  const int64_t bytes = model.transformer().absorbed_bytes();
  if (bytes == 0) return;
  fmt::print(stderr,
             "kvquant: output projections with value decoders take {} beside weights of {}\n",
             format_bytes(bytes), format_bytes(model.transformer().weight_bytes()));
}

Progress progress_on_stderr(const CommonOptions& options, const std::string& what) {
  struct State {
    Timer since_start, since_print;
    bool printed = false;
  };
  const bool is_terminal = isatty(STDERR_FILENO) != 0;
  const bool quiet = options.quiet;
  return [=, state = std::make_shared<State>()](int64_t done, int64_t total) {
    if (was_interrupted()) throw Interrupted{};
    if (quiet || total <= 0) return;
    const bool last = done >= total;
    const double interval = is_terminal ? 0.1 : 5.0;
    if (!last && state->since_print.seconds() < interval) return;
    if (last && !state->printed && state->since_start.seconds() < 1) return;  // too short to tell
    state->since_print = Timer();
    state->printed = true;
    const double elapsed = state->since_start.seconds();
    const double share = static_cast<double>(done) / static_cast<double>(total);
    const double eta = share > 0 ? elapsed / share - elapsed : 0;
    if (is_terminal) {
      constexpr int kWidth = 30;
      const auto filled = static_cast<size_t>(share * kWidth);
      fmt::print(stderr, "\r{} [{}{}] {:3.0f}%  {}   ", what, std::string(filled, '#'),
                 std::string(kWidth - filled, '.'), 100 * share,
                 last ? "" : format_eta(eta) + " left");
      if (last) fmt::print(stderr, "\r\033[K");
    } else {
      fmt::print(stderr, "{}: {:.0f}%, {} left\n", what, 100 * share, format_eta(eta));
    }
    std::fflush(stderr);
  };
}

bool was_interrupted() { return interrupted != 0; }
void clear_interrupted() {
  if (interrupted == 0) return;
  char byte;
  if (read(interrupt_pipe[0], &byte, 1) < 0) return;  // being interrupted again: it stays
  interrupted = 0;
}
int interrupt_fd() { return interrupt_pipe[0]; }

void install_interrupt_handler() {
  if (pipe(interrupt_pipe) != 0) {
    throw std::system_error(errno, std::generic_category(), "cannot make a pipe");
  }
  struct sigaction action {};
  action.sa_handler = on_interrupt;
  sigaction(SIGINT, &action, nullptr);  // no SA_RESTART: a blocked read returns
}

std::string format_table(const std::vector<std::vector<std::string>>& rows, TableStyle style) {
  std::vector<size_t> widths;
  std::vector<bool> left;  // columns of words, and the first
  for (size_t r = 0; r < rows.size(); ++r) {
    widths.resize(std::max(widths.size(), rows[r].size()));
    left.resize(widths.size());
    for (size_t c = 0; c < rows[r].size(); ++c) {
      widths[c] = std::max(widths[c], display_width(rows[r][c]));
      if (c == 0 || (r > 0 && is_word(rows[r][c]))) left[c] = true;
    }
  }
  const bool markdown = style == TableStyle::kMarkdown;
  std::string out;
  for (size_t r = 0; r < rows.size(); ++r) {
    std::string line = markdown ? "|" : "";
    for (size_t c = 0; c < rows[r].size(); ++c) {
      const std::string& cell = rows[r][c];
      const std::string padding(widths[c] - display_width(cell), ' ');
      const std::string text = left[c] ? cell + padding : padding + cell;
      line += markdown ? " " + text + " |" : (c == 0 ? text : "  " + text);
    }
    while (!line.empty() && line.back() == ' ') line.pop_back();
    out += line + "\n";
    if (markdown && r == 0) {
      out += "|";
      for (size_t c = 0; c < widths.size(); ++c) {
        out += std::string(widths[c] + 1, '-') + (left[c] ? "-|" : ":|");
      }
      out += "\n";
    }
  }
  return out;
}

std::string format_bytes(int64_t bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  auto value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 1024 && unit + 1 < std::size(kUnits)) {
    value /= 1024;
    ++unit;
  }
  return unit == 0 ? fmt::format("{} B", bytes) : fmt::format("{:.1f} {}", value, kUnits[unit]);
}

int64_t parse_bytes(const std::string& text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  std::string unit(end, text.data() + text.size());
  for (char& c : unit) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  const std::vector<std::pair<std::string, double>> units = {
      {"", 1},       {"b", 1},        {"k", 0x1p10},   {"m", 0x1p20},   {"g", 0x1p30},
      {"t", 0x1p40}, {"kib", 0x1p10}, {"mib", 0x1p20}, {"gib", 0x1p30}, {"tib", 0x1p40},
      {"kb", 1e3},   {"mb", 1e6},     {"gb", 1e9},     {"tb", 1e12}};
  for (const auto& [name, factor] : units) {
    const double bytes = value * factor;
    if (error == std::errc() && unit == name && bytes >= 1 && bytes < 0x1p62) {
      return static_cast<int64_t>(value * factor);
    }
  }
  throw std::invalid_argument("'" + text + "' is not a size: write for example 8GiB or 512MiB");
}

bool json_on_stdout(const CommonOptions& options) { return options.json == "-"; }

void write_json(const CommonOptions& options, const Json& document) {
  if (options.json.empty()) return;
  const std::string text = document.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
  if (json_on_stdout(options)) {
    fmt::print("{}", text);
  } else {
    write_file_atomic(options.json, text);
  }
}

void warn_of_overlap() {
  fmt::print(stderr,
             "kvquant: warning: the calibration was made from a part of this text, so the figures "
             "are optimistic: calibrate on another one\n");
}

std::string describe_calibration(const Model& model) {
  const auto& calibration = model.calibration();
  if (calibration == nullptr) return "not calibrated";
  const CalibrationInfo& info = calibration->info;
  return fmt::format("calibrated by {} ({} × {} tokens)", calibration->path, info.num_samples,
                     info.seq_len);
}

Json common_config(const CommonOptions& options, Model& model) {
  return {{"threads", model.pool().num_threads()},
          {"device", options.device},
          {"device_name", model.is_on_device() ? Json(model.device_name()) : Json(nullptr)},
          {"precision", model.precision() == Precision::kBF16 ? "bf16" : "f32"},
          {"weights", options.weights},
          {"ubatch", options.ubatch},
          {"seed", options.seed},
          {"absorb", options.absorb},
          {"preset", options.preset.empty() ? Json(nullptr) : Json(options.preset)},
          {"calibration", calibration_config(model.calibration().get())}};
}

}  // namespace kvquant::cli
