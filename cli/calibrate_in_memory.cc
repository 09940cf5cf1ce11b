#include "cli/calibrate_in_memory.h"

#include <fmt/format.h>

#include <new>

#include "kvquant/error.h"

namespace kvquant::cli {

Calibration calibrate_in_memory(Model& model, const std::vector<TokenizedText>& texts,
                                const CalibrateOptions& options, const Progress& progress) {
  const auto message = [&](const char* what) {
    return fmt::format(
        "OOM during calibration: {}: use fewer --samples than {} or a --seq-len shorter than {}",
        what, options.num_samples, options.seq_len);
  };
  try {
    return calibrate(model, texts, options, progress);
  } catch (const OutOfMemory& error) {
    throw OutOfMemory(message(error.what()));
  } catch (const std::bad_alloc&) {
    throw OutOfMemory(message("out of memory"));
  }
}

}  // namespace kvquant::cli
