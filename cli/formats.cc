// kvquant formats: the codecs of cache specs, and what a spec means.
#include <fmt/format.h>

#include <memory>

#include "cli/commands.h"
#include "cli/common.h"
#include "formats/codec_table.h"

namespace kvquant::cli {
namespace {

struct Options {
  CommonOptions common;
  std::string resolve;
  int64_t head_dim = 128;
  int64_t num_kv_heads = 8;
};

int resolve(const Options& options) {
  const CacheSpec spec = parse_spec(options.resolve);
  for (const auto& warning : spec_warnings(spec)) {
    fmt::print(stderr, "kvquant: warning: {}\n", warning);
  }
  Json document = make_document("formats", nullptr, {{"resolve", options.resolve}});
  document["results"].push_back({{"spec", spec.text}, {"spec_resolved", resolved(spec)}});
  write_json(options.common, document);
  if (!json_on_stdout(options.common)) fmt::print("{}\n", resolved(spec));
  return kDone;
}

int list(const Options& options) {
  std::vector<std::vector<std::string>> rows = {{"codec", "key bits", "value bits", "", "what"}};
  Json document = make_document(
      "formats", nullptr, {{"head_dim", options.head_dim}, {"num_kv_heads", options.num_kv_heads}});
  for (const CodecRow& row : codec_table(options.head_dim, options.num_kv_heads)) {
    const auto bits = [&](double value) {
      return value > 0 ? fmt::format("{:.2f}", value) : std::string("-");
    };
    rows.push_back({row.codec, bits(row.key_bits), bits(row.value_bits),
                    row.built ? "" : "not built yet", row.description});
    document["results"].push_back(
        {{"codec", row.codec},
         {"built", row.built},
         {"key_bits", row.key_bits > 0 ? Json(row.key_bits) : Json(nullptr)},
         {"value_bits", row.value_bits > 0 ? Json(row.value_bits) : Json(nullptr)},
         {"description", row.description}});
  }
  write_json(options.common, document);
  if (json_on_stdout(options.common)) return kDone;
  fmt::print(
      "{}\nmarginal bits per value for {} KV heads of {}: one more token, without what is "
      "stored once\n",
      format_table(rows), options.num_kv_heads, options.head_dim);
  return kDone;
}

}  // namespace

void add_formats(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<Options>();
  auto* command = app.add_subcommand("formats", "list the codecs; say what a spec means");
  add_common_flags(*command, options->common, 0);
  command->add_option("--resolve", options->resolve, "write a spec out with every default");
  command->add_option("--head-dim", options->head_dim, "channels of a head")
      ->check(CLI::Range(8, 1024))
      ->capture_default_str();
  command->add_option("--kv-heads", options->num_kv_heads, "KV heads")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  command->callback([options, &exit_code] {
    exit_code = options->resolve.empty() ? list(*options) : resolve(*options);
  });
}

}  // namespace kvquant::cli
