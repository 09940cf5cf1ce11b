// For tests: random tokens, and a chunk of them as KvCache takes it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "cache/kv_cache_test_view.h"
#include "kvquant/tensor_view.h"

namespace kvquant::test {

// Heavy-tailed tokens with large channels, [num_tokens][row_size].
inline std::vector<Row> random_rows(int64_t num_tokens, int64_t row_size, std::mt19937& rng) {
  std::student_t_distribution<float> heavy_tailed(3);
  std::vector<Row> rows(num_tokens, Row(row_size));
  for (Row& row : rows) {
    for (size_t c = 0; c < row.size(); ++c) {
      row[c] = std::clamp(heavy_tailed(rng), -50.0f, 50.0f) * (c % 7 == 3 ? 8.0f : 1.0f);
    }
  }
  return rows;
}

// A chunk as the three-dimensional view that KvCache takes; `flat` keeps the numbers.
inline TensorView<const float, 3> as_chunk(const std::vector<Row>& rows, int64_t num_kv_heads,
                                           std::vector<float>& flat) {
  flat.clear();
  for (const Row& row : rows) flat.insert(flat.end(), row.begin(), row.end());
  const auto num_tokens = static_cast<int64_t>(rows.size());
  return row_major(static_cast<const float*>(flat.data()),
                   {num_tokens, num_kv_heads,
                    static_cast<int64_t>(rows.empty() ? 0 : rows[0].size()) / num_kv_heads});
}

}  // namespace kvquant::test
