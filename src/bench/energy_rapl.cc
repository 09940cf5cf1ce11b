// Zones of powercap (Documentation/power/powercap/powercap.rst of Linux): a folder intel-rapl:N per
// package, on AMD processors too, with folders intel-rapl:N:M of its parts inside or beside it,
// each with `name`, `energy_uj` and `max_energy_range_uj`, where energy_uj starts again at 0.
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>

#include "base/quote.h"
#include "bench/energy_counter.h"
#include "kvquant/error.h"

namespace kvquant {
namespace {

namespace fs = std::filesystem;

std::string first_line(const fs::path& path) {
  errno = 0;
  std::ifstream file(path);
  std::string line;
  if (!std::getline(file, line)) {
    const std::string why = errno != 0 ? std::strerror(errno) : "it is empty";
    throw DeviceError(fmt::format("can't read {}: {}", path.string(), why));
  }
  return line;
}

int64_t read_microjoules(const fs::path& path) {
  const std::string line = first_line(path);
  int64_t value = 0;
  const auto [stop, error] = std::from_chars(line.data(), line.data() + line.size(), value);
  if (error != std::errc() || stop != line.data() + line.size() || value < 0) {
    throw DeviceError(
        fmt::format("{}: {} is not a number of microjoules", path.string(), quote(line)));
  }
  return value;
}

class RaplCounter final : public EnergyCounter {
 public:
  RaplCounter(const fs::path& zone, std::string name, EnergyPart part)
      : path_(zone / "energy_uj"),
        name_(std::move(name)),
        part_(part),
        range_(read_microjoules(zone / "max_energy_range_uj")),
        last_(read_microjoules(path_)) {}

  std::string name() const override { return name_; }
  EnergyPart part() const override { return part_; }

  double joules() override {
    const int64_t now = read_microjoules(path_);
    // The range is the largest value: after it comes 0.
    total_ += now >= last_ ? now - last_ : now + (range_ - last_) + 1;
    last_ = now;
    return static_cast<double>(total_) * 1e-6;
  }

 private:
  fs::path path_;
  std::string name_;
  EnergyPart part_;
  int64_t range_, last_, total_ = 0;  // microjoules
};

// "intel-rapl:0" is a package, "intel-rapl:0:1" a part of it. intel-rapl-mmio counts a package a
// second time and is none.
bool is_rapl_zone(const std::string& folder) { return folder.rfind("intel-rapl:", 0) == 0; }

std::string package_of(const std::string& folder) {
  return folder.substr(0, folder.find(':', folder.find(':') + 1));
}

std::vector<fs::path> list_zones(const fs::path& powercap) {
  std::vector<fs::path> zones;
  std::error_code error;
  for (const fs::path& folder : {powercap, powercap / "intel-rapl"}) {
    for (auto it = fs::directory_iterator(folder, error); !error && it != fs::directory_iterator();
         it.increment(error)) {
      if (is_rapl_zone(it->path().filename().string())) zones.push_back(it->path());
    }
    if (!zones.empty()) break;  // the class's links, or the device tree they lead to
  }
  std::sort(zones.begin(), zones.end());
  return zones;
}

void add_zone(const fs::path& zone, EnergyCounters& found) {
  const std::string folder = zone.filename().string(), package = package_of(folder);
  try {
    const std::string name = first_line(zone / "name");
    const bool is_package = folder == package && name.rfind("package", 0) == 0;
    if (!is_package && name != "dram") return;  // core, uncore: within the package; psys: all of it
    const std::string number = package.substr(package.find(':') + 1);
    found.counters.push_back(std::make_unique<RaplCounter>(
        zone, is_package ? "rapl " + name : "rapl " + name + "-" + number,
        is_package ? EnergyPart::kCpu : EnergyPart::kMemory));
  } catch (const DeviceError& error) {
    found.missing.push_back(fmt::format("rapl: {}", error.what()));
  }
}

}  // namespace

EnergyCounters find_rapl(const std::string& powercap) {
  EnergyCounters found;
  const auto zones = list_zones(powercap);
  for (const fs::path& zone : zones) add_zone(zone, found);
  if (zones.empty()) {
    found.missing.push_back(fmt::format("rapl: no intel-rapl zones in {}", powercap));
  } else if (found.counters.empty() && found.missing.empty()) {
    found.missing.push_back(fmt::format("rapl: no package among the zones of {}", powercap));
  }
  return found;
}

}  // namespace kvquant
