#include "bench/flat_rows.h"

#include <gtest/gtest.h>

namespace kvquant {
namespace {

Json document() {
  return {{"command", "bench"},
          {"model", {{"name", "a \"small\" model"}, {"fingerprint", "12ab"}, {"hidden", 64}}},
          {"config", {{"threads", {1, 2}}, {"calibration", {{"path", "x.st"}, {"recipe", "r"}}}}},
          {"machine", {{"cpu", "Z"}, {"cores", 2}, {"version", "1"}, {"commit", "c"}}},
          {"results",
           {{{"spec", "k=nuq4,v=nuq3"}, {"threads", 1}, {"samples_s", {0.5, 0.25}}},
            {{"spec", "fp16"}, {"threads", 2}, {"samples_s", Json::array()}}}}};
}

TEST(FlatRows, RepeatWhatIsCommonAndLetTheResultSpeakLast) {
  const auto rows = flat_rows(document());
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[1].dump(),
            R"({"command":"bench","model":"a \"small\" model","model_fingerprint":"12ab",)"
            R"("cpu":"Z","version":"1","commit":"c","threads":2,"calibration":"x.st",)"
            R"("spec":"fp16","samples_s":[]})");
}

TEST(FlatRows, OfADocumentWithoutModelHaveNone) {
  Json without = document();
  without["model"] = nullptr;
  without["config"] = {{"calibration", nullptr}};
  EXPECT_FALSE(flat_rows(without)[0].contains("model"));
  EXPECT_TRUE(flat_rows(without)[0].at("calibration").is_null());
}

TEST(FlatRows, AsJsonlAreALineEachThatReadsBack) {
  const auto rows = flat_rows(document());
  const std::string text = to_jsonl(rows);
  const size_t end = text.find('\n');
  EXPECT_EQ(Json::parse(text.substr(0, end)), rows[0]);
  EXPECT_EQ(Json::parse(text.substr(end + 1)), rows[1]);
}

TEST(FlatRows, AsCsvAreQuotedWhereNeeded) {
  EXPECT_EQ(to_csv(flat_rows(document())),
            "command,model,model_fingerprint,cpu,version,commit,threads,calibration,spec,"
            "samples_s\n"
            "bench,\"a \"\"small\"\" model\",12ab,Z,1,c,1,x.st,\"k=nuq4,v=nuq3\",0.5;0.25\n"
            "bench,\"a \"\"small\"\" model\",12ab,Z,1,c,2,x.st,fp16,\n");
  EXPECT_EQ(to_csv({}), "");
  Json row;
  row["a"] = nullptr;
  row["b"] = "two\nlines";
  EXPECT_EQ(to_csv({row}), "a,b\n,\"two\nlines\"\n");
}

}  // namespace
}  // namespace kvquant
