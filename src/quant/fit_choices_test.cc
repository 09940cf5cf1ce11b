#include "quant/fit_choices.h"

#include <gtest/gtest.h>

#include <set>
#include <stdexcept>

namespace kvquant {
namespace {

TEST(FitChoices, SayEverythingInTheirText) {
  EXPECT_EQ(to_string(FitChoices{}),
            "outliers=error-saved feedback=on codebook=exact weights=scale codebooks=layer "
            "bases=outputs");
  EXPECT_EQ(to_string(FitChoices{.outliers = KeyOutliers::kPercentile,
                                 .has_feedback = false,
                                 .codebook = CodebookMethod::kNormalFloat,
                                 .weights = CodebookWeighting::kQuery,
                                 .codebooks = CodebookScope::kHead,
                                 .bases = ValueBases::kValues}),
            "outliers=percentile feedback=off codebook=normal-float weights=query codebooks=head "
            "bases=values");
}

TEST(FitChoices, DifferInTextWhenTheyDiffer) {
  std::set<std::string> texts;
  for (const KeyOutliers outliers : {KeyOutliers::kErrorSaved, KeyOutliers::kPercentile}) {
    for (const bool has_feedback : {false, true}) {
      for (const char* codebook : {"exact", "lloyd", "normal-float", "uniform", "heuristic"}) {
        for (const char* weights : {"none", "scale", "query"}) {
          for (const CodebookScope scope : {CodebookScope::kLayer, CodebookScope::kHead}) {
            texts.insert(
                to_string(FitChoices{outliers, has_feedback, parse_codebook_method(codebook),
                                     parse_codebook_weighting(weights), scope}));
          }
        }
      }
    }
  }
  EXPECT_EQ(texts.size(), 120u);
}

TEST(FitChoices, OfARecipeAreItsParts) {
  EXPECT_EQ(recipe_choices("error-saved"), FitChoices{});
  EXPECT_EQ(recipe_choices("percentile"),
            (FitChoices{.outliers = KeyOutliers::kPercentile, .has_feedback = false}));
  EXPECT_THROW(recipe_choices("Percentile"), std::invalid_argument);
  EXPECT_THROW(recipe_choices(""), std::invalid_argument);
}

TEST(ValueBases, AreReadBackFromTheirNames) {
  for (const ValueBases bases : {ValueBases::kOutputs, ValueBases::kValues, ValueBases::kPooled}) {
    EXPECT_EQ(parse_value_bases(to_string(bases)), bases);
  }
  EXPECT_THROW(parse_value_bases("output"), std::invalid_argument);
}

TEST(KeyOutliers, AreReadBackFromTheirNames) {
  for (const KeyOutliers outliers : {KeyOutliers::kErrorSaved, KeyOutliers::kPercentile}) {
    EXPECT_EQ(parse_key_outliers(to_string(outliers)), outliers);
  }
  EXPECT_THROW(parse_key_outliers("none"), std::invalid_argument);
}

TEST(FitChoices, AreParsedByNameOverTheRecipe) {
  EXPECT_EQ(parse_fit_choices({}), FitChoices{});
  EXPECT_EQ(parse_fit_choices({.recipe = "percentile"}), recipe_choices("percentile"));
  const FitChoices choices = parse_fit_choices({.recipe = "percentile",
                                                .feedback = "on",
                                                .codebook = "lloyd",
                                                .weights = "fisher",
                                                .codebooks = "head",
                                                .bases = "pooled"});
  EXPECT_EQ(to_string(choices),
            "outliers=percentile feedback=on codebook=lloyd weights=fisher codebooks=head "
            "bases=pooled");
  EXPECT_THROW(parse_fit_choices({.feedback = "maybe"}), std::invalid_argument);
  EXPECT_THROW(parse_fit_choices({.bases = "keys"}), std::invalid_argument);
}

}  // namespace
}  // namespace kvquant
