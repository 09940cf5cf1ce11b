// Questions and the documents that answer them, from files in the layouts of SQuAD
// (arXiv 1606.05250) and HotpotQA (arXiv 1809.09600).
#pragma once

#include <string>
#include <vector>

#include "formats/json_fields.h"

namespace kvquant {

struct QaQuestion {
  std::string question;
  std::vector<std::string> answers;  // any of them
  std::vector<size_t> documents;     // that answer it
  std::vector<size_t> related;       // distractors that belong to it; not in `documents`
};

struct QaDocuments {
  std::vector<std::string> documents;  // each once
  std::vector<QaQuestion> questions;
};

// SQuAD: {"data": [{"paragraphs": [{"context", "qas": [{"question", "answers": [{"text"}]}]}]}]};
// questions without answer are left out, other paragraphs of the article are related. HotpotQA:
// [{"question", "answer", "context": [[title, [sentence, ...]], ...], "supporting_facts":
// [[title, index], ...]}]; without supporting facts all of its context answers. Throws IoError,
// FormatError naming the entry.
QaDocuments read_qa_documents(const std::string& path);
// The same of a file that was read from `path`.
QaDocuments parse_qa_documents(const Json& file, const std::string& path);

}  // namespace kvquant
