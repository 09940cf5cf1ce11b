// Bits per layer, from the command to a spec that other commands take.
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>

#include "program.h"

namespace kvquant {
namespace {

using test::Outcome;

class Allocate : public test::ProgramTest {
 protected:
  std::string command(const std::string& more) const {
    return "allocate -m embedded -q -c 256 --test-windows 3 --sensitivity " + path("table") + " " +
           more;
  }
  nlohmann::json results(const std::string& more) const {
    const Outcome outcome = run(command("--json - " + more));
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    return nlohmann::json::parse(outcome.out).at("results");
  }
};

TEST_F(Allocate, TheMixtureKeepsTheBudgetAndLosesLessThanUniformSpecs) {
  const auto all = results("--bits 4 --sink 1 --windows 2 -o " + path("spec"));
  ASSERT_TRUE(all.at(0).at("is_mixture").get<bool>());
  const auto kl = all.at(0).at("kl_mean").get<double>();
  EXPECT_LT(all.at(0).at("true_bits").get<double>(), 4.02);  // other text, other outliers
  EXPECT_GT(all.at(0).at("true_bits").get<double>(), 3.9);
  EXPECT_GT(kl, 0.001);
  ASSERT_GE(all.size(), 3u);
  for (size_t i = 1; i < all.size(); ++i) {
    if (all[i].at("selection_bits") > 4) continue;
    EXPECT_LT(kl, all[i].at("kl_mean").get<double>()) << all[i].at("spec");
    EXPECT_LT(all[0].at("selection_kl_sum"), all[i].at("selection_kl_sum"));
  }
  // Divergences of layers add up, about.
  const auto sum = all[0].at("selection_kl_sum").get<double>();
  EXPECT_GT(kl, 0.5 * sum);
  EXPECT_LT(kl, 2 * sum);

  std::string spec = read_text(path("spec"));
  ASSERT_EQ(spec.back(), '\n');
  spec.pop_back();
  EXPECT_EQ(spec, all[0].at("spec"));
  const Outcome outcome = run("perplexity -m embedded -q -c 256 --windows 1 --kv " + spec);
  EXPECT_EQ(outcome.code, 0) << outcome.err;
}

TEST_F(Allocate, AnotherBudgetNeedsNoMeasurement) {
  const std::string candidates = "--key-codecs nuq2,nuq4 --value-codecs nuq2,nuq4 ";
  results(candidates + "--bits 3");
  const std::string table = read_text(path("table"));
  const auto both = results(candidates + "--bits 2.7,3.5");
  EXPECT_EQ(read_text(path("table")), table);
  double before = 1e9;
  for (const auto& result : both) {
    if (!result.at("is_mixture").get<bool>()) continue;
    EXPECT_LE(result.at("selection_bits"), result.at("budget_bits"));
    EXPECT_LT(result.at("kl_mean").get<double>(), before);
    before = result.at("kl_mean").get<double>();
  }
}

TEST_F(Allocate, TextAndJsonSayTheSame) {
  const std::string candidates = "--codecs nuq2,int8 --bits 5 ";
  const auto all = results(candidates);
  const Outcome text = run(command(candidates + "-o " + path("all.json")));
  EXPECT_EQ(text.code, 0) << text.err;
  EXPECT_NE(text.out.find(all.at(0).at("spec").get<std::string>()), std::string::npos) << text.out;
  EXPECT_NE(text.out.find("k=nuq2"), std::string::npos);
  const auto document = nlohmann::json::parse(read_text(path("all.json")));
  EXPECT_EQ(document.at("results").at(0).at("spec"), all.at(0).at("spec"));
  EXPECT_EQ(document.at("sensitivity").size(), 6u * 4);
}

TEST_F(Allocate, BadInputIsRefusedBeforeTheWork) {
  expect_refused(command(""), "--bits");
  expect_refused(command("--bits 1.5"), "smallest candidates");
  expect_refused(command("--bits -1"), "smallest candidates");
  expect_refused(command("--bits nan"), "--bits");
  expect_refused(command("--bits 4 --codecs nuq9"), "nuq9");
  expect_refused(command("--bits 4 --codecs nuq4,nuq4"), "twice");
  expect_refused(command("--bits 4 --codecs had+nuq4"), "not built yet for keys");
  expect_refused(command("--bits 4 --value-codecs pca8"), "needs a calibration");
  expect_refused(command("--bits 4 --windows 5000"), "too short");
  expect_refused(command("--bits 4 -f " + path("none")), "none");
  EXPECT_FALSE(std::filesystem::exists(path("table")));
  // What only the measurement shows: 256 tokens fill no block.
  const Outcome outcome = run(command("--bits 2.5 --codecs nuq2,nuq3 --sink 200 -o " + path("s")));
  EXPECT_EQ(outcome.code, 1) << outcome.err;
  EXPECT_NE(outcome.err.find("the smallest candidates take"), std::string::npos) << outcome.err;
  EXPECT_FALSE(std::filesystem::exists(path("s")));
}

TEST_F(Allocate, ATableOfAnotherTextIsRefused) {
  results("--codecs nuq2,nuq4 --bits 4");
  expect_refused(command("--codecs nuq2,nuq4 --bits 4 --sink 2"), "name another file");
}

}  // namespace
}  // namespace kvquant
