#include "model/calibration_source.h"

#include <algorithm>

#include "base/hash.h"

namespace kvquant {

std::string hash_of_tokens(std::span<const int32_t> tokens) {
  Hash64 hash;
  for (const int32_t token : tokens) hash.add_integer(token);
  return hash.hex();
}

std::string calibration_fingerprint(const CalibrationInfo& info) {
  Hash64 hash;
  hash.add_text(info.kvquant_version);
  hash.add_text(info.model_fingerprint);
  hash.add_text(info.recipe);
  hash.add_integer(info.seq_len);
  hash.add_integer(info.rank);
  if (!info.holds.empty()) hash.add_text(info.holds);
  for (const CalibrationText& sample : info.texts) hash.add_text(sample.hash);
  return hash.hex();
}

int64_t num_samples_within(const CalibrationInfo& info, std::span<const int32_t> text,
                           int64_t num_evaluated) {
  const auto length = static_cast<int64_t>(text.size());
  return std::count_if(info.texts.begin(), info.texts.end(), [&](const CalibrationText& sample) {
    if (sample.begin < 0 || sample.begin >= sample.end || sample.end > length) return false;
    if (sample.begin >= num_evaluated) return false;
    return hash_of_tokens(text.subspan(static_cast<size_t>(sample.begin),
                                       static_cast<size_t>(sample.end - sample.begin))) ==
           sample.hash;
  });
}

}  // namespace kvquant
