#include <algorithm>
#include <set>

#include "base/check.h"
#include "eval/jsonl.h"
#include "eval/qa_documents.h"
#include "eval/ruler.h"
#include "kvquant/error.h"

namespace kvquant {
namespace {

bool is_qa(const std::string& task) { return task == "qa_1" || task == "qa_2"; }

// Documents of one question: its own first, then the others in the order in which they come in.
std::vector<size_t> document_order(const QaDocuments& data, const QaQuestion& question,
                                   RandomDraws& draws) {
  std::vector<size_t> order = question.documents;
  auto related = question.related;
  draws.shuffle(related);
  order.insert(order.end(), related.begin(), related.end());
  const std::set<size_t> taken(order.begin(), order.end());
  std::vector<size_t> others;
  for (size_t i = 0; i < data.documents.size(); ++i) {
    if (!taken.contains(i)) others.push_back(i);
  }
  draws.shuffle(others);
  order.insert(order.end(), others.begin(), others.end());
  return order;
}

class QaMaker {
 public:
  QaMaker(const SampleMaker& maker, const std::string& task, const std::string& path)
      : maker_(maker),
        task_(task),
        path_(path),
        data_(read_qa_documents(path)),
        piece_(maker.tokenizer) {}

  int64_t num_questions() const { return std::ssize(data_.questions); }

  EvalSample make(int64_t length, int64_t index) {
    const QaQuestion& question = data_.questions[static_cast<size_t>(index)];
    RandomDraws draws = maker_.draws(task_, length, index);
    EvalSample out;
    out.cell.length = length;
    out.context = maker_.frame.before;
    append(out.context, maker_.piece("Answer the question behind these documents. Give the answer "
                                     "alone, in as few words as possible."));
    out.questions.push_back({maker_.question(question.question, ""), question.answers});
    out.metric = ruler_metric(task_);
    out.max_new_tokens = ruler_answer_tokens(task_);
    const int64_t room = length - num_tokens(out);
    auto order = document_order(data_, question, draws);
    const auto size_of = [&](int64_t count) {
      int64_t total = 0;
      for (int64_t i = 0; i < count; ++i) {
        total += std::ssize(title(i)) + std::ssize(text(order[static_cast<size_t>(i)]));
      }
      return total;
    };
    const int64_t least = std::ssize(question.documents);
    const int64_t count =
        largest_fitting(least, std::ssize(order), [&](int64_t n) { return size_of(n) <= room; });
    check_arg(count >= least, "a context of " + std::to_string(length) +
                                  " tokens is too small: the documents that answer question " +
                                  std::to_string(index + 1) + " of " + path_ + " take " +
                                  std::to_string(length - room + size_of(least)));
    order.resize(static_cast<size_t>(count));
    draws.shuffle(order);
    for (int64_t i = 0; i < count; ++i) {
      append(out.context, title(i));
      append(out.context, text(order[static_cast<size_t>(i)]));
    }
    return out;
  }

 private:
  const std::vector<int32_t>& title(int64_t i) {
    return piece_("\n\nDocument " + std::to_string(i + 1) + ":\n");
  }
  const std::vector<int32_t>& text(size_t document) { return piece_(data_.documents[document]); }

  const SampleMaker& maker_;
  const std::string& task_;
  std::string path_;
  QaDocuments data_;
  PieceCache piece_;
};

}  // namespace

int64_t ruler_answer_tokens(const std::string& task) {
  if (task == "vt") return 30;
  if (task == "cwe") return 120;
  if (task == "fwe") return 50;
  return is_qa(task) ? 32 : 128;
}

EvalMetric ruler_metric(const std::string& task) {
  return is_qa(task) ? EvalMetric::kAnyContained : EvalMetric::kContained;
}

std::vector<EvalSample> make_ruler_qa(const SampleMaker& maker, const std::string& task) {
  const auto found = maker.options.data.find(task);
  check_arg(found != maker.options.data.end(),
            task + " needs --data " + task + "=FILE, in the layout of SQuAD or HotpotQA");
  QaMaker qa(maker, task, found->second);
  std::vector<EvalSample> out;
  for (const int64_t length : maker.lengths) {
    const int64_t count = std::min(maker.num_samples(kRulerSamples), qa.num_questions());
    for (int64_t i = 0; i < count; ++i) out.push_back(qa.make(length, i));
  }
  return out;
}

std::vector<EvalSample> read_ruler(const SampleMaker& maker, const std::string& task,
                                   const std::string& path) {
  std::vector<EvalSample> out;
  for (const JsonLine& line : read_jsonl(path, maker.num_samples(kAllLines))) {
    EvalSample sample;
    sample.context = maker.frame.before;
    append(sample.context, maker.piece(require_text(line, "input")));
    sample.max_new_tokens = ruler_answer_tokens(task);
    sample.metric = ruler_metric(task);
    std::vector<int32_t> last;
    if (sample.context.size() > 1) {  // the prompt is a whole: the question is its last token
      last.push_back(sample.context.back());
      sample.context.pop_back();
    }
    append(last, maker.frame.after);
    const auto prefix = json_text(line.object, "answer_prefix", line.place);
    if (prefix && !prefix->empty()) append(last, maker.piece(*prefix));
    sample.questions.push_back({last, require_texts(line, "outputs")});
    if (sample.context.empty() || last.empty()) {
      throw FormatError(line.place + ": \"input\" is too short to be a prompt");
    }
    if (num_tokens(sample) > maker.options.max_context) {
      throw FormatError(line.place + ": a sample of " + std::to_string(num_tokens(sample)) +
                        " tokens is longer than the context of " +
                        std::to_string(maker.options.max_context));
    }
    out.push_back(std::move(sample));
  }
  return out;
}

}  // namespace kvquant
