// What tuning has measured so far, one JSON object a line, so that a run that was killed goes on
// where it stopped:
// {"run":"…","spec":"…","window":3,"tokens":2047,"nll":2.9,"baseline_nll":2.9,"delta":0.01,
//  "delta_sd":0.2,"kl":0.01,"top1":0.95,"cache_bytes":1048576,"true_bits":4.5}
// `run` is a hash of what decides figures but is not in the line: model, calibration, text,
// arithmetic.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>

#include "eval/jsonl_log.h"

namespace kvquant {

// One spec on one window. Means over its scored tokens, in nats; the delta is of the negative
// log-likelihood to that with fp16.
struct WindowScore {
  int64_t tokens = 0;
  double nll = 0, baseline_nll = 0;
  double delta = 0, delta_sd = 0;
  double kl = 0, top1 = 0;
  int64_t cache_bytes = 0;
  double true_bits = 0;
  friend bool operator==(const WindowScore&, const WindowScore&) = default;
};

class TuneLog {
 public:
  TuneLog() = default;  // in memory only
  // Reads the file if it is there, and takes an unfinished last line off it. Throws IoError,
  // FormatError with the line's number.
  explicit TuneLog(const std::string& path);

  // Null when there is none. Valid until the next add.
  const WindowScore* find(const std::string& run, const std::string& spec, int64_t window) const;
  // On disk when it returns. Throws IoError, OutOfMemory where the disk is full.
  void add(const std::string& run, const std::string& spec, int64_t window,
           const WindowScore& score);

  int64_t num_read() const { return file_.num_read(); }  // lines that were there at first

 private:
  void read(const std::string& line, const std::string& place);

  std::map<std::pair<std::string, int64_t>, WindowScore> scores_;
  JsonlLog file_;
};

}  // namespace kvquant
