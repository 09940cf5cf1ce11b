// Queries as keys that are latents need them: for scores <q, mean> + sum_r <q, D_r> z_r each query
// of a job is projected to its <q, D_r> once, whatever the number of tiles and tasks that read it.
// Internal to attend.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/buffer.h"
#include "base/threads.h"
#include "ops/attend.h"

namespace kvquant {

// The map of a job's keys, null where none are latents.
const LatentMap* key_latents_of(const AttendJob& job);

class LatentQueries {
 public:
  // Projects the queries of all jobs whose keys are latents. Memory is reused and grows to the
  // largest need. Results are the same at any number of threads.
  void project(const AttendShape& shape, std::span<const AttendJob> jobs, ThreadPool& pool);

  // Of such a job, from a query on: [.., group, width], zeros behind the rank, and scale * log2(e)
  // * <q, mean>, [.., group].
  const float* queries(int64_t job, int64_t first_query) const {
    const Place& place = places_[static_cast<size_t>(job)];
    return queries_.data() + place.first + first_query * place.query_size;
  }
  const float* biases(int64_t job, int64_t first_query) const {
    return biases_.data() + places_[static_cast<size_t>(job)].first_row + first_query * group_;
  }

 private:
  struct Place {
    int64_t first = 0, query_size = 0;  // floats, within queries_
    int64_t first_row = 0;              // within biases_
  };
  // Some queries of a job.
  struct Part {
    int64_t job, first_query, num_queries;
  };
  void project(const AttendShape& shape, const AttendJob& job, const Part& part);

  int64_t group_ = 0;
  std::vector<Place> places_;  // per job
  std::vector<Part> parts_;
  Buffer<float> queries_, biases_;
};

}  // namespace kvquant
