// For tests of attention over latents: a random map, and what latents stand for.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/attend_coded_test_side.h"
#include "ops/attend_test_check.h"
#include "ops/latent.h"

namespace kvquant::testing {

class TestMap {
 public:
  TestMap(int64_t rank, int64_t head_dim, TestRandom& random)
      : mean_(draw(head_dim, 1, random)), decode_(draw(rank * head_dim, 0.3, random)) {
    map.rank = rank;
    map.width = latent_width(rank);
    map.head_dim = head_dim;
    map.mean = mean_.data();
    map.decode = decode_.data();
  }
  TestMap(const TestMap&) = delete;
  TestMap& operator=(const TestMap&) = delete;

  double expanded(const TestCodedSide& side, int64_t token, int64_t channel) const {
    double sum = mean_[static_cast<size_t>(channel)];
    for (int64_t r = 0; r < map.rank; ++r) {
      sum += side.stored(token, r) * decode_[static_cast<size_t>(r * map.head_dim + channel)];
    }
    return sum;
  }

  LatentMap map;

 private:
  static std::vector<float> draw(int64_t size, double scale, TestRandom& random) {
    std::vector<float> out;
    for (int64_t i = 0; i < size; ++i) out.push_back(static_cast<float>(scale * random.normal()));
    return out;
  }
  std::vector<float> mean_, decode_;
};

// Some channels of each width, all of them together.
inline CodeBands test_bands(int64_t width, TestRandom& random) {
  CodeBands bands;
  const int64_t eight = random.below(width / 16 + 1) * 16;
  const int64_t four = random.below((width - eight) / 16 + 1) * 16;
  bands.channels[0] = static_cast<int32_t>(eight);
  bands.channels[1] = static_cast<int32_t>(four);
  bands.channels[2] = static_cast<int32_t>(width - eight - four);
  return bands;
}

struct LatentCodec {
  int bits;
  int outliers = 0;     // percent
  bool banded = false;  // then bits is 8
};

// What the reference makes of a job, or of the same with everything expanded.
inline std::vector<float> reference(const AttendShape& shape, const TestJob& test, bool dense) {
  ThreadPool pool(1);
  std::vector<float> out;
  const AttendJob job = dense ? test.dense_job(out) : test.job(out);
  attend(shape, {&job, 1}, Precision::kF32, pool, Backend::kReference);
  return out;
}

}  // namespace kvquant::testing
