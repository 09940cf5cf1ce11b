#include "bench/result.h"

#include <dnnl.h>
#include <fmt/format.h>
#include <sys/resource.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <fstream>

#include "base/backend.h"
#include "commit.h"

namespace kvquant {
namespace {

std::string cpu_name() {
  std::ifstream file("/proc/cpuinfo");
  std::string line;
  while (std::getline(file, line)) {
    if (line.rfind("model name", 0) == 0) {
      const size_t colon = line.find(": ");
      if (colon != std::string::npos) return line.substr(colon + 2);
    }
  }
  return "unknown";
}

std::string compiler_name() {
#ifdef __clang__
  return __VERSION__;  // "Clang 14.0.6"
#else
  return std::string("g++ ") + __VERSION__;
#endif
}

}  // namespace

std::string version() { return std::string(KVQUANT_VERSION) + " (" + KVQUANT_COMMIT + ")"; }

int64_t peak_rss_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return int64_t{usage.ru_maxrss} * 1024;
}

Json machine_info() {
  Json backends = Json::array();
  for (const Backend backend : available_backends()) backends.push_back(backend_name(backend));
  utsname system{};
  uname(&system);
  return {{"cpu", cpu_name()},
          {"cores", num_available_cores()},
          {"memory_bytes", int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE)},
          {"system", std::string(system.sysname) + " " + system.release + " " + system.machine},
          {"backends", backends},
          {"backend", backend_name(best_backend())},
          {"version", KVQUANT_VERSION},
          {"commit", KVQUANT_COMMIT},
          {"compiler", compiler_name()},
          {"onednn", fmt::format("{}.{}.{}", dnnl_version()->major, dnnl_version()->minor,
                                 dnnl_version()->patch)}};
}

Json model_info(const Model& model) {
  const ModelConfig& config = model.config();
  return {{"name", config.name},
          {"path", model.path()},
          {"architecture", config.architecture},
          {"fingerprint", model.checkpoint().fingerprint()},
          {"parameters", model.checkpoint().num_parameters()},
          {"num_layers", config.num_layers},
          {"hidden", config.hidden},
          {"num_q_heads", config.num_q_heads},
          {"num_kv_heads", config.num_kv_heads},
          {"head_dim", config.head_dim},
          {"vocab_size", config.vocab_size},
          {"max_context", config.max_context}};
}

Json make_document(const std::string& command, const Json& model, const Json& config) {
  return {{"schema", 1},      {"command", command},        {"model", model},
          {"config", config}, {"machine", machine_info()}, {"results", Json::array()}};
}

Json spec_fields(const CacheSpec& spec, CacheMode mode) {
  return {{"spec", spec.text},
          {"spec_resolved", resolved(with_windows(spec, mode))},
          {"mode", mode == CacheMode::kStrict ? "strict" : "as-served"}};
}

}  // namespace kvquant
