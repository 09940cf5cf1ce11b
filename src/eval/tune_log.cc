#include "eval/tune_log.h"

#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>

#include "base/file.h"
#include "formats/json_fields.h"
#include "kvquant/error.h"

namespace kvquant {
namespace {

std::pair<std::string, int64_t> key_of(const std::string& run, const std::string& spec,
                                       int64_t window) {
  return {run + "\n" + spec, window};
}

[[noreturn]] void throw_write_error(const std::string& path) {
  const int code = errno;
  const std::string message = "cannot write " + path + ": " + std::strerror(code);
  if (code == ENOSPC || code == EDQUOT) throw OutOfMemory(message);
  throw IoError(message);
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

TuneLog::TuneLog(const std::string& path) : path_(path) {
  if (std::filesystem::exists(path)) read();
  errno = 0;
  file_.open(path, std::ios::app | std::ios::binary);
  if (!file_) throw_write_error(path);
}

void TuneLog::read() {
  const std::string text = read_text(path_);
  const size_t last = text.rfind('\n');
  const size_t whole = last == std::string::npos ? 0 : last + 1;
  for (size_t begin = 0; begin < whole; ++num_read_) {
    const size_t end = text.find('\n', begin);
    const std::string where = path_ + ":" + std::to_string(num_read_ + 1);
    const Json line = parse_json_object(text.substr(begin, end - begin), where);
    constexpr double kAny = -1e300;
    const WindowScore score{.tokens = require_integer(line, "tokens", where),
                            .nll = figure(line, "nll", 0, where),
                            .baseline_nll = figure(line, "baseline_nll", 0, where),
                            .delta = figure(line, "delta", kAny, where),
                            .delta_sd = figure(line, "delta_sd", 0, where),
                            .kl = figure(line, "kl", kAny, where),
                            .top1 = figure(line, "top1", 0, where),
                            .cache_bytes = require_integer(line, "cache_bytes", where),
                            .true_bits = figure(line, "true_bits", 0, where)};
    if (score.tokens < 1) throw FormatError(where + ": tokens is not positive");
    scores_[key_of(name(line, "run", where), name(line, "spec", where),
                   require_integer(line, "window", where))] = score;
    begin = end + 1;
  }
  if (whole == text.size()) return;
  std::error_code error;
  std::filesystem::resize_file(path_, whole, error);
  if (error) throw IoError("cannot shorten " + path_ + ": " + error.message());
}

const WindowScore* TuneLog::find(const std::string& run, const std::string& spec,
                                 int64_t window) const {
  const auto found = scores_.find(key_of(run, spec, window));
  return found == scores_.end() ? nullptr : &found->second;
}

void TuneLog::add(const std::string& run, const std::string& spec, int64_t window,
                  const WindowScore& score) {
  scores_[key_of(run, spec, window)] = score;
  if (path_.empty()) return;
  const nlohmann::ordered_json line = {{"run", run},
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
                                       {"true_bits", score.true_bits}};
  errno = 0;
  file_ << line.dump() << '\n' << std::flush;
  if (!file_) throw_write_error(path_);
}

}  // namespace kvquant
