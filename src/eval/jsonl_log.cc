#include "eval/jsonl_log.h"

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "base/file.h"
#include "kvquant/error.h"

namespace kvquant {
namespace {

[[noreturn]] void throw_write_error(const std::string& path) {
  const int code = errno;
  const std::string message = "cannot write " + path + ": " + std::strerror(code);
  if (code == ENOSPC || code == EDQUOT) throw OutOfMemory(message);
  throw IoError(message);
}

}  // namespace

JsonlLog::JsonlLog(const std::string& path, const LineReader& read_line) : path_(path) {
  if (std::filesystem::exists(path)) read(read_line);
  errno = 0;
  file_.open(path, std::ios::app | std::ios::binary);
  if (!file_) throw_write_error(path);
}

void JsonlLog::read(const LineReader& read_line) {
  const std::string text = read_text(path_);
  const size_t last = text.rfind('\n');
  const size_t whole = last == std::string::npos ? 0 : last + 1;
  for (size_t begin = 0; begin < whole; ++num_read_) {
    const size_t end = text.find('\n', begin);
    read_line(text.substr(begin, end - begin), path_ + ":" + std::to_string(num_read_ + 1));
    begin = end + 1;
  }
  if (whole == text.size()) return;
  std::error_code error;
  std::filesystem::resize_file(path_, whole, error);
  if (error) throw IoError("cannot shorten " + path_ + ": " + error.message());
}

void JsonlLog::add(const nlohmann::ordered_json& line) {
  if (path_.empty()) return;
  errno = 0;
  file_ << line.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) << '\n'
        << std::flush;
  if (!file_) throw_write_error(path_);
}

}  // namespace kvquant
