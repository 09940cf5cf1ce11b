#include "model/conversation.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include "base/check.h"
#include "base/file.h"
#include "formats/json_fields.h"
#include "kvquant/error.h"

namespace kvquant {
namespace {

constexpr int64_t kMaxFileBytes = int64_t{256} << 20;

std::string messages_path(const std::string& path) { return path + ".json"; }

// The special token that ends an answer in this format ("<|im_end|>"), -1: none.
int32_t end_of_turn(const Tokenizer& tokenizer, const ChatFormat& format) {
  if (format.assistant.after.empty()) return -1;
  const auto ids =
      tokenizer.encode(format.assistant.after, Tokenizer::Special::kParse, Tokenizer::Bos::kNever);
  return !ids.empty() && tokenizer.is_special(ids[0]) ? ids[0] : -1;
}

std::vector<ChatMessage> messages_from(const Json& document, const std::string& path) {
  const auto found = document.find("messages");
  if (found == document.end() || !found->is_array()) {
    throw FormatError(path + ": messages is not a list");
  }
  std::vector<ChatMessage> messages;
  for (const Json& message : *found) {
    if (!message.is_object()) throw FormatError(path + ": a message is not an object");
    const auto role = json_text(message, "role", path);
    const auto content = json_text(message, "content", path);
    const bool is_known = role == "system" || role == "user" || role == "assistant";
    if (!is_known || !content) {
      throw FormatError(path + ": a message lacks a role (system, user, assistant) or content");
    }
    messages.push_back({*role, *content});
  }
  return messages;
}

}  // namespace

Conversation::Conversation(Session& session, Options options)
    : session_(session), options_(std::move(options)) {
  const int32_t end = end_of_turn(session.model().tokenizer(), options_.format);
  if (end >= 0) options_.generation.stop_tokens.push_back(end);
  reset();
  prompt_of("");  // throws now rather than after the first message
}

void Conversation::reset() {
  session_.restart();
  messages_.clear();
  unread_.clear();
  num_turns_ = 0;
  if (!options_.system.empty()) messages_.push_back({"system", options_.system});
}

// A template says itself where bos goes.
std::vector<int32_t> Conversation::encode(const std::string& text) const {
  return session_.model().tokenizer().encode(text, Tokenizer::Special::kParse,
                                             Tokenizer::Bos::kNever);
}

std::vector<int32_t> Conversation::prompt_of(const std::string& user) const {
  if (session_.length() > 0) {
    auto prompt = unread_;
    const auto rest = encode(render_next_turn(options_.format, user, options_.tokens));
    prompt.insert(prompt.end(), rest.begin(), rest.end());
    return prompt;
  }
  auto messages = messages_;
  messages.push_back({"user", user});
  return encode(render_chat(options_.format, messages, options_.tokens));
}

// What every first prompt begins with, whatever the user says.
int64_t Conversation::num_kept_tokens() const {
  const auto begin = [&](const char* user) {
    std::vector<ChatMessage> messages;
    if (!messages_.empty() && messages_[0].role == "system") messages.push_back(messages_[0]);
    messages.push_back({"user", user});
    return encode(render_chat(options_.format, messages, options_.tokens));
  };
  const auto one = begin("0"), other = begin("x");
  const auto ends = std::mismatch(one.begin(), one.end(), other.begin(), other.end());
  return ends.first - one.begin();
}

// Forgets until `num_tokens` more and one to answer with fit; false when that can't be.
bool Conversation::make_room(int64_t num_tokens, Session::Shift& total) {
  while (session_.length() + num_tokens >= session_.context()) {
    const int64_t keep = std::min(num_kept_tokens(), session_.length());
    const int64_t half = (session_.length() - keep) / 2;
    if (half == 0) return false;
    const Session::Shift shift = session_.shift(keep, half);
    total.num_forgotten += shift.num_forgotten;
    total.num_read_again += shift.num_read_again;
    total.moved_tiles = shift.moved_tiles;
  }
  return true;
}

Conversation::Turn Conversation::turn(const std::string& user,
                                      const std::function<bool(const std::string&)>& on_text) {
  auto prompt = prompt_of(user);
  const auto num_prompt = static_cast<int64_t>(prompt.size());
  Turn turn;
  check_arg(make_room(num_prompt, turn.shift),
            "the message needs " + std::to_string(num_prompt) + " tokens, the context has " +
                std::to_string(session_.context()) + " and keeps " +
                std::to_string(session_.length()));
  messages_.push_back({"user", user});
  unread_.clear();

  StreamDecoder decoder(session_.model().tokenizer());
  std::string answer;
  bool goes_on = true;
  const auto say = [&](const std::string& text) {
    answer += text;
    goes_on = on_text(text) && goes_on;
    return goes_on;
  };
  GenerateOptions options = options_.generation;
  options.sampler.seed += static_cast<uint64_t>(num_turns_);
  Generation& all = turn.generation;
  while (true) {
    const int64_t before = session_.length();
    const auto part = generate(session_, prompt, options,
                               [&](int32_t token) { return say(decoder.next(token)); });
    const int64_t num_read = session_.length() - before - static_cast<int64_t>(prompt.size());
    unread_.assign(part.tokens.begin() + num_read, part.tokens.end());
    all.tokens.insert(all.tokens.end(), part.tokens.begin(), part.tokens.end());
    all.prompt_s += part.prompt_s;
    all.generation_s += part.generation_s;
    all.stop = part.stop;
    options.max_tokens -= static_cast<int64_t>(part.tokens.size());
    if (part.stop != StopReason::kContextFull) break;
    prompt = unread_;
    if (!make_room(static_cast<int64_t>(prompt.size()), turn.shift)) break;
    ++options.sampler.seed;  // not the same draws again
  }
  all.num_prompt_tokens = num_prompt;
  const std::string rest = decoder.finish();
  if (!rest.empty()) say(rest);
  messages_.push_back({"assistant", answer});
  ++num_turns_;
  return turn;
}

void Conversation::save(const std::string& path, const std::string& kvquant_version) {
  Json messages = Json::array();
  for (const ChatMessage& message : messages_) {
    messages.push_back({{"role", message.role}, {"content", message.content}});
  }
  const Json document{{"schema", 1},
                      {"chat_template", options_.format.name},
                      {"num_tokens", session_.length()},
                      {"num_turns", num_turns_},
                      {"unread_tokens", unread_},
                      {"messages", messages}};
  session_.save(path, kvquant_version);
  write_file_atomic(messages_path(path), document.dump(1) + "\n");
}

void Conversation::load(const std::string& path) {
  const std::string file = messages_path(path);
  const Json document = parse_json_object(read_text(file, kMaxFileBytes), file);
  if (require_integer(document, "schema", file) != 1) {
    throw FormatError(file + ": schema is not 1");
  }
  const auto name = json_text(document, "chat_template", file).value_or("");
  if (name != options_.format.name) {
    throw FormatError(file + ": chat_template is \"" + name + "\", not \"" + options_.format.name +
                      "\"");
  }
  auto messages = messages_from(document, file);
  const int64_t num_turns = require_integer(document, "num_turns", file);
  std::vector<int32_t> unread;
  const int64_t num_tokens_of_vocabulary = session_.model().tokenizer().vocab_size();
  for (const int64_t id : json_integers(document, "unread_tokens", file)) {
    if (id < 0 || id >= num_tokens_of_vocabulary) {
      throw FormatError(file + ": unread token " + std::to_string(id) + " is not one of " +
                        std::to_string(num_tokens_of_vocabulary));
    }
    unread.push_back(static_cast<int32_t>(id));
  }
  const int64_t num_tokens = require_integer(document, "num_tokens", file);
  session_.load(path, num_tokens);
  messages_ = std::move(messages);
  unread_ = std::move(unread);
  num_turns_ = num_turns;
}

}  // namespace kvquant
