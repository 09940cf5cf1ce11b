// The embedded model's tokenizer, for tests of samples.
#pragma once

#include "base/file.h"
#include "eval/eval_tasks.h"
#include "model/model.h"

namespace kvquant::test {

inline const Tokenizer& embedded_tokenizer() {
  static const Model model = Model::load(KVQUANT_SOURCE_DIR "/assets/ref5m");
  return model.tokenizer();
}

inline std::string source_text(const std::string& path) {
  return read_text(std::string(KVQUANT_SOURCE_DIR "/") + path);
}

}  // namespace kvquant::test
