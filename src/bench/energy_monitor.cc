#include "bench/energy_monitor.h"

#include <fmt/format.h>

#include <chrono>
#include <cmath>
#include <utility>

#include "base/check.h"
#include "kvquant/error.h"

namespace kvquant {
namespace {

void check_options(const EnergyOptions& options) {
  const auto is_amount = [](double x) { return std::isfinite(x) && x >= 0; };
  const double power = options.assume_power_watts.value_or(0);
  check_arg(is_amount(power), fmt::format("energy: an assumed power of {} W", power));
  check_arg(is_amount(options.carbon_kg_per_kwh),
            fmt::format("energy: a carbon intensity of {} kg/kWh", options.carbon_kg_per_kwh));
  check_arg(is_amount(options.sample_interval_s) && options.sample_interval_s > 0,
            fmt::format("energy: a sample every {} s", options.sample_interval_s));
}

}  // namespace

const char* kind_name(EnergyKind kind) {
  switch (kind) {
    case EnergyKind::kMeasured: return "measured";
    case EnergyKind::kAssumed: return "assumed";
    case EnergyKind::kNotMeasured: return "not measured";
  }
  return "";
}

std::string describe(const EnergyReading& reading) {
  if (!reading.energy_joules) return fmt::format("not measured ({})", reading.note);
  return fmt::format("{:.4g} J, {:.4g} W on average ({})", *reading.energy_joules,
                     *reading.avg_power_watts, reading.note);
}

void add(std::optional<EnergyReading>& sum, const EnergyReading& more) {
  if (!sum) {
    sum = more;
    return;
  }
  sum->duration_s += more.duration_s;
  if (sum->kind != more.kind || !sum->energy_joules) {
    const std::string& why = more.energy_joules ? sum->note : more.note;
    *sum = {.note = why, .duration_s = sum->duration_s, .parts = {}};
    return;
  }
  *sum->energy_joules += *more.energy_joules;
  *sum->carbon_kg += *more.carbon_kg;
  sum->avg_power_watts = sum->duration_s > 0 ? *sum->energy_joules / sum->duration_s : 0;
  if (sum->idle_joules) *sum->idle_joules += more.idle_joules.value_or(0);
  for (size_t i = 0; i < sum->parts.size(); ++i) sum->parts[i].joules += more.parts[i].joules;
}

EnergyMeter::EnergyMeter(const EnergyOptions& options) : options_(options) {
  check_options(options);
  found_ = find_energy_counters(options.sources);
  if (!found_.counters.empty()) sampler_ = std::thread([this] { sample(); });
}

EnergyMeter::~EnergyMeter() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  if (sampler_.joinable()) sampler_.join();
}

void EnergyMeter::sample() {
  const std::chrono::duration<double> interval(options_.sample_interval_s);
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      if (wake_.wait_for(lock, interval, [this] { return stopping_; })) return;
    }
    now();
  }
}

EnergyMeter::Moment EnergyMeter::now() {
  const std::lock_guard lock(mutex_);
  Moment moment;
  ++num_readings_;
  moment.seconds = timer_.seconds();
  try {
    for (const auto& counter : found_.counters) moment.joules.push_back(counter->joules());
  } catch (const DeviceError& error) {
    failure_ = error.what();
    moment.joules.clear();
  }
  return moment;
}

EnergyReading EnergyMeter::between(const Moment& begin, const Moment& end) const {
  const std::lock_guard lock(mutex_);
  EnergyReading reading;
  reading.duration_s = end.seconds - begin.seconds;
  const size_t count = found_.counters.size();
  if (count > 0 && failure_.empty() && begin.joules.size() == count && end.joules.size() == count) {
    reading.kind = EnergyKind::kMeasured;
    std::vector<std::string> names;
    reading.energy_joules = 0;
    for (size_t i = 0; i < count; ++i) {
      const EnergyCounter& counter = *found_.counters[i];
      reading.parts.push_back({counter.name(), counter.part(), end.joules[i] - begin.joules[i]});
      *reading.energy_joules += reading.parts.back().joules;
      names.push_back(counter.name());
    }
    reading.note = fmt::format("measured by {}", fmt::join(names, ", "));
    if (idle_watts_) reading.idle_joules = *idle_watts_ * reading.duration_s;
  } else if (options_.assume_power_watts) {
    reading.kind = EnergyKind::kAssumed;
    reading.energy_joules = *options_.assume_power_watts * reading.duration_s;
    reading.note =
        fmt::format("assumed power of {:g} W, not measured", *options_.assume_power_watts);
  } else {
    reading.note = failure_.empty() ? fmt::format("{}", fmt::join(found_.missing, "; ")) : failure_;
    return reading;
  }
  reading.avg_power_watts =
      reading.duration_s > 0 ? *reading.energy_joules / reading.duration_s : 0;
  reading.carbon_kg = *reading.energy_joules / kJoulesPerKwh * options_.carbon_kg_per_kwh;
  return reading;
}

std::vector<std::string> EnergyMeter::counter_names() const {
  std::vector<std::string> names;
  for (const auto& counter : found_.counters) names.push_back(counter->name());
  return names;
}

int64_t EnergyMeter::num_readings() const {
  const std::lock_guard lock(mutex_);
  return num_readings_;
}

std::optional<double> EnergyMeter::measure_idle(double seconds) {
  check_arg(std::isfinite(seconds) && seconds > 0,
            fmt::format("energy: an idle machine for {} s", seconds));
  const Moment begin = now();
  std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
  const EnergyReading reading = between(begin, now());
  if (reading.kind != EnergyKind::kMeasured) return std::nullopt;
  const std::lock_guard lock(mutex_);
  idle_watts_ = reading.avg_power_watts;
  return idle_watts_;
}

void EnergyMonitor::start() {
  check_arg(!begin_, "EnergyMonitor: it was started already: stop it first");
  begin_ = meter_.now();
}

EnergyReading EnergyMonitor::stop() {
  check_arg(begin_.has_value(), "EnergyMonitor: it is not running: start it first");
  const EnergyMeter::Moment begin = std::exchange(begin_, std::nullopt).value();
  return meter_.between(begin, meter_.now());
}

}  // namespace kvquant
