// Any bytes as a calibration file: parsed, or refused with FormatError. What was accepted fits its
// own model, and no other.
#include "quant/calibration.h"

#include <cstdlib>
#include <stdexcept>

#include "kvquant/error.h"

// Ranges of a compact file may be of one outlier percent in eight.
constexpr int64_t kMostGrowth = 8;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace kvquant;
  try {
    const Calibration calibration = parse_calibration(std::as_bytes(std::span(data, size)), "fuzz");
    if (static_cast<int64_t>(calibration.layers.size()) != calibration.info.shape.num_layers ||
        memory_bytes(calibration) > kMostGrowth * static_cast<int64_t>(size)) {
      std::abort();
    }
    CalibrationShape shape = calibration.info.shape;
    check_calibration_fits(calibration, calibration.info.model_fingerprint, shape);
    ++shape.num_layers;
    try {
      check_calibration_fits(calibration, calibration.info.model_fingerprint, shape);
      std::abort();
    } catch (const std::invalid_argument&) {
    }
  } catch (const FormatError&) {
  }
  return 0;
}
