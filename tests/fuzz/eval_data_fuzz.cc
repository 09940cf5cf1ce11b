// Data sets of evaluation tasks from any bytes: lines and documents are read or refused. Seeds:
// tests/fuzz/seeds/eval_data.
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "eval/likelihood_tasks.h"
#include "eval/qa_documents.h"
#include "kvquant/error.h"

using kvquant::FormatError;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  kvquant::option_letter(text);
  kvquant::qa_f1(text, "the answer");
  try {
    kvquant::parse_qa_documents(kvquant::Json::parse(text, nullptr, false), "x");
  } catch (const FormatError&) {
  }
  std::vector<kvquant::JsonLine> lines;
  try {
    lines = kvquant::parse_jsonl(text, "x");
  } catch (const FormatError&) {
  }
  for (const auto& line : lines) {
    for (const auto read :
         {kvquant::read_lambada, kvquant::read_hellaswag, kvquant::read_piqa, kvquant::read_arc}) {
      try {
        const kvquant::ChoiceText choice = read(line);
        if (choice.right >= choice.choices.size()) __builtin_trap();
      } catch (const FormatError&) {
      }
    }
  }
  return 0;
}
