#include "eval/qa_documents.h"

#include <algorithm>
#include <set>
#include <unordered_map>

#include "eval/jsonl.h"
#include "kvquant/error.h"

namespace kvquant {
namespace {

class Collector {
 public:
  size_t document(const std::string& text) {
    const auto [found, is_new] = known_.try_emplace(text, out.documents.size());
    if (is_new) out.documents.push_back(text);
    return found->second;
  }

  QaDocuments out;

 private:
  std::unordered_map<std::string, size_t> known_;
};

void add_article(Collector& collector, const Json& article) {
  std::vector<size_t> all;
  for (const Json& paragraph : article.at("paragraphs")) {
    all.push_back(collector.document(paragraph.at("context").get<std::string>()));
  }
  for (size_t p = 0; p < all.size(); ++p) {
    std::vector<size_t> related;
    for (const size_t other : all) {
      if (other != all[p]) related.push_back(other);
    }
    for (const Json& item : article.at("paragraphs")[p].at("qas")) {
      std::vector<std::string> answers;
      for (const Json& answer : item.at("answers")) {
        auto text = answer.at("text").get<std::string>();
        const bool is_new = std::find(answers.begin(), answers.end(), text) == answers.end();
        if (is_new && !text.empty()) answers.push_back(std::move(text));
      }
      if (answers.empty()) continue;
      collector.out.questions.push_back(
          {item.at("question").get<std::string>(), answers, {all[p]}, related});
    }
  }
}

void add_hotpot_question(Collector& collector, const Json& item) {
  std::set<std::string> supporting;
  if (item.contains("supporting_facts")) {
    for (const Json& fact : item.at("supporting_facts")) {
      supporting.insert(fact.at(0).get<std::string>());
    }
  }
  QaQuestion question{item.at("question").get<std::string>(), {}, {}, {}};
  question.answers.push_back(item.at("answer").get<std::string>());
  for (const Json& part : item.at("context")) {
    const auto title = part.at(0).get<std::string>();
    std::string text = title + "\n";
    for (const Json& sentence : part.at(1)) text += sentence.get<std::string>();
    const size_t document = collector.document(text);
    const bool answers = supporting.empty() || supporting.contains(title);
    auto& list = answers ? question.documents : question.related;
    if (std::find(list.begin(), list.end(), document) == list.end()) list.push_back(document);
  }
  std::erase_if(question.related, [&](size_t document) {
    return std::find(question.documents.begin(), question.documents.end(), document) !=
           question.documents.end();
  });
  if (question.documents.empty() || question.answers[0].empty()) {
    throw FormatError("it has no document or no answer");
  }
  collector.out.questions.push_back(std::move(question));
}

}  // namespace

QaDocuments read_qa_documents(const std::string& path) {
  return parse_qa_documents(read_json(path), path);
}

QaDocuments parse_qa_documents(const Json& file, const std::string& path) {
  const bool is_squad = file.is_object() && file.contains("data");
  const Json& entries = is_squad ? file.at("data") : file;
  if (!entries.is_array()) {
    throw FormatError(path +
                      ": neither SQuAD's layout (an object with \"data\") nor HotpotQA's (a "
                      "list of questions)");
  }
  Collector collector;
  for (size_t i = 0; i < entries.size(); ++i) {
    try {
      if (is_squad) {
        add_article(collector, entries[i]);
      } else {
        add_hotpot_question(collector, entries[i]);
      }
    } catch (const std::exception& error) {
      throw FormatError(path + ": entry " + std::to_string(i) +
                        (is_squad ? " is no article of SQuAD: " : " is no question of HotpotQA: ") +
                        error.what());
    }
  }
  if (collector.out.questions.empty()) throw FormatError(path + ": there is no question in it");
  return std::move(collector.out);
}

}  // namespace kvquant
