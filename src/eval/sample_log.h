// The results of samples as they come, one JSON object a line, so that a run that was killed goes
// on where it stopped:
// {"run":…,"task":…,"spec":…,"seed":42,"sample":…,"length":2048,"depth":0.5,"references":[[…]],
//  "answers":[…],"scores":[1.0],"compressed_tokens":1984}, with "extra":{"nll":[…]} of likelihoods.
// `run` is a hash of what decides answers but is not in the line: model, calibration, arithmetic.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "eval/eval_sample.h"
#include "eval/jsonl_log.h"
#include "model/tokenizer.h"

namespace kvquant {

class SampleLog {
 public:
  // In memory only.
  SampleLog() = default;
  // Reads the file if it is there, and takes an unfinished last line off it. Throws IoError,
  // FormatError with the line's number.
  explicit SampleLog(const std::string& path);

  // Null when there is none with as many answers as questions. Valid until the next add.
  const SampleResult* find(const std::string& run, const std::string& spec,
                           const EvalSample& sample) const;

  // On disk when it returns. `tokenizer` (may be null) adds the prompt's text. Throws IoError,
  // OutOfMemory where the disk is full.
  void add(const std::string& run, const std::string& spec, const EvalSample& sample,
           const SampleResult& result, const Tokenizer* tokenizer = nullptr);

  int64_t num_read() const { return file_.num_read(); }  // lines that were there at first

 private:
  void read(const std::string& line, const std::string& place);

  std::map<std::string, SampleResult> results_;
  JsonlLog file_;
};

}  // namespace kvquant
