#include "eval/recall.h"

#include <algorithm>
#include <cctype>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/timer.h"
#include "kvquant/error.h"
#include "ops/log_softmax.h"

namespace kvquant {
namespace {

constexpr int64_t kAnswerTokens = 16;

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

std::string greedy_answer(Session& session, std::span<const float> logits, int64_t& num_decoded) {
  std::vector<int32_t> tokens;
  const auto eos = session.model().checkpoint().eos_token_ids();
  const auto num_tokens = static_cast<size_t>(session.model().tokenizer().vocab_size());
  while (static_cast<int64_t>(tokens.size()) < kAnswerTokens) {
    const int32_t token = argmax(logits.first(num_tokens));
    if (std::find(eos.begin(), eos.end(), token) != eos.end()) break;
    tokens.push_back(token);
    const std::string text = session.model().tokenizer().decode(tokens);
    if (text.find('\n', 1) != std::string::npos) break;
    if (session.length() == session.context()) break;
    logits = session.feed({&token, 1});
    ++num_decoded;
  }
  return session.model().tokenizer().decode(tokens);
}

}  // namespace

std::vector<Fact> facts_from_json(const std::string& text, const std::string& path) {
  std::vector<Fact> facts;
  try {
    const auto json = nlohmann::json::parse(text);
    for (const auto& item : json.is_object() ? json.at("facts") : json) {
      facts.push_back({item.at("question"), item.at("answer"), item.value("cue", "")});
    }
  } catch (const nlohmann::json::exception& error) {
    throw FormatError(path + ": not a list of questions and answers: " + error.what());
  }
  return facts;
}

RecallResult evaluate_recall(Model& model, const SessionOptions& options, const std::string& text,
                             const std::vector<Fact>& facts, const Progress& progress) {
  std::optional<Session> session(std::in_place, model, options);
  RecallResult out;
  const auto prompt = model.tokenizer().encode(text, Tokenizer::Special::kAsText);
  const Timer prompt_timer;
  session->feed(prompt, progress);
  out.prompt_s = prompt_timer.seconds();
  out.num_prompt_tokens = session->length();
  out.cache_bytes = session->cache().memory_bytes();
  out.compressed_tokens = session->num_compressed_tokens();

  for (const Fact& fact : facts) {
    const std::string cue = fact.cue.empty() ? "" : " " + fact.cue;
    const auto question =
        model.tokenizer().encode("\n\nQuestion: " + fact.question + "\nAnswer:" + cue,
                                 Tokenizer::Special::kAsText, Tokenizer::Bos::kNever);
    if (session->can_truncate(out.num_prompt_tokens)) {
      session->truncate(out.num_prompt_tokens);
    } else {  // the window was too short for question and answer: read the prompt anew
      session.emplace(model, options);
      session->feed(prompt, progress);
    }
    const auto logits = session->feed(question);
    const Timer timer;
    out.answers.push_back(greedy_answer(*session, logits, out.num_decoded_tokens));
    out.decode_s += timer.seconds();
    out.num_correct += lower(out.answers.back()).find(lower(fact.answer)) != std::string::npos;
  }
  return out;
}

}  // namespace kvquant
