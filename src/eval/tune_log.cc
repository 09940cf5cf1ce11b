#include "eval/tune_log.h"

#include <cmath>

#include "formats/json_fields.h"
#include "kvquant/error.h"

namespace kvquant {
namespace {

std::pair<std::string, int64_t> key_of(const std::string& run, const std::string& spec,
                                       int64_t window) {
  return {run + "\n" + spec, window};
}

double figure(const Json& line, const char* key, double least, const std::string& where) {
  const auto value = json_number(line, key, where);
  if (!value || !std::isfinite(*value) || *value < least) {
    throw FormatError(where + ": " + key + " is missing or no number in its range");
  }
  return *value;
}

std::string name(const Json& line, const char* key, const std::string& where) {
  const auto text = json_text(line, key, where);
  if (!text) throw FormatError(where + ": " + key + " is missing");
  return *text;
}

}  // namespace

TuneLog::TuneLog(const std::string& path)
    : file_(path, [&](const std::string& line, const std::string& place) { read(line, place); }) {}

void TuneLog::read(const std::string& text, const std::string& place) {
  const Json line = parse_json_object(text, place);
  constexpr double kAny = -1e300;
  const WindowScore score{.tokens = require_integer(line, "tokens", place),
                          .nll = figure(line, "nll", 0, place),
                          .baseline_nll = figure(line, "baseline_nll", 0, place),
                          .delta = figure(line, "delta", kAny, place),
                          .delta_sd = figure(line, "delta_sd", 0, place),
                          .kl = figure(line, "kl", kAny, place),
                          .top1 = figure(line, "top1", 0, place),
                          .cache_bytes = require_integer(line, "cache_bytes", place),
                          .true_bits = figure(line, "true_bits", 0, place)};
  if (score.tokens < 1) throw FormatError(place + ": tokens is not positive");
  scores_[key_of(name(line, "run", place), name(line, "spec", place),
                 require_integer(line, "window", place))] = score;
}

const WindowScore* TuneLog::find(const std::string& run, const std::string& spec,
                                 int64_t window) const {
  const auto found = scores_.find(key_of(run, spec, window));
  return found == scores_.end() ? nullptr : &found->second;
}

void TuneLog::add(const std::string& run, const std::string& spec, int64_t window,
                  const WindowScore& score) {
  scores_[key_of(run, spec, window)] = score;
  file_.add({{"run", run},
             {"spec", spec},
             {"window", window},
             {"tokens", score.tokens},
             {"nll", score.nll},
             {"baseline_nll", score.baseline_nll},
             {"delta", score.delta},
             {"delta_sd", score.delta_sd},
             {"kl", score.kl},
             {"top1", score.top1},
             {"cache_bytes", score.cache_bytes},
             {"true_bits", score.true_bits}});
}

}  // namespace kvquant
