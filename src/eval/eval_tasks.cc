#include "eval/eval_tasks.h"

#include <algorithm>
#include <functional>
#include <iterator>

#include "base/check.h"
#include "base/quote.h"
#include "eval/likelihood_tasks.h"
#include "eval/longbench.h"
#include "eval/planted_tasks.h"
#include "eval/recall_tasks.h"
#include "eval/ruler.h"

namespace kvquant {
namespace {

constexpr int64_t kShortest = 2048, kLongest = 32768;  // tokens, where no lengths are given

using MakeSamples = std::function<std::vector<EvalSample>(const SampleMaker&)>;
struct Task {
  EvalTaskInfo info;
  bool has_lengths;  // of contexts
  MakeSamples make;
};

// RULER's samples are made, or read from its own files.
Task ruler_task(const std::string& name, TaskData data, const MakeSamples& make) {
  const auto read_or_make = [name, make](const SampleMaker& maker) {
    const auto file = maker.options.data.find(name);
    const bool is_ready = file != maker.options.data.end() && file->second.ends_with(".jsonl");
    auto samples = is_ready ? read_ruler(maker, name, file->second) : make(maker);
    for (EvalSample& sample : samples) sample.stop = EvalStop::kNothing;
    return samples;
  };
  return {{name, "ruler", data}, true, read_or_make};
}

// A few samples of each kind, to be repeated with other seeds.
std::vector<EvalSample> make_stability(const SampleMaker& maker) {
  constexpr int64_t kSamples = 2;  // of each kind and length
  using Make = std::vector<EvalSample> (*)(const SampleMaker&);
  constexpr Make kKinds[] = {make_passkey, make_recall_table, make_recall_facts, make_recall_chain,
                             make_recall_copy};
  EvalTaskOptions options = maker.options;
  options.num_samples = maker.num_samples(kSamples);
  const SampleMaker few{maker.tokenizer, options, maker.frame, maker.lengths};
  std::vector<EvalSample> out;
  for (const auto make : kKinds) {
    auto samples = make(few);
    std::move(samples.begin(), samples.end(), std::back_inserter(out));
  }
  return out;
}

std::vector<Task> make_tasks() {
  std::vector<Task> all = {
      {{"passkey", ""}, true, make_passkey},
      {{"needle", ""}, true, make_needle},
      {{"recall_story", "recall", TaskData::kNone, false}, true, make_recall_story},
      {{"recall_table", "recall"}, true, make_recall_table},
      {{"recall_facts", "recall"}, true, make_recall_facts},
      {{"recall_chain", "recall"}, true, make_recall_chain},
      {{"recall_copy", "recall"}, true, make_recall_copy},
  };
  all.push_back({{"stability", "", TaskData::kNone, true, 5}, true, make_stability});
  for (const NiahPlan& plan : niah_plans()) {
    all.push_back(ruler_task(plan.task, TaskData::kOptional,
                             [plan](const SampleMaker& maker) { return make_niah(maker, plan); }));
  }
  all.push_back(ruler_task("vt", TaskData::kOptional, make_vt));
  all.push_back(ruler_task("cwe", TaskData::kOptional, make_cwe));
  all.push_back(ruler_task("fwe", TaskData::kOptional, make_fwe));
  for (const std::string name : {"qa_1", "qa_2"}) {
    all.push_back(ruler_task(name, TaskData::kRequired, [name](const SampleMaker& maker) {
      return make_ruler_qa(maker, name);
    }));
  }
  const auto add_read = [&](const std::string& name, const char* group, auto make) {
    all.push_back({{name, group, TaskData::kRequired, false},
                   false,
                   [name, make](const SampleMaker& maker) { return make(maker, name); }});
  };
  for (const std::string& name : longbench_tasks()) add_read(name, "longbench", make_longbench);
  for (const std::string& name : leval_tasks()) add_read(name, "leval", make_leval);
  for (const char* name : {"lambada", "hellaswag", "piqa", "arc_easy", "arc_challenge"}) {
    add_read(name, "lm", make_likelihood);
  }
  return all;
}

const std::vector<Task>& tasks() {
  static const std::vector<Task> all = make_tasks();
  return all;
}

std::string known_names() {
  std::string out;
  for (const auto& name : eval_task_names()) out += (out.empty() ? "" : ", ") + name;
  return out;
}

std::vector<int64_t> lengths_of(const std::string& task, const EvalTaskOptions& options) {
  std::vector<int64_t> lengths = options.context_lengths;
  if (lengths.empty()) {
    for (int64_t n = kShortest; n <= std::min(kLongest, options.max_context); n *= 2) {
      lengths.push_back(n);
    }
    check_arg(!lengths.empty(), task + ": a context of " + std::to_string(options.max_context) +
                                    " tokens is below the shortest length, " +
                                    std::to_string(kShortest) + ": give --context-lengths");
  }
  for (const int64_t length : lengths) {
    check_arg(0 < length && length <= options.max_context,
              task + ": a context of " + std::to_string(length) + " tokens is not in [1, " +
                  std::to_string(options.max_context) + "], the model's");
  }
  std::sort(lengths.begin(), lengths.end());
  lengths.erase(std::unique(lengths.begin(), lengths.end()), lengths.end());
  return lengths;
}

}  // namespace

const std::vector<EvalTaskInfo>& eval_tasks() {
  static const std::vector<EvalTaskInfo> infos = [] {
    std::vector<EvalTaskInfo> out;
    for (const Task& task : tasks()) out.push_back(task.info);
    return out;
  }();
  return infos;
}

std::vector<std::string> eval_task_names() {
  std::vector<std::string> names, groups;
  for (const EvalTaskInfo& task : eval_tasks()) {
    auto& list = task.group.empty() ? names : groups;
    const std::string& name = task.group.empty() ? task.name : task.group;
    if (std::find(list.begin(), list.end(), name) == list.end()) list.push_back(name);
  }
  names.insert(names.end(), groups.begin(), groups.end());
  return names;
}

std::vector<EvalTaskInfo> expand_tasks(const std::vector<std::string>& names) {
  std::vector<EvalTaskInfo> out;
  for (const std::string& name : names) {
    bool is_known = false;
    for (const EvalTaskInfo& task : eval_tasks()) {
      if (task.name != name && (task.group.empty() || task.group != name)) continue;
      is_known = true;
      const bool is_twice = std::any_of(out.begin(), out.end(), [&](const EvalTaskInfo& other) {
        return other.name == task.name;
      });
      check_arg(!is_twice, "--tasks names " + task.name + " twice");
      out.push_back(task);
    }
    if (!is_known) {
      std::string members;
      for (const EvalTaskInfo& task : eval_tasks()) {
        if (!task.group.empty()) members += (members.empty() ? "" : ", ") + task.name;
      }
      throw std::invalid_argument("there is no task " + quote(name) + ": " + known_names() +
                                  ", or one of a group: " + members);
    }
  }
  return out;
}

std::vector<EvalSample> make_eval_samples(const std::string& task, const Tokenizer& tokenizer,
                                          const EvalTaskOptions& options) {
  const auto found = std::find_if(tasks().begin(), tasks().end(),
                                  [&](const Task& other) { return other.info.name == task; });
  if (found == tasks().end()) {
    throw std::invalid_argument("there is no task " + quote(task) + ": " + known_names());
  }
  const SampleMaker maker{tokenizer, options,
                          prompt_frame(tokenizer, options.format, options.chat_tokens),
                          found->has_lengths ? lengths_of(task, options) : std::vector<int64_t>()};
  std::vector<EvalSample> out;
  try {
    out = found->make(maker);
  } catch (const std::invalid_argument& error) {
    const std::string message = error.what();
    throw std::invalid_argument(message.rfind(task + ":", 0) == 0 ? message
                                                                  : task + ": " + message);
  }
  for (EvalSample& sample : out) {
    sample.task = task;
    sample.group = found->info.group;
    sample.seed = options.seed;
  }
  return out;
}

}  // namespace kvquant
