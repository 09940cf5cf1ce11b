#include "bench/energy_profiler.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <filesystem>
#include <system_error>
#include <utility>

#include "base/check.h"
#include "base/file.h"
#include "bench/flat_rows.h"
#include "kvquant/error.h"

namespace kvquant {
namespace {

using Record = DetailedEnergyProfiler::Record;

Json or_null(const std::optional<double>& value) { return value ? Json(*value) : Json(nullptr); }

Json operation_fields(const std::string& operation, const std::vector<const Record*>& records) {
  std::optional<EnergyReading> sum;
  int64_t tokens = 0;
  for (const Record* record : records) {
    add(sum, record->reading);
    tokens += record->tokens;
  }
  Json out = {{"operation", operation}, {"count", records.size()}, {"tokens", tokens}};
  out.update(energy_fields(*sum));
  out["joules_per_token"] = tokens > 0 && sum->energy_joules
                                ? Json(*sum->energy_joules / static_cast<double>(tokens))
                                : Json(nullptr);
  return out;
}

}  // namespace

Json energy_fields(const EnergyReading& reading) {
  return {{"duration_s", reading.duration_s},
          {"energy", kind_name(reading.kind)},
          {"energy_note", reading.note},
          {"energy_joules", or_null(reading.energy_joules)},
          {"avg_power_watts", or_null(reading.avg_power_watts)},
          {"idle_joules", or_null(reading.idle_joules)},
          {"carbon_kg", or_null(reading.carbon_kg)}};
}

std::string utc_timestamp() {
  return fmt::format("{:%Y-%m-%dT%H:%M:%S}", fmt::gmtime(std::time(nullptr)));
}

DetailedEnergyProfiler::Scope::Scope(DetailedEnergyProfiler& profiler, const std::string& operation)
    : profiler_(&profiler),
      record_{.timestamp = utc_timestamp(), .operation = operation, .reading = {}},
      begin_(profiler.meter_.now()) {}

DetailedEnergyProfiler::Scope::Scope(Scope&& other) noexcept
    : profiler_(std::exchange(other.profiler_, nullptr)),
      record_(std::move(other.record_)),
      begin_(std::move(other.begin_)) {}

DetailedEnergyProfiler::Scope::~Scope() { finish(); }

void DetailedEnergyProfiler::Scope::set_tokens(int64_t count) {
  check_arg(count >= 0, fmt::format("energy: {} tokens", count));
  record_.tokens = count;
}

void DetailedEnergyProfiler::Scope::finish() {
  DetailedEnergyProfiler* profiler = std::exchange(profiler_, nullptr);
  if (profiler == nullptr) return;
  record_.reading = profiler->meter_.between(begin_, profiler->meter_.now());
  const std::lock_guard lock(profiler->mutex_);
  profiler->records_.push_back(record_);
}

DetailedEnergyProfiler::DetailedEnergyProfiler(const std::string& output_dir,
                                               const EnergyOptions& options)
    : output_dir_(output_dir), meter_(options) {
  std::error_code error;
  std::filesystem::create_directories(output_dir, error);
  if (error) throw IoError(fmt::format("can't make {}: {}", output_dir, error.message()));
  check_writable(output_dir + "/energy_summary.json");
}

DetailedEnergyProfiler::Scope DetailedEnergyProfiler::profile(const std::string& operation) {
  const bool is_name = !operation.empty() &&
                       std::none_of(operation.begin(), operation.end(),
                                    [](char c) { return static_cast<unsigned char>(c) < 0x20; });
  check_arg(is_name, "energy: an operation needs a name in one line");
  return {*this, operation};
}

std::vector<Record> DetailedEnergyProfiler::records() const {
  const std::lock_guard lock(mutex_);
  return records_;
}

Json DetailedEnergyProfiler::summary() const {
  const std::vector<Record> all = records();
  std::vector<std::pair<std::string, std::vector<const Record*>>> operations;
  for (const Record& record : all) {
    auto it = std::find_if(operations.begin(), operations.end(),
                           [&](const auto& known) { return known.first == record.operation; });
    if (it == operations.end()) it = operations.insert(it, {record.operation, {}});
    it->second.push_back(&record);
  }
  Json document = make_document("energy", nullptr,
                                {{"carbon_kg_per_kwh", meter_.options().carbon_kg_per_kwh},
                                 {"counters", meter_.counter_names()},
                                 {"missing_counters", meter_.missing()}});
  for (const auto& [name, records] : operations) {
    document["results"].push_back(operation_fields(name, records));
  }
  return document;
}

std::string DetailedEnergyProfiler::csv() const {
  std::vector<Json> rows;
  for (const Record& record : records()) {
    const EnergyReading& reading = record.reading;
    rows.push_back({{"timestamp", record.timestamp},
                    {"operation", record.operation},
                    {"duration_sec", reading.duration_s},
                    {"energy_joules", or_null(reading.energy_joules)},
                    {"avg_power_watts", or_null(reading.avg_power_watts)},
                    {"carbon_kg", or_null(reading.carbon_kg)}});
  }
  if (!rows.empty()) return to_csv(rows);
  return "timestamp,operation,duration_sec,energy_joules,avg_power_watts,carbon_kg\n";
}

void DetailedEnergyProfiler::save_summary() const {
  const std::string text = summary().dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
  write_file_atomic(output_dir_ + "/energy_summary.json", text);
  const bool is_assumed =
      meter_.options().assume_power_watts.has_value() && meter_.counter_names().empty();
  write_file_atomic(output_dir_ + (is_assumed ? "/energy_assumed.csv" : "/energy_measurements.csv"),
                    csv());
}

}  // namespace kvquant
