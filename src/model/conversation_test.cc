#include "model/conversation.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "base/file.h"
#include "kvquant/error.h"
#include "kvquant/kvquant.h"

namespace kvquant {
namespace {

constexpr const char* kEmbedded = KVQUANT_SOURCE_DIR "/assets/ref5m";

Model& model() {
  static Model model = Model::load(kEmbedded);
  return model;
}

struct Talk {
  Session session;
  Conversation conversation;

  explicit Talk(const std::string& spec, int64_t context = 0, int64_t max_tokens = 8,
                const std::string& system = "Be kind.")
      : session(model(), {.spec = parse_spec(spec), .context = context}),
        conversation(session, {chat_format_named("chatml"),
                               {},
                               system,
                               {.max_tokens = max_tokens, .sampler = {.seed = 7}}}) {}

  std::string say(const std::string& text) {
    std::string answer;
    last = conversation.turn(text, [&](const std::string& part) {
      answer += part;
      return true;
    });
    return answer;
  }
  Conversation::Turn last;
};

std::string path(const std::string& name) {
  return (std::filesystem::path(testing::TempDir()) / name).string();
}

std::vector<int32_t> encode(const std::string& text) {
  return model().tokenizer().encode(text, Tokenizer::Special::kParse, Tokenizer::Bos::kNever);
}

TEST(Conversation, TurnsFollowEachOtherInTheCache) {
  Talk chat("fp16");
  const std::string first = chat.say("The sea");
  const auto first_ids = chat.last.generation.tokens;
  const std::string second = chat.say("And then?");
  const auto second_ids = chat.last.generation.tokens;
  auto expected = encode(
      "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nThe sea<|im_end|>\n"
      "<|im_start|>assistant\n");
  expected.insert(expected.end(), first_ids.begin(), first_ids.end());
  const auto next =
      encode("<|im_end|>\n<|im_start|>user\nAnd then?<|im_end|>\n<|im_start|>assistant\n");
  expected.insert(expected.end(), next.begin(), next.end());
  expected.insert(expected.end(), second_ids.begin(), second_ids.end() - 1);  // the last: not read
  const auto tokens = chat.session.tokens();
  EXPECT_EQ(std::vector<int32_t>(tokens.begin(), tokens.end()), expected);
  ASSERT_EQ(chat.conversation.messages().size(), 5u);
  EXPECT_EQ(chat.conversation.messages()[2].content, first);
  EXPECT_EQ(chat.conversation.messages()[4].content, second);
}

TEST(Conversation, ASeedGivesTheSameAnswers) {
  Talk one("nuq4-1%"), other("nuq4-1%");
  for (const char* text : {"The sea", "And then?", "Who?"})
    EXPECT_EQ(one.say(text), other.say(text));
}

TEST(Conversation, AnAnswerThatIsStoppedStaysSaid) {
  Talk chat("fp16", 0, 100);
  int parts = 0;
  const auto turn =
      chat.conversation.turn("The sea", [&](const std::string&) { return ++parts < 3; });
  EXPECT_EQ(turn.generation.stop, StopReason::kCaller);
  EXPECT_EQ(turn.generation.tokens.size(), 3u);
  EXPECT_EQ(chat.conversation.messages().back().content,
            model().tokenizer().decode(turn.generation.tokens));
  chat.say("Go on");
  const auto tokens = chat.session.tokens();
  EXPECT_NE(std::search(tokens.begin(), tokens.end(), turn.generation.tokens.begin(),
                        turn.generation.tokens.end()),
            tokens.end());
}

TEST(Conversation, AResetLeavesTheSystemMessage) {
  Talk chat("nuq4-1%");
  const std::string first = chat.say("The sea");
  chat.conversation.reset();
  EXPECT_EQ(chat.session.length(), 0);
  EXPECT_EQ(chat.conversation.messages().size(), 1u);
  EXPECT_EQ(chat.say("The sea"), first);
}

TEST(Conversation, ASavedConversationGoesOnAsIfItHadNotEnded) {
  for (const char* spec : {"fp16", "nuq3-1%"}) {
    Talk chat(spec);
    chat.say("The sea was calm and the old man went down to the harbour.");
    const std::string file = path("kvquant_conversation.kvq");
    chat.conversation.save(file, "test");
    Talk other(spec, 0, 8, "Another system message.");
    other.say("Something else");
    other.conversation.load(file);
    EXPECT_EQ(other.conversation.messages().size(), 3u);
    EXPECT_EQ(other.conversation.messages()[0].content, "Be kind.");
    EXPECT_EQ(other.say("And then?"), chat.say("And then?")) << spec;
  }
}

TEST(Conversation, WhatCantBeLoadedChangesNothing) {
  Talk chat("fp16");
  const std::string first = chat.say("The sea");
  const std::string file = path("kvquant_conversation_bad.kvq");
  EXPECT_THROW(chat.conversation.load(path("kvquant_no_such.kvq")), IoError);
  chat.conversation.save(file, "test");
  const std::string good = read_text(file + ".json");
  const auto expect_refused = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    ASSERT_NE(text.find(from), std::string::npos) << from;
    write_file_atomic(file + ".json", text.replace(text.find(from), from.size(), to));
    EXPECT_THROW(chat.conversation.load(file), FormatError) << to;
  };
  expect_refused("\"schema\": 1", "\"schema\": 2");
  expect_refused("\"chatml\"", "\"llama3\"");
  expect_refused("\"num_tokens\": ", "\"num_tokens\": 1");
  expect_refused("\"user\"", "\"tool\"");
  expect_refused("\"messages\": [", "\"messages\": [3,");
  expect_refused("\"unread_tokens\": [", "\"unread_tokens\": [99999,");
  write_file_atomic(file + ".json", "{");
  EXPECT_THROW(chat.conversation.load(file), FormatError);
  EXPECT_EQ(chat.conversation.messages().size(), 3u);
  write_file_atomic(file + ".json", good);
  chat.conversation.load(file);
  Talk other("nuq4-1%");
  EXPECT_THROW(other.conversation.load(file), FormatError);  // of another spec
}

// With a context that is full every few turns.
TEST(Conversation, AFullContextForgetsTheMiddleAndKeepsTheSystemMessage) {
  for (const char* spec : {"fp16", "nuq4-1%", "k=nuq4,v=fp16"}) {
    Talk chat(spec, 250, 24);
    const auto kept = encode("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n");
    int num_shifts = 0;
    for (int i = 0; i < 8; ++i) {
      chat.say("Tell me more of the sea, of the old man and of the boats in the harbour.");
      num_shifts += chat.last.shift.num_forgotten > 0;
      EXPECT_EQ(chat.last.generation.tokens.size(), 24u);
      EXPECT_LT(chat.session.length(), 250);
      const auto tokens = chat.session.tokens();
      ASSERT_TRUE(std::equal(kept.begin(), kept.end(), tokens.begin())) << spec;
    }
    EXPECT_GE(num_shifts, 2) << spec;
    EXPECT_EQ(chat.conversation.messages().size(), 17u);
  }
}

TEST(Conversation, AnAnswerMayBeLongerThanTheContext) {
  for (const char* spec : {"fp16", "nuq4-1%"}) {
    Talk chat(spec, 200, 300);
    chat.say("The sea");
    EXPECT_EQ(chat.last.generation.tokens.size(), 300u) << spec;
    EXPECT_EQ(chat.last.generation.stop, StopReason::kMaxTokens);
    EXPECT_EQ(chat.last.shift.moved_tiles, std::string(spec) != "fp16");
  }
}

// Too short for whole tiles to go.
TEST(Conversation, AShortContextIsReadAgain) {
  Talk chat("nuq4-1%", 90, 120);
  chat.say("The sea");
  EXPECT_EQ(chat.last.generation.tokens.size(), 120u);
  EXPECT_FALSE(chat.last.shift.moved_tiles);
}

TEST(Conversation, AMessageThatDoesNotFitIsRefused) {
  Talk chat("fp16", 100);
  std::string text;
  for (int i = 0; i < 60; ++i) text += "harbour ";
  EXPECT_THROW(chat.say(text), std::invalid_argument);
  EXPECT_THROW(chat.say("\xFF"), std::invalid_argument);
  EXPECT_EQ(chat.conversation.messages().size(), 1u);
  chat.say("Short");
  EXPECT_EQ(chat.conversation.messages().size(), 3u);
}

TEST(Conversation, ASystemMessageNeedsAPlace) {
  Session session(model(), {.spec = parse_spec("fp16")});
  ChatFormat format = chat_format_named("mistral-v1");
  format.system_place = ChatFormat::SystemPlace::kNowhere;
  EXPECT_THROW(Conversation(session, {format, {}, "Be kind.", {}}), std::invalid_argument);
}

}  // namespace
}  // namespace kvquant
