#include "bench/codecarbon.h"

#include <fmt/format.h>

#include <filesystem>

#include "base/check.h"
#include "base/file.h"
#include "base/hash.h"
#include "bench/flat_rows.h"
#include "bench/result.h"
#include "kvquant/error.h"

namespace kvquant {
namespace {

double joules_of(const EnergyReading& reading, EnergyPart part) {
  double sum = 0;
  for (const auto& p : reading.parts) sum += p.part == part ? p.joules : 0;
  return sum;
}

bool has_part(const EnergyReading& reading, EnergyPart part) {
  for (const auto& p : reading.parts) {
    if (p.part == part) return true;
  }
  return false;
}

Json row_of(const EnergyReading& reading, const CodeCarbonRun& run) {
  check_arg(reading.energy_joules.has_value(),
            "CodeCarbon: energy was not measured (" + reading.note + ")");
  const Json machine = machine_info();
  const double seconds = reading.duration_s;
  const auto watts = [&](EnergyPart part) {
    return has_part(reading, part) && seconds > 0 ? Json(joules_of(reading, part) / seconds)
                                                  : Json(nullptr);
  };
  const auto kwh = [&](EnergyPart part) {
    return has_part(reading, part) ? Json(joules_of(reading, part) / kJoulesPerKwh) : Json(nullptr);
  };
  Hash64 id;
  id.add_text(run.timestamp);
  id.add_text(reading.note);
  id.add_text(fmt::format("{}", seconds));
  const bool has_gpu = has_part(reading, EnergyPart::kGpu);
  const double gib = machine.at("memory_bytes").get<double>() / (1 << 30);
  return {{"timestamp", run.timestamp},
          {"project_name", run.project_name},
          {"run_id", id.hex()},
          {"duration", seconds},
          {"emissions", *reading.carbon_kg},
          {"emissions_rate", seconds > 0 ? *reading.carbon_kg / seconds : 0},
          {"cpu_power", watts(EnergyPart::kCpu)},
          {"gpu_power", watts(EnergyPart::kGpu)},
          {"ram_power", watts(EnergyPart::kMemory)},
          {"cpu_energy", kwh(EnergyPart::kCpu)},
          {"gpu_energy", kwh(EnergyPart::kGpu)},
          {"ram_energy", kwh(EnergyPart::kMemory)},
          {"energy_consumed", *reading.energy_joules / kJoulesPerKwh},
          {"country_name", nullptr},
          {"country_iso_code", run.country_iso_code},
          {"region", nullptr},
          {"cloud_provider", nullptr},
          {"cloud_region", nullptr},
          {"os", machine.at("system")},
          {"python_version", nullptr},
          {"codecarbon_version", "kvquant " + machine.at("version").get<std::string>()},
          {"cpu_count", machine.at("cores")},
          {"cpu_model", machine.at("cpu")},
          {"gpu_count", has_gpu ? Json(1) : Json(nullptr)},
          {"gpu_model", nullptr},
          {"longitude", nullptr},
          {"latitude", nullptr},
          {"ram_total_size", gib},
          {"tracking_mode", reading.kind == EnergyKind::kAssumed ? "assumed" : "machine"},
          {"on_cloud", "N"},
          {"pue", 1.0}};
}

}  // namespace

const char* const kCodeCarbonHeader =
    "timestamp,project_name,run_id,duration,emissions,emissions_rate,cpu_power,gpu_power,"
    "ram_power,cpu_energy,gpu_energy,ram_energy,energy_consumed,country_name,country_iso_code,"
    "region,cloud_provider,cloud_region,os,python_version,codecarbon_version,cpu_count,cpu_model,"
    "gpu_count,gpu_model,longitude,latitude,ram_total_size,tracking_mode,on_cloud,pue";

std::string codecarbon_row(const EnergyReading& reading, const CodeCarbonRun& run) {
  const std::string text = to_csv({row_of(reading, run)});
  return text.substr(text.find('\n') + 1);
}

void append_codecarbon(const std::string& path, const EnergyReading& reading,
                       const CodeCarbonRun& run) {
  const std::string row = codecarbon_row(reading, run);
  std::string text;
  if (std::filesystem::exists(path)) text = read_text(path);
  if (text.empty()) text = std::string(kCodeCarbonHeader) + "\n";
  if (text.rfind(std::string(kCodeCarbonHeader) + "\n", 0) != 0) {
    throw FormatError(path + ": its header is not that of a CodeCarbon file of kvquant's columns");
  }
  if (text.back() != '\n') text += '\n';
  write_file_atomic(path, text + row);
}

}  // namespace kvquant
