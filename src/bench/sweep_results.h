// The folder of a sweep's results: a JSON document per configuration, which appears whole and is
// never written again, and index.jsonl over them. Several processes may add to a folder at once.
#pragma once

#include <string>

#include "bench/result.h"

namespace kvquant {

constexpr int kSweepSchema = 1;

// "NAME-1a2b3c4d": the name of a configuration and the hash of all that decides its result. Names
// too long for a file, and characters that don't belong there, are cut out; the hash stays.
std::string result_stem(const std::string& name, const Json& configuration);

enum class ResultState { kMissing, kFinished };

class SweepResults {
 public:
  // Makes the folder when it isn't there. Throws IoError, OutOfMemory when it can't be written to.
  explicit SweepResults(const std::string& folder);

  std::string path(const std::string& stem) const;
  // Throws FormatError when there is a file that is no result of this schema.
  ResultState state(const std::string& stem) const;
  // Adds it unless there is one already, which then stays. Throws IoError, OutOfMemory.
  void add(const std::string& stem, const Json& document) const;
  Json read(const std::string& stem) const;

  // What went wrong with a configuration that will be tried again: STEM.failed.json, replaced by
  // the next failure and gone with the first result.
  void add_failure(const std::string& stem, const Json& document) const;

  // index.jsonl: a line per result and failure, by name. Files of other kinds are left out. Throws
  // as add does.
  void write_index() const;

 private:
  std::string folder_;
};

}  // namespace kvquant
