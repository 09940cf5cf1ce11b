#include "bench/sweep_run.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <new>

#include "base/check.h"
#include "bench/energy_profiler.h"
#include "cache/forecast.h"
#include "kvquant/error.h"

namespace kvquant {
namespace {

constexpr int kMaxTries = 8;  // of a largest batch, each below the last

// Bytes that /proc/self/status tells of this process; nothing where there is no such line.
std::optional<int64_t> status_bytes(const std::string& name) {
  std::ifstream file("/proc/self/status");
  std::string word;
  int64_t kib = 0;
  while (file >> word) {
    if (word == name + ":" && file >> kib) return kib * 1024;
  }
  return std::nullopt;
}

// Lets VmHWM start from what is resident now; false where the system doesn't allow it.
bool reset_peak_rss() {
  std::ofstream file("/proc/self/clear_refs");
  return static_cast<bool>(file << "5" << std::flush);
}

Json or_null(const std::optional<int64_t>& value) { return value ? Json(*value) : Json(nullptr); }

double mean_of(const std::vector<double>& x) {
  double sum = 0;
  for (const double v : x) sum += v;
  return sum / static_cast<double>(x.size());
}

double median_of(std::vector<double> x) {
  std::sort(x.begin(), x.end());
  const size_t half = x.size() / 2;
  return x.size() % 2 == 1 ? x[half] : (x[half - 1] + x[half]) / 2;
}

// Of prefill or decoding: times of a repetition, its tokens/s, its energy.
Json phase_fields(const std::string& phase, const ModelBenchRow& row, double tokens) {
  Json out = Json::object();
  const double error = relative_error(row);
  const auto set = [&](const char* name, Json value) { out[phase + name] = std::move(value); };
  set("_repetitions", row.samples_s.size());
  set("_latency_s", mean_of(row.samples_s));
  set("_latency_s_median", median_of(row.samples_s));
  set("_latency_stderr_rel", std::isfinite(error) ? Json(error) : Json(nullptr));
  set("_tokens_per_s", row.tokens_per_s_mean);
  set("_tokens_per_s_sd", row.tokens_per_s_sd);
  set("_samples_s", row.samples_s);
  if (row.energy) {
    const auto repetitions = static_cast<double>(row.samples_s.size());
    const auto& joules = row.energy->energy_joules;
    set("_joules", joules ? Json(*joules / repetitions) : Json(nullptr));
    set("_joules_per_token", joules ? Json(*joules / repetitions / tokens) : Json(nullptr));
    set("_watts", joules ? Json(*row.energy->avg_power_watts) : Json(nullptr));
  }
  return out;
}

// A configuration whose batch is known, measured.
class Run {
 public:
  Run(Model& model, const SweepPoint& point, const SweepLimits& limits,
      const ModelBenchOptions& base, const Progress& progress)
      : model_(model), point_(point), options_(base), progress_(progress) {
    options_.batches = {point.batch};
    options_.repetitions = limits.min_repetitions;
    options_.limits = limits.repetitions;
    options_.combined_sizes.clear();
  }

  Json fields() {
    Json out = {{"loaded_rss_bytes", or_null(status_bytes("VmRSS"))}};
    const ModelBenchRow prefill = measure("prefill", point_.prompt, 0, 0, out);
    int64_t cache_bytes = prefill.cache_bytes, peak_cache_bytes = prefill.peak_cache_bytes;
    double request_s = mean_of(prefill.samples_s);
    out["time_to_first_token_s"] = request_s;
    add_energy(prefill, out);
    if (point_.gen > 0) {
      const ModelBenchRow decode = measure("decode", 0, point_.gen, point_.prompt, out);
      const double decode_s = mean_of(decode.samples_s);
      out["decode_step_s"] = decode_s / static_cast<double>(point_.gen);
      cache_bytes = decode.cache_bytes;
      peak_cache_bytes = std::max(peak_cache_bytes, decode.peak_cache_bytes);
      request_s += decode_s;
    }
    out.update({{"cache_bytes", cache_bytes},
                {"peak_cache_bytes", peak_cache_bytes},
                {"peak_device_bytes", nullptr},
                {"requests_per_s", static_cast<double>(point_.batch) / request_s}});
    return out;
  }

 private:
  ModelBenchRow measure(const std::string& phase, int64_t n_prompt, int64_t n_gen, int64_t depth,
                        Json& out) {
    options_.prompt_sizes = {n_prompt};
    options_.gen_sizes = {n_gen};
    options_.depths = {depth};
    const bool is_reset = reset_peak_rss();
    const ModelBenchRow row = bench_model(model_, {point_.spec}, options_, progress_).at(0);
    const auto peak = is_reset ? status_bytes("VmHWM") : std::nullopt;
    const auto tokens = static_cast<double>((n_prompt + n_gen) * point_.batch);
    out.update(phase_fields(phase, row, tokens));
    out[phase + "_peak_rss_bytes"] = or_null(peak);
    return row;
  }

  static void add_energy(const ModelBenchRow& row, Json& out) {
    if (!row.energy) return;
    out["energy"] = kind_name(row.energy->kind);
    out["energy_note"] = row.energy->note;
  }

  Model& model_;
  const SweepPoint& point_;
  ModelBenchOptions options_;
  const Progress& progress_;
};

std::string beyond_budget(double bytes, int64_t budget, const char* how) {
  return fmt::format("caches of {:.0f} bytes{} are more than the budget of {}", bytes, how, budget);
}

Json run_batch(Model& model, const SweepPoint& point, const SweepLimits& limits,
               const ModelBenchOptions& base, const Progress& progress) {
  try {
    return Run(model, point, limits, base, progress).fields();
  } catch (const OutOfMemory& error) {
    return out_of_memory_fields(error.what());
  } catch (const std::bad_alloc&) {
    return out_of_memory_fields("the system gave no more memory");
  }
}

bool is_too_large(const Json& fields, int64_t budget) {
  return budget > 0 && fields.contains("cache_bytes") && fields["cache_bytes"] > budget;
}

// What one sequence of the point holds: its prompt as a single run measures it, as the ranges and
// outliers of real keys are not those of a forecast, and what is generated as forecast.
double sequence_bytes(Model& model, const SweepPoint& point, const CacheForecast& forecast,
                      const ModelBenchOptions& base, const Progress& progress) {
  SweepPoint prompt = point;
  prompt.batch = 1;
  prompt.gen = 0;
  SweepLimits once;
  once.min_repetitions = 1;
  once.repetitions = {.warmups = 1, .max_repetitions = 1};
  const Json fields = run_batch(model, prompt, once, base, progress);
  const double forecast_bytes = forecast.bytes(point.prompt + point.gen);
  if (!fields.contains("cache_bytes")) return forecast_bytes;  // out of memory: the run will say so
  return fields["cache_bytes"].get<double>() + forecast_bytes - forecast.bytes(point.prompt);
}

// The largest batch: told from one sequence, and made smaller while its caches prove too large.
Json run_largest(Model& model, SweepPoint point, const SweepLimits& limits,
                 const ModelBenchOptions& base, const Progress& progress) {
  const int64_t budget = limits.memory_budget;
  const int64_t num_tokens = point.prompt + point.gen;
  const auto forecast = forecast_cache(model.kv_shape(), point.spec, model.pool());
  if (forecast.largest_batch(budget, num_tokens) > 0) {
    const double bytes = sequence_bytes(model, point, forecast, base, progress);
    point.batch = static_cast<int64_t>(static_cast<double>(budget) / bytes);
  }
  for (int i = 0; i < kMaxTries && point.batch > 0; ++i) {
    Json fields = run_batch(model, point, limits, base, progress);
    fields["batch"] = point.batch;
    fields["is_largest_batch"] = true;
    if (!is_too_large(fields, budget)) return fields;
    const double fits = static_cast<double>(budget) / fields["cache_bytes"].get<double>();
    const auto scaled = static_cast<int64_t>(static_cast<double>(point.batch) * fits);
    point.batch = std::min(point.batch - 1, scaled);
  }
  Json fields =
      out_of_memory_fields(beyond_budget(forecast.bytes(num_tokens), budget, " for one sequence"));
  fields["batch"] = 0;
  return fields;
}

}  // namespace

SweepLimits quick_limits() {
  SweepLimits limits;
  limits.repetitions = {.warmups = 1, .target_error = 0.02, .max_repetitions = 5, .max_seconds = 3};
  limits.min_repetitions = 2;
  return limits;
}

Json limits_fields(const SweepLimits& limits) {
  return {{"warmups", limits.repetitions.warmups},
          {"min_repetitions", limits.min_repetitions},
          {"max_repetitions", limits.repetitions.max_repetitions},
          {"target_error", limits.repetitions.target_error},
          {"max_seconds", limits.repetitions.max_seconds},
          {"memory_budget", limits.memory_budget > 0 ? Json(limits.memory_budget) : Json(nullptr)}};
}

Json point_fields(const SweepPoint& point) {
  Json out = {{"name", point_name(point)}};
  out.update(spec_fields(point.spec, CacheMode::kAsServed));
  out.update({{"n_prompt", point.prompt},
              {"batch", point.batch == 0 ? Json(nullptr) : Json(point.batch)},
              {"n_gen", point.gen}});
  return out;
}

Json out_of_memory_fields(const std::string& reason) {
  return {{"status", "out_of_memory"}, {"reason", reason}};
}

Json run_point(Model& model, const SweepPoint& point, const SweepLimits& limits,
               const ModelBenchOptions& base, const Progress& progress) {
  check_arg(point.batch > 0 || limits.memory_budget > 0, "the largest batch needs a memory budget");
  check_spec_fits(point.spec, static_cast<int>(model.config().num_layers),
                  static_cast<int>(model.config().head_dim));
  Json out = point_fields(point);
  out["status"] = "ok";
  if (point.batch == 0) {
    out.update(run_largest(model, point, limits, base, progress));
    return out;
  }
  const int64_t budget = limits.memory_budget;
  if (budget > 0) {
    const auto forecast = forecast_cache(model.kv_shape(), point.spec, model.pool());
    const double bytes = forecast.bytes(point.prompt + point.gen, point.batch);
    constexpr double kForecastError = 1.02;  // forecasts are within 2%
    if (bytes > kForecastError * static_cast<double>(budget)) {
      out.update(out_of_memory_fields(beyond_budget(bytes, budget, " by forecast")));
      return out;
    }
  }
  const Json fields = run_batch(model, point, limits, base, progress);
  out.update(is_too_large(fields, budget)
                 ? out_of_memory_fields(
                       beyond_budget(fields["cache_bytes"].get<double>(), budget, ", measured,"))
                 : fields);
  return out;
}

}  // namespace kvquant
