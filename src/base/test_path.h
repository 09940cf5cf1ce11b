// For tests: a path in the temporary folder that no other test, running beside it, uses.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <string>

namespace kvquant::test {

inline std::string test_path(const std::string& name) {
  const auto* info = testing::UnitTest::GetInstance()->current_test_info();
  std::string file =
      std::string("kvquant_") + info->test_suite_name() + "_" + info->name() + "_" + name;
  std::replace(file.begin(), file.end(), '/', '_');
  return testing::TempDir() + file;
}

}  // namespace kvquant::test
