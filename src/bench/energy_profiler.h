// Energy per named operation, written as a summary (JSON) and a row per measurement (CSV).
#pragma once

#include <mutex>
#include <string>
#include <vector>

#include "bench/energy_monitor.h"
#include "bench/result.h"

namespace kvquant {

// {"energy": "measured" | "assumed" | "not measured", "energy_note", "energy_joules", …}; figures
// that there are not are null.
Json energy_fields(const EnergyReading& reading);

// "2026-11-22T18:40:06", of now in UTC.
std::string utc_timestamp();

// Thread-safe: operations may nest and overlap; each gets what the whole machine took meanwhile.
class DetailedEnergyProfiler {
 public:
  struct Record {
    std::string timestamp;  // of its begin, UTC
    std::string operation;
    int64_t tokens = 0;  // 0: none were set
    EnergyReading reading;
  };

  // From profile() to its end. Must not outlive the profiler.
  class Scope {
   public:
    Scope(Scope&& other) noexcept;
    Scope& operator=(Scope&&) = delete;
    ~Scope();
    void set_tokens(int64_t count);  // throws std::invalid_argument below 0
    void finish();                   // once; later calls do nothing

   private:
    friend class DetailedEnergyProfiler;
    Scope(DetailedEnergyProfiler& profiler, const std::string& operation);

    DetailedEnergyProfiler* profiler_;  // null: finished
    Record record_;
    EnergyMeter::Moment begin_;
  };

  // Makes the folder when it isn't there. Throws IoError when it can't be written to.
  explicit DetailedEnergyProfiler(const std::string& output_dir, const EnergyOptions& options = {});

  // Throws std::invalid_argument for an empty name and for one with control characters.
  Scope profile(const std::string& operation);
  std::vector<Record> records() const;

  // energy_summary.json: a document whose results are the operations in the order of their first
  // end, with sums over their records. energy_measurements.csv: "timestamp, operation,
  // duration_sec, energy_joules, avg_power_watts, carbon_kg", empty where nothing was measured;
  // where power was assumed its name is energy_assumed.csv. Throws IoError, OutOfMemory.
  Json summary() const;
  std::string csv() const;
  void save_summary() const;

 private:
  std::string output_dir_;
  EnergyMeter meter_;
  mutable std::mutex mutex_;
  std::vector<Record> records_;
};

}  // namespace kvquant
