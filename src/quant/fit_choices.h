// What can be chosen in the fit of a layer, each part on its own, so that an ablation can say what
// each part gains (docs/quality.md). The default is what serves best; a recipe is a named set.
#pragma once

#include <string>
#include <string_view>

#include "quant/calibration.h"
#include "quant/codebook_methods.h"
#include "quant/codebook_weights.h"

namespace kvquant {

// Which range the codes of a key channel span, and which keys are outliers.
enum class KeyOutliers {
  kErrorSaved,  // narrower ranges, outliers where they save most: fit_key_ranges
  kPercentile,  // as published: outliers outside the percentiles, the range is what they leave
};

// "error-saved", "percentile".
std::string_view to_string(KeyOutliers outliers);
// Throws std::invalid_argument for other names.
KeyOutliers parse_key_outliers(std::string_view name);

// What bases of values are fitted to (docs/decisions/015_output_bases.md); those of keys are fitted
// to scores, with kValues to the keys (docs/decisions/017_score_bases.md).
enum class ValueBases {
  kOutputs,  // what attention makes of them, LayerActivations::outputs, where there are any
  kValues,   // the values themselves
  kPooled,   // outputs of all heads of a layer together: one basis for all
};

// "outputs", "values", "pooled".
std::string_view to_string(ValueBases bases);
// Throws std::invalid_argument for other names.
ValueBases parse_value_bases(std::string_view name);

struct FitChoices {
  KeyOutliers outliers = KeyOutliers::kErrorSaved;
  bool has_feedback = true;  // of key rounding errors, see rounding_feedback.h
  CodebookMethod codebook = CodebookMethod::kExact;
  // Of values, kQuery is kScale: queries never meet them. kFisher needs FitOptions::fisher.
  CodebookWeighting weights = CodebookWeighting::kScale;
  CodebookScope codebooks = CodebookScope::kLayer;
  ValueBases bases = ValueBases::kOutputs;
  friend bool operator==(const FitChoices&, const FitChoices&) = default;
};

// "error-saved": the defaults. "percentile": outliers and ranges of the published recipe (arXiv
// 2401.18079), without feedback. Throws std::invalid_argument for other names.
FitChoices recipe_choices(std::string_view name);

// Choices by name, as options say them; an empty one is as the recipe says.
struct FitChoiceNames {
  std::string recipe = "error-saved";
  std::string outliers{}, feedback{}, codebook{}, weights{};  // feedback: "on", "off"
  std::string codebooks = "layer", bases = "outputs";
};
// Throws std::invalid_argument for other names.
FitChoices parse_fit_choices(const FitChoiceNames& names);

// All that was chosen: "outliers=error-saved feedback=on codebook=exact weights=scale
// codebooks=layer bases=outputs".
std::string to_string(const FitChoices& choices);

}  // namespace kvquant
