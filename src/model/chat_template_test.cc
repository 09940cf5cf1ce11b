#include "model/chat_template.h"

#include <gtest/gtest.h>

#include <vector>

#include "kvquant/error.h"

namespace kvquant {
namespace {

// As in SmolLM2-Instruct's metadata, another message.
constexpr const char* kWithSystem =
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou help.\nIt\\'s \"fine\"<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

constexpr const char* kPlain =
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}"
    "{% endif %}{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

// The same with text outside of tags, other quotes, comments and whitespace control.
constexpr const char* kPlainInLines =
    "{#- ChatML -#}\n"
    "{%- for message in messages -%}\n"
    "    {{- \"<|im_start|>\" ~ message.role }}\n"
    "{{ message[\"content\"] }}<|im_end|>\n"
    "  {% endfor %}\n"
    "{% if add_generation_prompt %}\n"
    "<|im_start|>assistant\n"
    "{% endif %}\n";

using Messages = std::vector<ChatMessage>;

TEST(ChatTemplate, ChatMlAndItsDefaultMessageAreRecognised) {
  const RecognisedTemplate found = recognise_chat_template(kWithSystem);
  EXPECT_EQ(found.kind, ChatTemplate::kChatMl);
  EXPECT_EQ(found.default_system, "You help.\nIt's \"fine\"");
}

TEST(ChatTemplate, PlainChatMlIsRecognisedHoweverItIsWritten) {
  for (const char* jinja : {kPlain, kPlainInLines}) {
    const RecognisedTemplate found = recognise_chat_template(jinja);
    EXPECT_EQ(found.kind, ChatTemplate::kChatMl);
    EXPECT_EQ(found.default_system, "");
  }
}

TEST(ChatTemplate, WithoutATemplateThereIsNoChat) {
  const RecognisedTemplate none = recognise_chat_template("");
  EXPECT_EQ(none.kind, ChatTemplate::kNone);
  EXPECT_THROW(render_chat(none, Messages{{"user", "Hi"}}), std::invalid_argument);
}

TEST(ChatTemplate, AnyOtherTemplateIsRefused) {
  const std::string plain = kPlain;
  const auto changed = [&](const char* from, const char* to) {
    std::string text = plain;
    return text.replace(text.find(from), std::string(from).size(), to);
  };
  const std::vector<std::string> others{
      "x",
      "{{",
      "{% for",
      "{{ 'not closed",
      plain + "x",
      plain + "{{ eos_token }}",
      changed("message['content']", "message['content'] | trim"),
      changed("'<|im_end|>'", "'<|eot_id|>'"),
      changed("assistant", "model"),
      changed("'\\n'", "'\\x0a'"),
      changed("in messages", "in messages[1:]"),
      changed("{% endfor %}", ""),
  };
  for (const std::string& jinja : others) {
    EXPECT_THROW(recognise_chat_template(jinja), FormatError) << jinja;
  }
}

TEST(ChatTemplate, TheRefusalSaysWhatIsSupportedInOneLine) {
  try {
    recognise_chat_template("{{ bos_token }}\n[INST]");
    FAIL();
  } catch (const FormatError& error) {
    EXPECT_STREQ(error.what(),
                 "chat template: only ChatML, with or without a default system message, is "
                 "supported, not \"{{ bos_token }} [INST]\"");
  }
}

TEST(ChatTemplate, MessagesEndWhereTheAnswerBegins) {
  const RecognisedTemplate plain = recognise_chat_template(kPlain);
  EXPECT_EQ(render_chat(plain, Messages{{"user", "Hi"}, {"assistant", "Yes?"}, {"user", "No"}}),
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes?<|im_end|>\n"
            "<|im_start|>user\nNo<|im_end|>\n<|im_start|>assistant\n");
  EXPECT_EQ(render_chat(plain, {}), "<|im_start|>assistant\n");
}

TEST(ChatTemplate, TheDefaultMessageIsAddedUnlessThereIsOne) {
  const RecognisedTemplate chat{ChatTemplate::kChatMl, "Default."};
  EXPECT_EQ(render_chat(chat, Messages{{"user", "Hi"}}),
            "<|im_start|>system\nDefault.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
            "<|im_start|>assistant\n");
  EXPECT_EQ(render_chat(chat, Messages{{"system", "Mine."}, {"user", "Hi"}}),
            "<|im_start|>system\nMine.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
            "<|im_start|>assistant\n");
}

}  // namespace
}  // namespace kvquant
