// src/bench/energy_monitor.h and energy_profiler.h in Python.
#include <nanobind/nanobind.h>
#include <nanobind/stl/filesystem.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bench/energy_profiler.h"
#include "bindings.h"

using namespace nanobind::literals;
namespace nb = nanobind;
using Path = std::filesystem::path;

namespace kvquant::python {
namespace {

using Profiler = DetailedEnergyProfiler;

EnergyOptions options_of(int gpu_id, std::optional<double> assume_power_watts,
                         std::optional<double> carbon_kg_per_kwh, const std::string& powercap,
                         const std::string& nvml) {
  EnergyOptions options;
  options.sources = {powercap, nvml, gpu_id};
  options.assume_power_watts = assume_power_watts;
  if (carbon_kg_per_kwh) options.carbon_kg_per_kwh = *carbon_kg_per_kwh;
  return options;
}

// `with profiler.profile(name) as scope`: the time counts from __enter__ on.
class ProfileScope {
 public:
  ProfileScope(Profiler& profiler, std::string operation)
      : profiler_(profiler), operation_(std::move(operation)) {}

  void enter() { scope_.emplace(profiler_.profile(operation_)); }
  void exit() { scope_.reset(); }
  void set_tokens(int64_t count) {
    if (!scope_) throw std::invalid_argument("set_tokens: outside of its with statement");
    scope_->set_tokens(count);
  }

 private:
  Profiler& profiler_;
  std::string operation_;
  std::optional<Profiler::Scope> scope_;
};

void bind_reading(nb::module_& module) {
  nb::class_<EnergyReading>(module, "EnergyReading",
                            "Energy of the whole machine over a time; None where it was neither\n"
                            "measured nor assumed.")
      .def_ro("duration_s", &EnergyReading::duration_s)
      .def_ro("energy_joules", &EnergyReading::energy_joules)
      .def_ro("avg_power_watts", &EnergyReading::avg_power_watts)
      .def_ro("carbon_kg", &EnergyReading::carbon_kg)
      .def_ro("idle_joules", &EnergyReading::idle_joules,
              "Of them, what an idle machine takes; after measure_idle.")
      .def_prop_ro(
          "kind", [](const EnergyReading& self) { return std::string(kind_name(self.kind)); },
          "'measured', 'assumed' or 'not measured'.")
      .def_ro("note", &EnergyReading::note, "By what, or why not.")
      .def("__repr__",
           [](const EnergyReading& self) { return "EnergyReading(" + describe(self) + ")"; });
}

void bind_monitor(nb::module_& module) {
  nb::class_<EnergyMonitor>(module, "EnergyMonitor", "A stopwatch of energy.")
      .def(nb::new_([](int gpu_id, std::optional<double> assume_power_watts,
                       std::optional<double> carbon_kg_per_kwh, const Path& powercap,
                       const Path& nvml) {
             return new EnergyMonitor(options_of(gpu_id, assume_power_watts, carbon_kg_per_kwh,
                                                 powercap.string(), nvml.string()));
           }),
           "gpu_id"_a = 0, "assume_power_watts"_a = nb::none(), "carbon_kg_per_kwh"_a = nb::none(),
           "powercap"_a = Path(EnergySources{}.powercap), "nvml"_a = Path(EnergySources{}.nvml),
           "gpu_id -1: no GPU. A power is assumed only where no counter can be read. The carbon\n"
           "intensity is the world's where none is given.")
      .def("start", &EnergyMonitor::start)
      .def("stop", &EnergyMonitor::stop, "What was taken since start.")
      .def(
          "measure_idle",
          [](EnergyMonitor& self, double seconds) { return self.meter().measure_idle(seconds); },
          "seconds"_a, nb::call_guard<nb::gil_scoped_release>(),
          "Watts of the idle machine; None without counters.")
      .def_prop_ro("counters", [](EnergyMonitor& self) { return self.meter().counter_names(); })
      .def_prop_ro(
          "missing", [](EnergyMonitor& self) { return self.meter().missing(); },
          "What can't be read, and why.");
}

void bind_profiler(nb::module_& module) {
  nb::class_<ProfileScope>(module, "EnergyScope", "What DetailedEnergyProfiler.profile returns.")
      .def(
          "__enter__",
          [](ProfileScope& self) -> ProfileScope& {
            self.enter();
            return self;
          },
          nb::rv_policy::reference)
      .def(
          "__exit__",
          [](ProfileScope& self, const nb::object&, const nb::object&, const nb::object&) {
            self.exit();
          },
          "exc_type"_a = nb::none(), "exc_value"_a = nb::none(), "traceback"_a = nb::none())
      .def("set_tokens", &ProfileScope::set_tokens, "count"_a);
  nb::class_<Profiler>(module, "DetailedEnergyProfiler", "Energy per named operation.")
      .def(nb::new_([](const Path& output_dir, int gpu_id, std::optional<double> assume_power_watts,
                       std::optional<double> carbon_kg_per_kwh, const Path& powercap,
                       const Path& nvml) {
             return new Profiler(output_dir.string(),
                                 options_of(gpu_id, assume_power_watts, carbon_kg_per_kwh,
                                            powercap.string(), nvml.string()));
           }),
           "output_dir"_a, "gpu_id"_a = 0, "assume_power_watts"_a = nb::none(),
           "carbon_kg_per_kwh"_a = nb::none(), "powercap"_a = Path(EnergySources{}.powercap),
           "nvml"_a = Path(EnergySources{}.nvml), "As EnergyMonitor; makes the folder.")
      .def(
          "profile",
          [](Profiler& self, const std::string& operation) {
            return new ProfileScope(self, operation);
          },
          "operation"_a, nb::keep_alive<0, 1>(), "with profiler.profile('prefill') as scope: …")
      .def("save_summary", &Profiler::save_summary,
           "energy_summary.json and energy_measurements.csv (energy_assumed.csv where the power\n"
           "was assumed) in output_dir.");
}

}  // namespace

void bind_energy(nb::module_& module) {
  bind_reading(module);
  bind_monitor(module);
  bind_profiler(module);
}

}  // namespace kvquant::python
