#include <fmt/format.h>

#include <algorithm>

#include "base/quote.h"
#include "eval/likelihood_tasks.h"
#include "kvquant/error.h"

namespace kvquant {
namespace {

bool is_space(char c) { return c == ' ' || ('\t' <= c && c <= '\r'); }

std::string trimmed(const std::string& text) {
  size_t begin = 0, end = text.size();
  while (begin < end && is_space(text[begin])) ++begin;
  while (end > begin && is_space(text[end - 1])) --end;
  return text.substr(begin, end - begin);
}

void replace_all(std::string& text, const std::string& from, const std::string& to) {
  for (size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size())) {
    text.replace(at, from.size(), to);
  }
}

// WikiHow's marks are taken out: "[title]" ends a sentence, others vanish.
std::string without_marks(const std::string& text) {
  std::string out = trimmed(text);
  replace_all(out, " [title]", ". ");
  for (size_t open = out.find('['); open != std::string::npos; open = out.find('[', open)) {
    const size_t close = out.find(']', open);
    if (close == std::string::npos) break;
    out.erase(open, close + 1 - open);
  }
  replace_all(out, "  ", " ");
  return out;
}

// An index that is a number or its digits.
size_t require_index(const JsonLine& line, const char* key, size_t count) {
  const auto found = line.object.find(key);
  int64_t index = -1;
  if (found != line.object.end() && found->is_number_integer()) index = found->get<int64_t>();
  if (found != line.object.end() && found->is_string()) {
    const auto text = found->get<std::string>();
    if (text.size() == 1 && '0' <= text[0] && text[0] <= '9') index = text[0] - '0';
  }
  if (index < 0 || index >= static_cast<int64_t>(count)) {
    throw FormatError(line.place + ": \"" + key + "\" is not in [0, " + std::to_string(count) +
                      ")");
  }
  return static_cast<size_t>(index);
}

// Small letters behind a large one.
std::string capitalised(std::string text) {
  for (size_t i = 0; i < text.size(); ++i) {
    char& c = text[i];
    if (i == 0 && 'a' <= c && c <= 'z') c = static_cast<char>(c - 'a' + 'A');
    if (i > 0 && 'A' <= c && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return text;
}

}  // namespace

ChoiceText read_lambada(const JsonLine& line) {
  const std::string text = trimmed(require_text(line, "text"));
  const size_t space = text.rfind(' ');
  if (space == std::string::npos) throw FormatError(line.place + ": \"text\" is a single word");
  return {text.substr(0, space), {text.substr(space)}, 0};
}

ChoiceText read_hellaswag(const JsonLine& line) {
  std::string context;
  if (line.object.contains("ctx_a")) {
    context = require_text(line, "ctx_a");
    context += fmt::format(" {}", capitalised(require_text(line, "ctx_b")));
  } else {
    context = require_text(line, "ctx");
  }
  ChoiceText out;
  out.context =
      trimmed(without_marks(fmt::format("{}: {}", require_text(line, "activity_label"), context)));
  for (const std::string& ending : require_texts(line, "endings")) {
    out.choices.push_back(fmt::format(" {}", without_marks(ending)));
  }
  out.right = require_index(line, "label", out.choices.size());
  return out;
}

ChoiceText read_piqa(const JsonLine& line) {
  ChoiceText out;
  out.context = fmt::format("Question: {}\nAnswer:", require_text(line, "goal"));
  for (const char* key : {"sol1", "sol2"}) {
    out.choices.push_back(fmt::format(" {}", require_text(line, key)));
  }
  out.right = require_index(line, "label", out.choices.size());
  return out;
}

ChoiceText read_arc(const JsonLine& line) {
  ChoiceText out;
  std::vector<std::string> labels;
  std::string stem;
  const auto question = line.object.find("question");
  if (question != line.object.end() && question->is_object()) {
    const JsonLine inner{*question, line.place};
    stem = require_text(inner, "stem");
    const auto choices = question->find("choices");
    if (choices == question->end() || !choices->is_array()) {
      throw FormatError(line.place + ": \"choices\" is missing or not a list");
    }
    for (const Json& item : *choices) {
      if (!item.is_object()) throw FormatError(line.place + ": a choice is not an object");
      const JsonLine choice{item, line.place};
      out.choices.push_back(fmt::format(" {}", require_text(choice, "text")));
      labels.push_back(require_text(choice, "label"));
    }
  } else {
    stem = require_text(line, "question");
    const auto choices = line.object.find("choices");
    if (choices == line.object.end() || !choices->is_object()) {
      throw FormatError(line.place + ": \"choices\" is missing or not an object");
    }
    const JsonLine inner{*choices, line.place};
    for (const std::string& text : require_texts(inner, "text")) {
      out.choices.push_back(fmt::format(" {}", text));
    }
    labels = require_texts(inner, "label");
  }
  out.context = fmt::format("Question: {}\nAnswer:", stem);
  const std::string key = require_text(line, "answerKey");
  const auto right = std::find(labels.begin(), labels.end(), key);
  if (labels.size() != out.choices.size() || right == labels.end()) {
    throw FormatError(line.place + ": \"answerKey\" " + quote(key) + " is no choice's label");
  }
  out.right = static_cast<size_t>(right - labels.begin());
  return out;
}

}  // namespace kvquant
