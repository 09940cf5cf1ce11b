// What a grid asks for besides speed: the perplexity of its specs, with one or several
// calibrations, and what every layer loses by itself. docs/sweeps.md has the format.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace kvquant {

struct SweepCalibration {
  std::string name;                    // letters, digits and a few signs: part of file names
  std::vector<std::string> arguments;  // of the command calibrate: "--codebook=lloyd"
};

struct SweepQuality {
  std::string file;                            // text; empty: the sample text
  int64_t context = 0;                         // tokens of a window; 0: the default of perplexity
  int64_t windows = 0;                         // at most; 0: all
  std::vector<SweepCalibration> calibrations;  // none: that of the sweep, if any
  std::vector<std::string> sensitivity;        // arguments of allocate; none: not asked for
};

// The key "quality" of a grid that parse_grid reads; nothing where there is none. Files are
// relative to the folder of `path`. Throws FormatError with the path to the key.
std::optional<SweepQuality> parse_quality(const std::string& text, const std::string& path);

}  // namespace kvquant
