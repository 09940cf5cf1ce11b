// A file of JSON lines that a run appends its results to, so that one that was killed goes on where
// it stopped.
#pragma once

#include <cstdint>
#include <fstream>
#include <functional>
#include <string>

#include <nlohmann/json.hpp>

namespace kvquant {

class JsonlLog {
 public:
  // `place` is "path:12". What it throws passes through.
  using LineReader = std::function<void(const std::string& line, const std::string& place)>;

  JsonlLog() = default;  // nowhere: add does nothing
  // Reads the file if it is there, and takes an unfinished last line off it. Throws IoError.
  JsonlLog(const std::string& path, const LineReader& read_line);

  // On disk when it returns; what is not UTF-8 becomes U+FFFD. Throws IoError, OutOfMemory where
  // the disk is full.
  void add(const nlohmann::ordered_json& line);

  bool is_file() const { return !path_.empty(); }
  int64_t num_read() const { return num_read_; }  // lines that were there at first

 private:
  void read(const LineReader& read_line);

  std::string path_;
  std::ofstream file_;
  int64_t num_read_ = 0;
};

}  // namespace kvquant
