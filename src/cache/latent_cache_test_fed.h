// For tests: a KvCache of one layer with a calibration of what is fed to it, and attention over it
// against attention over what it stands for.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "cache/kv_cache.h"
#include "cache/kv_cache_test_view.h"
#include "quant/calibration_test_data.h"

namespace kvquant::test {

inline constexpr KvShape kFedShape{1, 2, 16};
inline constexpr CalibrationShape kFedCalibrationShape{1, 4, 2, 16};
inline constexpr int64_t kFedRowSize = 32, kFedGroup = 2;

// Values near some directions, so that a spectrum falls; keys rotated at their positions.
inline TestLayer& data() {
  static TestLayer layer(kFedCalibrationShape, 1, 600, 5);
  static const bool is_mixed = [] {
    for (size_t i = 0; i < layer.values.size(); i += 16) {
      for (size_t c = 1; c < 16; ++c) {
        layer.values[i + c] = 0.7f * layer.values[i + c - 1] + 0.5f * layer.values[i + c];
      }
    }
    for (auto* x : {&layer.keys, &layer.values}) {
      for (float& v : *x) v = round_to_half(v);
    }
    layer.rotated_keys = layer.keys;
    rope(row_major(layer.rotated_keys.data(), {600, 2, 16}), 0, RopeTable(16, 1000, 10000));
    return true;
  }();
  (void)is_mixed;
  return layer;
}

inline std::shared_ptr<const Calibration> fitted(int64_t rank = 16) {
  static std::map<int64_t, std::shared_ptr<const Calibration>> known;
  auto& out = known[rank];
  if (out != nullptr) return out;
  ThreadPool pool(1, ThreadPool::Pin::kNo);
  auto calibration = std::make_shared<Calibration>();
  calibration->info.shape = kFedCalibrationShape;
  calibration->layers.push_back(fit_layer(data().views, {.rank = rank}, pool));
  return out = calibration;
}

struct Fed {
  Fed(const std::string& spec, CacheMode mode, int num_threads = 1,
      std::shared_ptr<const Calibration> calibration = fitted())
      : pool(num_threads, ThreadPool::Pin::kNo),
        cache(kFedShape, parse_spec(spec), mode, rope, pool, std::move(calibration)),
        id(cache.add_sequence()) {}

  void append(int64_t num_new) {
    const auto chunk = [&](const std::vector<float>& rows) {
      return row_major<const float, 3>(rows.data() + cache.length(id) * kFedRowSize,
                                       {num_new, 2, 16});
    };
    cache.append(0, id, chunk(data().keys), chunk(data().values));
    last_chunk = num_new;
  }

  std::vector<float> attend_head(std::span<const AttendRun> runs, int64_t head) {
    const int64_t first = cache.length(id) - last_chunk, row = kFedGroup * 16;
    std::vector<float> query, out(static_cast<size_t>(last_chunk * row));
    for (int64_t t = first; t < cache.length(id); ++t) {
      const float* q = data().queries.data() + (t * 4 + head * kFedGroup) * 16;
      query.insert(query.end(), q, q + row);
    }
    const AttendJob job{query.data(), out.data(), row, last_chunk, first, runs};
    attend({16, kFedGroup, 0.05f}, {&job, 1}, Precision::kF32, pool);
    return out;
  }
  // What the last chunk's queries get, of all heads; reconstructed: of every value expanded first.
  std::vector<float> attended(bool reconstructed = false) {
    std::vector<float> out;
    cache.prepare_view(0, id);
    for (int64_t head = 0; head < 2; ++head) {
      const auto runs = cache.view(0, id, head);
      const DecodedRuns decoded(reconstructed ? runs : std::span<const AttendRun>(), 16);
      const auto part = attend_head(reconstructed ? decoded.runs() : runs, head);
      out.insert(out.end(), part.begin(), part.end());
    }
    return out;
  }
  // Mean squared error of the values, or of the keys after RoPE, that the view stands for.
  double error(KvSide side = KvSide::kValue) {
    const bool is_key = side == KvSide::kKey;
    double sum = 0;
    int64_t count = 0;
    cache.prepare_view(0, id);
    for (int64_t head = 0; head < 2; ++head) {
      for (const AttendRun& run : cache.view(0, id, head)) {
        for (int64_t t = 0; t < run.num_tokens; ++t, ++count) {
          const Row row = is_key ? key_in_run(run, t, 16) : value_in_run(run, t, 16);
          const float* given = (is_key ? data().rotated_keys : data().values).data() +
                               (run.first_position + t) * kFedRowSize + head * 16;
          for (int64_t c = 0; c < 16; ++c) sum += std::pow(double{row[c]} - given[c], 2);
        }
      }
    }
    return sum / static_cast<double>(count);
  }

  RopeTable rope{16, 1000, 10000};
  ThreadPool pool;
  KvCache cache;
  KvCache::SequenceId id;
  int64_t last_chunk = 0;
};

inline double max_difference(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    largest = std::max(largest, std::abs(double{a[i]} - b[i]));
  }
  return largest;
}

inline constexpr const char* kWindows[] = {"", ",sink=0,recent=0", ",sink=3,recent=20,block=64",
                                           ",sink=64,recent=1", ",sink=70,recent=130"};
inline constexpr CacheMode kModes[] = {CacheMode::kStrict, CacheMode::kAsServed};

// What the cache says to a spec, or "accepted".
inline std::string refusal(const std::string& spec,
                           const std::shared_ptr<const Calibration>& calibration) {
  try {
    Fed fed(spec, CacheMode::kStrict, 1, calibration);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "accepted";
}

inline void expect_same_bytes(Fed& one, Fed& other) {
  const StoredSequence a = one.cache.store(one.id), b = other.cache.store(other.id);
  ASSERT_EQ(a.sections.size(), b.sections.size());
  for (size_t i = 0; i < a.sections.size(); ++i) {
    ASSERT_EQ(a.sections[i].pieces.size(), b.sections[i].pieces.size());
    for (size_t p = 0; p < a.sections[i].pieces.size(); ++p) {
      EXPECT_TRUE(std::ranges::equal(a.sections[i].pieces[p], b.sections[i].pieces[p]));
    }
  }
}

// A sequence that was stored and restored goes on with the same bits.
inline void expect_restored_goes_on(const std::string& spec, CacheMode mode) {
  Fed from(spec, mode), to(spec, mode, 2);
  from.append(250);
  to.id = to.cache.restore(from.cache.store(from.id));
  for (const int64_t num_new : {1, 70}) {
    from.append(num_new);
    to.append(num_new);
    ASSERT_EQ(from.attended(), to.attended()) << spec;
  }
}

}  // namespace kvquant::test
