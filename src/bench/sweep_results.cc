#include "bench/sweep_results.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <vector>

#include "base/file.h"
#include "base/hash.h"
#include "kvquant/error.h"

namespace kvquant {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxName = 160;
constexpr const char* kFailed = ".failed.json";

std::string dump(const Json& document) {
  return document.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

bool ends_with(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

// A document of a sweep. Throws FormatError saying why it is none.
Json parse_result(const std::string& path) {
  const Json document = Json::parse(read_text(path), nullptr, false);
  const auto fail = [&](const std::string& why) -> void {
    throw FormatError(path + ": " + why + ": move it away to measure this configuration again");
  };
  if (!document.is_object() || !document.contains("schema")) fail("not a result of a sweep");
  if (document["schema"] != kSweepSchema) {
    fail(fmt::format("schema {}, but results here have {}", document["schema"].dump(),
                     kSweepSchema));
  }
  const bool is_sweep = document.value("command", Json()) == "sweep" &&
                        document.contains("results") && document["results"].is_array() &&
                        document["results"].size() == 1 && document["results"][0].is_object();
  if (!is_sweep) fail("not a result of a sweep");
  return document;
}

Json index_line(const std::string& file, const Json& document) {
  const Json& result = document["results"][0];
  Json line = {{"file", file}};
  for (const char* key : {"name", "status", "reason", "spec", "spec_resolved", "n_prompt", "batch",
                          "n_gen", "prefill_tokens_per_s", "decode_tokens_per_s", "cache_bytes"}) {
    if (result.contains(key)) line[key] = result[key];
  }
  if (document.contains("model") && document["model"].is_object()) {
    line["model"] = document["model"].value("name", Json());
    line["model_fingerprint"] = document["model"].value("fingerprint", Json());
  }
  if (document.contains("machine") && document["machine"].is_object()) {
    line["commit"] = document["machine"].value("commit", Json());
  }
  return line;
}

}  // namespace

std::string result_stem(const std::string& name, const Json& configuration) {
  Hash64 hash;
  hash.add_text(name);
  hash.add_text(configuration.dump(-1, ' ', true, Json::error_handler_t::replace));
  std::string stem = name.substr(0, kMaxName);
  std::replace_if(
      stem.begin(), stem.end(),
      [](char c) {
        return std::isalnum(static_cast<unsigned char>(c)) == 0 &&
               std::strchr("_-+=,.%:", c) == nullptr;
      },
      '_');
  return stem + "-" + hash.hex().substr(0, 8);
}

SweepResults::SweepResults(const std::string& folder) : folder_(folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  const std::string message = fmt::format("can't make {}: {}", folder, error.message());
  if (error == std::errc::no_space_on_device) throw OutOfMemory(message);
  if (error) throw IoError(message);
  check_writable(folder + "/index.jsonl");
}

std::string SweepResults::path(const std::string& stem) const {
  return folder_ + "/" + stem + ".json";
}

ResultState SweepResults::state(const std::string& stem) const {
  if (!fs::exists(path(stem))) return ResultState::kMissing;
  parse_result(path(stem));
  return ResultState::kFinished;
}

Json SweepResults::read(const std::string& stem) const { return parse_result(path(stem)); }

void SweepResults::add(const std::string& stem, const Json& document) const {
  create_file_atomic(path(stem), dump(document));
  unlink((folder_ + "/" + stem + kFailed).c_str());
}

void SweepResults::add_failure(const std::string& stem, const Json& document) const {
  write_file_atomic(folder_ + "/" + stem + kFailed, dump(document));
}

void SweepResults::write_index() const {
  std::vector<std::string> files;
  for (const auto& entry : fs::directory_iterator(folder_)) {
    const std::string file = entry.path().filename().string();
    if (file[0] != '.' && ends_with(file, ".json")) files.push_back(file);
  }
  std::sort(files.begin(), files.end());
  std::string lines;
  for (const auto& file : files) {
    try {
      const Json line = index_line(file, parse_result(folder_ + "/" + file));
      lines += line.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
    } catch (const FormatError&) {
      continue;  // of another command or schema: none of ours
    }
  }
  write_file_atomic(folder_ + "/index.jsonl", lines);
}

}  // namespace kvquant
