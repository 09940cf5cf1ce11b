#include "cli/bench_baseline.h"

#include <filesystem>

#include "base/check.h"
#include "base/threads.h"
#include "cli/python_package.h"
#include "model/checkpoint.h"

namespace kvquant::cli {
namespace {

bool is_gguf(const std::string& path) { return std::filesystem::is_regular_file(path); }

Json tests_of(const ModelBenchOptions& bench) {
  Json tests = Json::array();
  for (const int64_t n : bench.prompt_sizes) {
    if (n > 0) tests.push_back({n, 0});
  }
  for (const int64_t n : bench.gen_sizes) {
    if (n > 0) tests.push_back({0, n});
  }
  for (const auto& [prompt, gen] : bench.combined_sizes) tests.push_back({prompt, gen});
  check_arg(!tests.empty(), "--baseline: nothing to time: give -p, -n or --pg");
  return tests;
}

// What only kvquant understands.
std::vector<std::string> own_flags(const CommonOptions& common) {
  std::vector<std::string> flags;
  const auto add = [&](const char* flag, const std::string& value) {
    if (value.empty()) return;
    flags.emplace_back(flag);
    flags.push_back(value);
  };
  add("--device", common.device);
  add("--weights", common.weights);
  add("--calib", common.calibration);
  add("--preset", common.preset);
  if (common.absorb) flags.emplace_back("--absorb");
  return flags;
}

}  // namespace

void become_baseline(const BaselineOptions& options, const CommonOptions& common,
                     const ModelBenchOptions& bench) {
  const std::string model = find_model(common.model);
  const auto checkpoint = open_checkpoint(model);
  Json specs = Json::array();
  for (const CacheSpec& spec : specs_of(common, {"fp16"})) {
    check_spec_fits(spec, static_cast<int>(checkpoint->config().num_layers),
                    static_cast<int>(checkpoint->config().head_dim));
    specs.push_back(spec.text);
  }
  check_arg(options.gguf.empty() || is_gguf(options.gguf),
            "--gguf " + options.gguf + " is not a file");
  const std::string gguf = options.gguf.empty() && is_gguf(model) ? model : options.gguf;
  const Json request = {{"program", std::filesystem::read_symlink("/proc/self/exe").string()},
                        {"model", model},
                        {"gguf", gguf},
                        {"threads", common.threads > 0 ? common.threads : num_available_cores()},
                        {"repetitions", bench.repetitions},
                        {"tests", tests_of(bench)},
                        {"depths", bench.depths},
                        {"batches", bench.batches},
                        {"kv", common.preset.empty() ? specs : Json::array()},  // else the preset's
                        {"precision", precision_of(common) == Precision::kBF16 ? "bf16" : "f32"},
                        {"ubatch", common.ubatch},
                        {"seed", common.seed},
                        {"flags", own_flags(common)},
                        {"output", options.output},
                        {"json", common.json},
                        {"quiet", common.quiet}};
  become_python("bench --baseline", "kvquant.baselines", {request.dump()});
}

}  // namespace kvquant::cli
