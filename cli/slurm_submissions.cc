#include "cli/slurm_submissions.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <set>
#include <utility>

#include "base/file.h"
#include "bench/result.h"
#include "kvquant/error.h"

namespace kvquant::cli {
namespace {

namespace fs = std::filesystem;

std::string file_name(const SlurmSubmission& submission) {
  std::string time = submission.time;
  std::erase_if(time, [](char c) { return c == '-' || c == ':'; });
  const auto& [number, cluster] = submission.job;
  return "job_" + number + (cluster.empty() ? "" : "_" + cluster) + "_" + time + ".json";
}

SlurmSubmission read_submission(const std::string& path) {
  const Json document = Json::parse(read_text(path), nullptr, false);
  const auto field = [&](const char* key) {
    const auto it = document.find(key);
    if (it == document.end()) {
      throw FormatError(
          fmt::format("{}: {} is missing: move it away when its job has ended", path, key));
    }
    return *it;
  };
  try {
    return {{field("job"), field("cluster")}, field("submitted"), field("results")};
  } catch (const Json::type_error& error) {
    throw FormatError(fmt::format("{}: {}", path, error.what()));
  }
}

}  // namespace

void write_submission(const std::string& folder, const SlurmSubmission& submission) {
  const Json document = {{"job", submission.job.number},
                         {"cluster", submission.job.cluster},
                         {"submitted", submission.time},
                         {"results", submission.results}};
  const std::string path = folder + "/" + file_name(submission);
  if (!create_file_atomic(path, document.dump(2) + "\n")) {
    throw IoError(path + " was there already");
  }
}

std::vector<SlurmSubmission> read_submissions(const std::string& folder) {
  std::vector<SlurmSubmission> all;
  if (!fs::exists(folder)) return all;
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (name.rfind("job_", 0) != 0 || entry.path().extension() != ".json") continue;
    all.push_back(read_submission(entry.path().string()));
  }
  std::sort(all.begin(), all.end(), [](const SlurmSubmission& a, const SlurmSubmission& b) {
    return a.time > b.time;  // the youngest first
  });
  std::set<std::pair<std::string, std::string>> seen;
  std::erase_if(all, [&](const SlurmSubmission& submission) {
    return !seen.insert({submission.job.cluster, submission.job.number}).second;
  });
  std::reverse(all.begin(), all.end());
  return all;
}

}  // namespace kvquant::cli
