// For tests: a powercap folder with zones whose counters the test moves.
#pragma once

#include <filesystem>
#include <string>

#include "base/file.h"
#include "base/test_path.h"

namespace kvquant::test {

class PowercapTree {
 public:
  PowercapTree() : root_(test_path("powercap")) { std::filesystem::remove_all(root_); }
  ~PowercapTree() { std::filesystem::remove_all(root_); }
  PowercapTree(const PowercapTree&) = delete;
  PowercapTree& operator=(const PowercapTree&) = delete;

  const std::string& path() const { return root_; }

  // zone: "intel-rapl:0", "intel-rapl:0:1". Microjoules.
  void add(const std::string& zone, const std::string& name, int64_t energy, int64_t range) const {
    std::filesystem::create_directories(root_ + "/" + zone);
    write_file_atomic(root_ + "/" + zone + "/name", name + "\n");
    write_file_atomic(root_ + "/" + zone + "/max_energy_range_uj", std::to_string(range) + "\n");
    set(zone, std::to_string(energy));
  }
  void set(const std::string& zone, const std::string& energy) const {
    write_file_atomic(root_ + "/" + zone + "/energy_uj", energy + "\n");
  }
  void remove(const std::string& zone) const {
    std::filesystem::remove(root_ + "/" + zone + "/energy_uj");
  }

 private:
  std::string root_;
};

}  // namespace kvquant::test
