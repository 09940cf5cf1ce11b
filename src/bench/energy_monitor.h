// Energy of what runs between two moments, of the whole machine: counters see every process. Where
// there is no counter there is no figure, unless the caller assumes a power, and then it is called
// assumed.
#pragma once

#include <condition_variable>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/timer.h"
#include "bench/carbon.h"
#include "bench/energy_counter.h"

namespace kvquant {

enum class EnergyKind { kMeasured, kAssumed, kNotMeasured };
const char* kind_name(EnergyKind kind);  // "measured", "assumed", "not measured"

struct EnergyReading {
  struct Part {
    std::string counter;
    EnergyPart part = EnergyPart::kCpu;
    double joules = 0;
  };

  EnergyKind kind = EnergyKind::kNotMeasured;
  std::string note;  // counters, or the assumed power, or why there is no figure
  double duration_s = 0;
  // Unset where nothing was measured or assumed.
  std::optional<double> energy_joules = {}, avg_power_watts = {}, carbon_kg = {};
  std::optional<double> idle_joules =
      {};                        // of them, what an idle machine takes; after measure_idle
  std::vector<Part> parts = {};  // measured, per counter
};

// "12.3 J, 4.5 W (measured by rapl package-0)", "12 J, 65 W (assumed power of 65 W, not measured)",
// "not measured (rapl: ...)".
std::string describe(const EnergyReading& reading);

// Of two stretches of time together. A sum with a part without a figure has none.
void add(std::optional<EnergyReading>& sum, const EnergyReading& more);

struct EnergyOptions {
  EnergySources sources = {};
  std::optional<double> assume_power_watts = {};  // where no counter can be read
  double carbon_kg_per_kwh = carbon_region("world").kg_per_kwh;
  double sample_interval_s = 1;
};

// Reads all counters, also in between, on a thread of its own, so that none wraps around unseen.
// Thread-safe.
class EnergyMeter {
 public:
  struct Moment {
    double seconds = 0;
    std::vector<double> joules;  // per counter
  };

  // Throws std::invalid_argument for a negative or infinite power, intensity or interval.
  explicit EnergyMeter(const EnergyOptions& options);
  ~EnergyMeter();
  EnergyMeter(const EnergyMeter&) = delete;
  EnergyMeter& operator=(const EnergyMeter&) = delete;

  Moment now();
  EnergyReading between(const Moment& begin, const Moment& end) const;

  std::vector<std::string> counter_names() const;
  const std::vector<std::string>& missing() const { return found_.missing; }
  const EnergyOptions& options() const { return options_; }
  int64_t num_readings() const;  // so far, those in between included

  // Waits that long while the machine does nothing else, and from then on readings say what an
  // idle machine would have taken. Watts; nothing without counters.
  std::optional<double> measure_idle(double seconds);

 private:
  void sample();

  EnergyOptions options_;
  EnergyCounters found_;
  Timer timer_;
  mutable std::mutex mutex_;  // of all below and of the counters
  std::condition_variable wake_;
  bool stopping_ = false;
  int64_t num_readings_ = 0;
  std::string failure_;  // of a counter that could not be read any more
  std::optional<double> idle_watts_;
  std::thread sampler_;  // last: it uses the others
};

// A stopwatch of energy. start and stop take turns; one thread.
class EnergyMonitor {
 public:
  explicit EnergyMonitor(const EnergyOptions& options = {}) : meter_(options) {}

  void start();          // throws std::invalid_argument when it was started already
  EnergyReading stop();  // throws std::invalid_argument when it was not
  EnergyMeter& meter() { return meter_; }

 private:
  EnergyMeter meter_;
  std::optional<EnergyMeter::Moment> begin_;
};

}  // namespace kvquant
