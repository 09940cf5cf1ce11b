// For tests of attention: jobs whose runs are dense, coded or rows, in any mix, with the dense f32
// runs that they are compared with; and what must hold for all of them.
#pragma once

#include <bit>
#include <vector>

#include "hwy/targets.h"
#include "ops/attend_test_check.h"

namespace kvquant::testing {

class MixedJob {
 public:
  // Anything with run() and dense_run().
  template <class Run>
  void add(const Run& run) {
    add(run.run(), run.dense_run());
  }
  void add(const AttendRun& run) { add(run, run); }
  void add(AttendRun run, AttendRun dense) {
    runs_.push_back(run);
    dense_.push_back(dense);
  }
  void limit_last(int64_t min_lag, int64_t max_lag) {
    for (auto* runs : {&runs_, &dense_}) {
      runs->back().min_lag = min_lag;
      runs->back().max_lag = max_lag;
    }
  }
  TestJob test(const AttendShape& shape, int64_t num_queries, int64_t position,
               TestRandom& random) const {
    TestJob test(shape, num_queries, position, runs_, random);
    test.dense_runs = dense_;
    return test;
  }

 private:
  std::vector<AttendRun> runs_, dense_;
};

template <class Run>
MixedJob only(const Run& run) {
  MixedJob job;
  job.add(run);
  return job;
}

inline std::vector<float> run_job(const AttendShape& shape, const TestJob& test,
                                  const Variant& variant, int num_threads = 1) {
  ThreadPool pool(num_threads, ThreadPool::Pin::kNo);
  std::vector<float> out;
  const AttendJob job = test.job(out);
  attend(shape, {&job, 1}, variant.precision, pool, variant.backend);
  return out;
}

// One and three threads give the same bits, and nothing is written between the rows of the output.
inline void expect_same_bits_at_any_threads(
    const AttendShape& shape, const TestJob& test,
    const std::vector<Variant>& variants = fast_variants()) {
  const auto row = static_cast<size_t>(test.row_size + kGap);
  for (const Variant& variant : variants) {
    const auto one = run_job(shape, test, variant, 1), three = run_job(shape, test, variant, 3);
    for (size_t i = 0; i < one.size(); ++i) {
      ASSERT_EQ(std::bit_cast<uint32_t>(one[i]), std::bit_cast<uint32_t>(three[i]))
          << variant.name() << ", " << test.queries << " queries, at " << i;
      if (i % row >= row - kGap) {
        ASSERT_EQ(one[i], kGuard) << variant.name();
      }
    }
  }
}

// Every instruction set that Highway has kernels for, on jobs of 1, 2 and 30 last queries.
inline void expect_every_instruction_set_matches(const AttendShape& shape, const MixedJob& job,
                                                 int64_t num_positions, TestRandom& random) {
  std::vector<Variant> variants;
  for (const Variant& v : fast_variants()) {
    if (v.backend == Backend::kSimd) variants.push_back(v);
  }
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    hwy::SetSupportedTargetsForTest(target);
    ErrorCheck check(shape, variants);
    for (const int64_t queries : {1, 2, 30, 3, 1, 2}) {  // sums of few errors say little
      check.add(job.test(shape, queries, num_positions - queries, random));
    }
    check.expect_within_twice_naive(hwy::TargetName(target));
  }
  hwy::SetSupportedTargetsForTest(0);  // back to what the CPU has
}

}  // namespace kvquant::testing
