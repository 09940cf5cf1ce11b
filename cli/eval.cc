// kvquant eval: tasks that show what perplexity hides, every spec against fp16 on the same samples.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <memory>

#include "base/check.h"
#include "base/file.h"
#include "base/quote.h"
#include "base/timer.h"
#include "cli/chat_prompt.h"
#include "cli/commands.h"
#include "cli/common.h"
#include "cli/eval_output.h"
#include "cli/policy.h"
#include "eval/eval_data.h"
#include "eval/eval_tasks.h"
#include "eval/longbench.h"
#include "kvquant/error.h"

namespace kvquant::cli {
namespace {

struct Options {
  CommonOptions common;
  PolicyOptions policy;
  std::vector<std::string> tasks = {"passkey"};
  std::vector<int64_t> lengths;
  std::vector<std::string> data;  // files and folders of tasks
  int64_t num_samples = 0, num_trials = 10, limit = 0, num_fewshot = 0, batch_size = 1;
  std::string seeds;  // a number of runs, or a list of seeds
  std::string output_path, haystack, templates, chat_template;
  std::optional<bool> apply_chat_template;
  bool strict = false, log_samples = false, check = false;
};

constexpr int64_t kMaxRuns = 1000;

// Of the runs of a task.
std::vector<uint64_t> seeds_of(const Options& options, const EvalTaskInfo& task) {
  const std::string& text = options.seeds;
  if (text.empty()) return run_seeds(options.common.seed, task.num_runs);
  std::vector<uint64_t> numbers;
  const char* at = text.data();
  const char* const end = at + text.size();
  while (true) {
    uint64_t number = 0;
    const auto [stop, error] = std::from_chars(at, end, number);
    check_arg(error == std::errc() && (stop == end || *stop == ','),
              "--seeds " + quote(text) + " is neither a number of runs nor a list of seeds: 1,2,3");
    numbers.push_back(number);
    if (stop == end) break;
    at = stop + 1;
  }
  if (text.find(',') != std::string::npos) {
    std::vector<uint64_t> sorted = numbers;
    std::sort(sorted.begin(), sorted.end());
    check_arg(std::adjacent_find(sorted.begin(), sorted.end()) == sorted.end(),
              "--seeds " + quote(text) + " has a seed twice");
    return numbers;
  }
  check_arg(1 <= numbers[0] && numbers[0] <= kMaxRuns,
            fmt::format("--seeds {} is a number of runs, not in [1, {}] (a list of seeds: 1,2,3)",
                        numbers[0], kMaxRuns));
  return run_seeds(options.common.seed, static_cast<int64_t>(numbers[0]));
}

std::vector<uint64_t> all_seeds(const Options& options, const TaskFiles& tasks) {
  std::vector<uint64_t> out;
  for (const EvalTaskInfo& task : tasks.tasks) {
    auto seeds = seeds_of(options, task);
    if (seeds.size() > out.size()) out = std::move(seeds);
  }
  return out;
}

// The template of the model, where it is wanted or, when nothing is said, where there is one.
ChatFormat format_of(const Options& options, Model& model) {
  const bool has_template = !model.checkpoint().tokenizer().chat_template.empty();
  const bool wanted =
      options.apply_chat_template.value_or(has_template || !options.chat_template.empty());
  return wanted ? chat_format_of(options.chat_template, model) : ChatFormat{};
}

std::vector<EvalSample> make_samples(const Options& options, const TaskFiles& tasks, Model& model) {
  EvalTaskOptions task{.format = format_of(options, model),
                       .chat_tokens = chat_tokens(model),
                       .max_context = model.config().max_context,
                       .context_lengths = options.lengths,
                       .num_samples = options.num_samples,
                       .num_trials = options.num_trials,
                       .limit = options.limit,
                       .num_fewshot = options.num_fewshot,
                       .data = tasks.files,
                       .prompts = read_prompts(find_asset("eval_prompts.json"))};
  if (options.common.context > 0) {
    check_arg(options.common.context <= task.max_context,
              fmt::format("--ctx {} is more than the model's {}", options.common.context,
                          task.max_context));
    task.max_context = options.common.context;
  }
  if (!options.templates.empty()) {  // ours where it has none
    auto prompts = read_prompts(options.templates);
    prompts.merge(task.prompts);
    task.prompts = std::move(prompts);
  }
  task.recall_text = read_utf8(find_asset("sample.txt"));
  task.haystack = options.haystack.empty() ? task.recall_text : read_utf8(options.haystack);
  const std::string facts = find_asset("sample_facts.json");
  task.recall_facts = facts_from_json(read_text(facts), facts);

  std::vector<EvalSample> samples;
  for (const EvalTaskInfo& info : tasks.tasks) {
    for (const uint64_t seed : seeds_of(options, info)) {
      task.seed = seed;
      auto more = make_eval_samples(info.name, model.tokenizer(), task);
      samples.insert(samples.end(), std::make_move_iterator(more.begin()),
                     std::make_move_iterator(more.end()));
      if (!info.uses_seed) break;  // nothing in it is random
    }
  }
  return samples;
}

// Where the samples go: into the folder, or beside the JSON file.
std::string log_path(const Options& options) {
  if (!options.output_path.empty()) return options.output_path + "/samples.jsonl";
  const std::string& json = options.common.json;
  if (json.empty() || json == "-") return "";
  const std::filesystem::path path(json);
  if (std::filesystem::exists(path) && !std::filesystem::is_regular_file(path))
    return "";  // a pipe
  return (path.parent_path() / (path.stem().string() + ".samples.jsonl")).string();
}

void make_folder(const std::string& path) {
  if (path.empty()) return;
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) throw IoError("cannot make the folder " + path + ": " + error.message());
  check_writable(path + "/results.json");
}

Json config_of(const Options& options, Model& model, const std::vector<uint64_t>& seeds,
               const std::string& format) {
  Json config = common_config(options.common, model);
  config.update({{"tasks", options.tasks},
                 {"context_lengths", options.lengths},
                 {"num_samples", options.num_samples},
                 {"num_trials", options.num_trials},
                 {"limit", options.limit},
                 {"num_fewshot", options.num_fewshot},
                 {"data", options.data},
                 {"templates", options.templates},
                 {"seeds", seeds},
                 {"batch_size", options.batch_size},
                 {"chat_template", format.empty() ? Json(nullptr) : Json(format)},
                 {"haystack", options.haystack.empty() ? "assets/sample.txt" : options.haystack}});
  return config;
}

// The longest context that tasks are asked for.
PolicyLoad load_of(const Options& options) {
  int64_t longest = options.lengths.empty() ? options.common.context : 0;
  for (const int64_t length : options.lengths) longest = std::max(longest, length);
  return {.batch = options.batch_size, .context = longest};
}

int run(const Options& options) {
  check_policy(options.policy, options.common);
  const TaskFiles tasks = find_task_files(options.tasks, options.data);
  if (!tasks.left_out.empty()) {
    fmt::print(stderr, "kvquant: left out, for there is no data: {} (--data)\n",
               fmt::join(tasks.left_out, ", "));
  }
  const auto seeds = all_seeds(options, tasks);
  auto specs = specs_of(options.common, {"fp16", "nuq4-1%", "nuq3-1%", "nuq2-1%"});
  Model model = load_model(options.common, RunsOn::kCpuOrGpu);
  apply_policy(options.policy, options.common, model, load_of(options), specs);
  tell_expanded_layers(options.common, specs, model);
  const auto samples = make_samples(options, tasks, model);

  Json config = config_of(options, model, seeds, format_of(options, model).name);
  const EvaluationOptions evaluation{
      .specs = specs,
      .mode = options.strict ? CacheMode::kStrict : CacheMode::kAsServed,
      .ubatch = options.common.ubatch,
      .batch_size = options.batch_size,
      .program = version(),
      .run = config["precision"].get<std::string>() + " " + options.common.weights,
      .logs_prompts = options.log_samples};
  check_evaluation(model, evaluation);
  make_folder(options.output_path);  // nothing is written before all is known to be right
  const std::string samples_path = log_path(options);
  SampleLog log = samples_path.empty() ? SampleLog() : SampleLog(samples_path);
  if (!options.common.quiet && log.num_read() > 0) {
    fmt::print(stderr, "kvquant: {} has {} results; those of this run are not run again\n",
               samples_path, log.num_read());
  }
  const Timer timer;
  const auto results =
      evaluate_samples(model, samples, evaluation, log, progress_on_stderr(options.common, "eval"));
  const EvalReport report = make_report(model, samples, results);

  Json document = make_document("eval", model_info(model), config);
  document["n-samples"] = report.num_samples;
  document["results"] = report.results;
  write_json(options.common, document);
  if (!options.output_path.empty()) {
    write_file_atomic(options.output_path + "/results.json",
                      document.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
    write_file_atomic(options.output_path + "/results.md", report.markdown);
  }
  for (const std::string& line : report.warnings) fmt::print(stderr, "kvquant: {}\n", line);
  if (!json_on_stdout(options.common)) {
    fmt::print("{}", report.markdown);
    fmt::print("\n{}, {}; {:.0f} s.\n", options.strict ? "strict" : "as served",
               describe_calibration(model), timer.seconds());
  }
  for (const std::string& line : report.losses) fmt::print(stderr, "kvquant: {}\n", line);
  return options.check && !report.losses.empty() ? kCheckFailed : kDone;
}

// What tasks read from files.
void add_data_flags(CLI::App& command, Options& options) {
  command
      .add_option("--data", options.data,
                  "TASK=FILE, a folder of TASK.jsonl, or a file where one task needs it; may be "
                  "repeated")
      ->allow_extra_args(false);
  command.add_option("--templates", options.templates,
                     "longbench, leval: JSON of task and prompt (default: short ones of our own)");
  command
      .add_option("--num-fewshot,--num_fewshot", options.num_fewshot,
                  "likelihood tasks: the first lines of the data become examples")
      ->check(at_least(0));
}

}  // namespace

void add_eval(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<Options>();
  auto* command = app.add_subcommand("eval", "tasks over long contexts, each spec against fp16");
  add_common_flags(*command, options->common, kModelFlags | kSpecFlags | kRunFlags);
  add_policy_flags(*command, options->policy);
  command
      ->add_option(
          "--tasks", options->tasks,
          fmt::format("some of {}, or single ones of a group", fmt::join(eval_task_names(), ",")))
      ->delimiter(',')
      ->capture_default_str();
  command
      ->add_option("--context-lengths,--context_lengths", options->lengths,
                   "tokens of prompt and answer, e.g. 2048,4096 (default: 2048 to 32768 as far as "
                   "the model's context goes)")
      ->delimiter(',')
      ->check(at_least(1));
  command
      ->add_option(
          "--num-samples,--num_samples", options->num_samples,
          "samples of each length (default: passkey 50, ruler 500, recall 10, stability 2 of "
          "each kind, data: all)")
      ->check(at_least(1));
  command
      ->add_option("--num-trials,--num_trials", options->num_trials,
                   "needle: samples of each length and position")
      ->check(at_least(1))
      ->capture_default_str();
  command->add_option("--limit", options->limit, "samples of each length (and position) at most")
      ->check(at_least(1));
  command->add_option(
      "--seeds,--num-runs,--num_runs", options->seeds,
      "number of runs with seeds of their own, or a list of seeds: 1,2,3 (default: 1, "
      "stability 5)");
  command
      ->add_option("--batch-size,--batch_size", options->batch_size,
                   "samples whose answers are generated side by side")
      ->check(at_least(1))
      ->capture_default_str();
  add_data_flags(*command, *options);
  command->add_option("--haystack", options->haystack,
                      "text that needles are hidden in (default: the sample text)");
  command->add_option("--output-path,--output_path", options->output_path,
                      "folder for results.json, results.md and samples.jsonl; a run that stopped "
                      "goes on from there");
  command->add_flag("--log-samples,--log_samples", options->log_samples,
                    "prompts too, not answers alone, into samples.jsonl");
  command->add_option("--apply-chat-template,--apply_chat_template", options->apply_chat_template,
                      "true or false (default: true where the model has a template)");
  add_chat_template_flag(*command, options->chat_template);
  command->add_flag("--strict", options->strict,
                    "every token is read compressed, its own included (default: as served)");
  command->add_flag("--check", options->check, "exit 1 when a spec loses significantly");
  command->callback([options, &exit_code] { exit_code = run(*options); });
}

}  // namespace kvquant::cli
