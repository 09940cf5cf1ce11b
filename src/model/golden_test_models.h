// The tiny models of tests/golden: a new folder is tested by being listed here.
#pragma once

#include <string>

namespace kvquant::test {

inline constexpr const char* kTinyModels[] = {
    "tiny_untied", "tiny_tied",   "tiny_mqa",    "tiny_sharded", "tiny_mistral", "tiny_qwen2",
    "tiny_qwen3",  "tiny_llama3", "tiny_linear", "tiny_dynamic", "tiny_yarn",
};

inline std::string golden_path(const std::string& name) {
  return KVQUANT_SOURCE_DIR "/tests/golden/" + name;
}

}  // namespace kvquant::test
