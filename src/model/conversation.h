// A conversation over a session: turns go into the model one after the other, and nothing that was
// said is read again. When the context is full, its beginning (the system message) stays, half of
// the rest is forgotten and the remainder moves down.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "model/chat_template.h"
#include "model/session.h"

namespace kvquant {

class Conversation {
 public:
  struct Options {
    ChatFormat format;
    ChatTokens tokens;
    std::string system;            // empty: the format's own, if it has one
    GenerateOptions generation{};  // stop tokens of the model; the format's own are added
  };

  // `session` must outlive it and be empty. Throws std::invalid_argument when the format has no
  // place for the system message.
  Conversation(Session& session, Options options);

  struct Turn {
    Generation generation;  // stop is never kContextFull unless nothing could be forgotten
    Session::Shift shift;   // all shifts of the turn together
  };

  // Reads the user's message and answers. `on_text` gets the answer as it comes, whole characters
  // only, and stops it by returning false; what was said until then stays said. Throws
  // std::invalid_argument when the message is not UTF-8 or doesn't fit into the context; then the
  // conversation is as it was, but may have forgotten.
  Turn turn(const std::string& user, const std::function<bool(const std::string&)>& on_text);

  // Forgets all but the system message.
  void reset();

  // Writes the cache to `path` and the messages to path + ".json". Throws what Session::save and
  // write_file_atomic do.
  void save(const std::string& path, const std::string& kvquant_version);
  // Takes the place of what was said. Throws IoError, FormatError; then nothing has changed.
  void load(const std::string& path);

  const std::vector<ChatMessage>& messages() const { return messages_; }

 private:
  std::vector<int32_t> encode(const std::string& text) const;
  std::vector<int32_t> prompt_of(const std::string& user) const;
  int64_t num_kept_tokens() const;
  bool make_room(int64_t num_tokens, Session::Shift& total);

  Session& session_;
  Options options_;
  std::vector<ChatMessage> messages_;
  std::vector<int32_t> unread_;  // last sampled tokens that the model has not read yet
  int64_t num_turns_ = 0;
};

}  // namespace kvquant
