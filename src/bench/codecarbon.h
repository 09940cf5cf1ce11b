// A row as CodeCarbon 2.x appends it to its emissions.csv, for programs that read those:
// https://mlco2.github.io/codecarbon/output.html
#pragma once

#include <string>

#include "bench/energy_monitor.h"

namespace kvquant {

struct CodeCarbonRun {
  std::string project_name = "kvquant";
  std::string timestamp;         // of its end
  std::string country_iso_code;  // three letters; empty: not known
};

// Columns that kvquant doesn't know are empty; tracking_mode is "machine", or "assumed" where the
// power was. Throws std::invalid_argument for a reading without a figure.
std::string codecarbon_row(const EnergyReading& reading, const CodeCarbonRun& run);
extern const char* const kCodeCarbonHeader;

// Appends to `path`, with the header when the file is new or empty. Throws FormatError when it
// begins with another header, IoError, OutOfMemory; then the file is what it was before.
void append_codecarbon(const std::string& path, const EnergyReading& reading,
                       const CodeCarbonRun& run);

}  // namespace kvquant
