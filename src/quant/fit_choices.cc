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

FitChoices parse_fit_choices(const FitChoiceNames& names) {
  FitChoices choices = recipe_choices(names.recipe);
  if (!names.outliers.empty()) choices.outliers = parse_key_outliers(names.outliers);
  if (!names.feedback.empty()) {
    if (names.feedback != "on" && names.feedback != "off") {
      throw std::invalid_argument(fmt::format("feedback '{}': expected on or off", names.feedback));
    }
    choices.has_feedback = names.feedback == "on";
  }
  if (!names.codebook.empty()) choices.codebook = parse_codebook_method(names.codebook);
  if (!names.weights.empty()) choices.weights = parse_codebook_weighting(names.weights);
  choices.codebooks = parse_codebook_scope(names.codebooks);
  choices.bases = parse_value_bases(names.bases);
  return choices;
}

std::string to_string(const FitChoices& choices) {
  return fmt::format("outliers={} feedback={} codebook={} weights={} codebooks={} bases={}",
                     to_string(choices.outliers), choices.has_feedback ? "on" : "off",
                     to_string(choices.codebook), to_string(choices.weights),
                     to_string(choices.codebooks), to_string(choices.bases));
}

}  // namespace kvquant
