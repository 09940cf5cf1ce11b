#include "quant/fit_choices.h"

#include <fmt/format.h>

#include <stdexcept>

namespace kvquant {

std::string_view to_string(KeyOutliers outliers) {
  return outliers == KeyOutliers::kErrorSaved ? "error-saved" : "percentile";
}

KeyOutliers parse_key_outliers(std::string_view name) {
  for (const KeyOutliers outliers : {KeyOutliers::kErrorSaved, KeyOutliers::kPercentile}) {
    if (to_string(outliers) == name) return outliers;
  }
  throw std::invalid_argument(
      fmt::format("key outliers '{}': expected error-saved or percentile", name));
}

std::string_view to_string(ValueBases bases) {
  switch (bases) {
    case ValueBases::kOutputs: return "outputs";
    case ValueBases::kValues: return "values";
    case ValueBases::kPooled: return "pooled";
  }
  throw std::logic_error("unknown ValueBases");
}

ValueBases parse_value_bases(std::string_view name) {
  for (const ValueBases bases : {ValueBases::kOutputs, ValueBases::kValues, ValueBases::kPooled}) {
    if (to_string(bases) == name) return bases;
  }
  throw std::invalid_argument(fmt::format("bases '{}': expected outputs, values or pooled", name));
}

FitChoices recipe_choices(std::string_view name) {
  if (name == "error-saved") return {};
  if (name == "percentile") return {.outliers = KeyOutliers::kPercentile, .has_feedback = false};
  throw std::invalid_argument(
      fmt::format("calibration recipe '{}': expected error-saved or percentile", name));
}

std::string to_string(const FitChoices& choices) {
  return fmt::format("outliers={} feedback={} codebook={} weights={} codebooks={} bases={}",
                     to_string(choices.outliers), choices.has_feedback ? "on" : "off",
                     to_string(choices.codebook), to_string(choices.weights),
                     to_string(choices.codebooks), to_string(choices.bases));
}

}  // namespace kvquant
