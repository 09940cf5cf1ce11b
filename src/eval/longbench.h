// Questions about long documents: the question-answering tasks of LongBench (arXiv 2308.14508) and
// tasks of L-Eval (arXiv 2307.11088), from their authors' JSON lines. A document that is too long
// loses its middle; answers are as long as published and scored by F1 over words (the best one of
// the answers), by option or by containment.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "eval/sample_maker.h"

namespace kvquant {

// Prompts by task, each with {context} and behind it {input}. Throws IoError, FormatError.
std::map<std::string, std::string> read_prompts(const std::string& path);

// LongBench: {"context", "input", "answers": [...]}. L-Eval: {"input" (the document),
// "instructions": [...], "outputs": [...], "evaluation": "f1" or "exam"}. Throws
// std::invalid_argument without data or prompt, or when the context is too small for a question;
// IoError, FormatError naming the line.
std::vector<EvalSample> make_longbench(const SampleMaker& maker, const std::string& task);
std::vector<EvalSample> make_leval(const SampleMaker& maker, const std::string& task);

std::vector<std::string> longbench_tasks();
std::vector<std::string> leval_tasks();

}  // namespace kvquant
