#include "model/chat_template.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <vector>

#include "base/file.h"
#include "kvquant/error.h"

namespace kvquant {
namespace {

// ChatML with a default message.
constexpr const char* kWithSystem =
    "{%- for message in messages -%}\n"
    "  {%- if loop.first and messages[0]['role'] != 'system' -%}\n"
    "    {{- '<|im_start|>system\nYou help.\nIt\\'s \"fine\"<|im_end|>\n' -}}\n"
    "  {%- endif -%}\n"
    "  {{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' -}}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%} {{- '<|im_start|>assistant\n' -}} {%- endif -%}";

constexpr const char* kPlain =
    "{% if not add_generation_prompt is defined %}\n"
    "  {% set add_generation_prompt = false %}\n"
    "{% endif %}\n"
    "{% for message in messages %}\n"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{{ message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}\n"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

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

const ChatTokens kTokens{"<s>", "</s>"};

TEST(ChatTemplate, ChatMlAndItsDefaultMessageAreRecognised) {
  const ChatFormat found = recognise_chat_template(kWithSystem);
  EXPECT_EQ(found.name, "chatml");
  EXPECT_EQ(found.default_system, "You help.\nIt's \"fine\"");
}

TEST(ChatTemplate, PlainChatMlIsRecognisedHoweverItIsWritten) {
  for (const char* jinja : {kPlain, kPlainInLines}) {
    const ChatFormat found = recognise_chat_template(jinja);
    EXPECT_EQ(found.name, "chatml");
    EXPECT_EQ(found.default_system, "");
  }
}

TEST(ChatTemplate, WithoutATemplateThereIsNoChat) {
  const ChatFormat none = recognise_chat_template("");
  EXPECT_EQ(none.name, "");
  EXPECT_THROW(render_chat(none, Messages{{"user", "Hi"}}, kTokens), std::invalid_argument);
  EXPECT_THROW(render_next_turn(none, "Hi", kTokens), std::invalid_argument);
}

const std::string kFolder = KVQUANT_SOURCE_DIR "/tests/golden/chat_templates/";

std::string template_of(const std::string& name) { return read_text(kFolder + name + ".jinja"); }

// Templates of our own, and what transformers prints for them (tests/golden/make_chat_golden.py).
TEST(ChatTemplate, TemplatesPrintWhatJinjaPrints) {
  const auto golden = nlohmann::json::parse(read_text(kFolder + "golden.json"));
  for (const auto& [name, expected] : golden["templates"].items()) {
    const ChatFormat format = recognise_chat_template(template_of(name));
    for (size_t i = 0; i < golden["conversations"].size(); ++i) {
      Messages messages;
      for (const auto& message : golden["conversations"][i]) {
        messages.push_back({message["role"], message["content"]});
      }
      if (expected[i].is_null()) {
        EXPECT_THROW(render_chat(format, messages, kTokens), std::invalid_argument) << name;
      } else {
        EXPECT_EQ(render_chat(format, messages, kTokens), expected[i].get<std::string>()) << name;
      }
    }
  }
}

TEST(ChatTemplate, TemplatesHaveTheirNames) {
  for (const auto& [file, name] :
       std::vector<std::pair<const char*, const char*>>{{"qwen2", "chatml"},
                                                        {"qwen2.5", "qwen2.5"},
                                                        {"qwen3", "qwen3"},
                                                        {"qwen3_thinking", "qwen3"},
                                                        {"llama2", "llama2"},
                                                        {"llama3", "llama3"},
                                                        {"llama3.1", "llama3.1"},
                                                        {"mistral_v0.1", "mistral-v1"},
                                                        {"mistral_v0.2", "mistral-v1"},
                                                        {"mistral_v0.3", "mistral-v3"},
                                                        {"mistral_nemo", "mistral-v3-tekken"}}) {
    EXPECT_EQ(recognise_chat_template(template_of(file)).name, name);
  }
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const size_t found = text.find(from);
  EXPECT_NE(found, std::string::npos) << from;
  return text.replace(found, from.size(), to);
}

// The format's name and what it prints.
std::string behaviour_of(const std::string& jinja) {
  const ChatFormat format = recognise_chat_template(jinja);
  Messages messages{{"user", " Q "}, {"assistant", " A "}, {"user", " R "}};
  std::string text = format.name + ": " + render_chat(format, messages, kTokens);
  if (format.system_place != ChatFormat::SystemPlace::kNowhere) {
    messages.insert(messages.begin(), {"system", " S "});
    text += render_chat(format, messages, kTokens);
  }
  return text;
}

using Changes = std::vector<std::pair<std::string, std::string>>;

// Ways of writing that model files differ in change nothing.
void expect_the_same_with(const std::string& name, const Changes& changes) {
  std::string jinja = template_of(name);
  for (const auto& [from, to] : changes) jinja = replaced(jinja, from, to);
  EXPECT_EQ(behaviour_of(jinja), behaviour_of(template_of(name))) << jinja;
}

TEST(ChatTemplate, QwenIsRecognisedHoweverItIsWritten) {
  const Changes changes{
      {"{% if tools %}", "{%- if tools -%}\n{%- for tool in tools %}{{ tool }}{% endfor %}"},
      {"messages[0].content }}<|im_end|>\n", "messages[0]['content'] + \"<|im_end|>\\n\" -}}\n"},
      {"<|im_start|>{{ message.role }}\n",
       "{{- \"<|im_start|>\" ~ message[\"role\"] ~ '\\n' -}}\n"},
      {"{% if add_generation_prompt %}\n<|im_start|>assistant\n",
       "{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' -}}\n"}};
  for (const char* name : {"qwen2.5", "qwen3"}) expect_the_same_with(name, changes);
}

TEST(ChatTemplate, Llama2IsRecognisedHoweverItIsWritten) {
  expect_the_same_with(
      "llama2",
      {{"{% for message in messages %}\n",
        "{%- for message in messages -%}\n{% if message['role'] != 'tool' %}"},
       {"{{ bos_token }}[INST] {{ content.strip() }} [/INST]",
        "{{- bos_token + \"[INST] \" + content | trim + ' [/INST]' -}}"},
       {" {{ content.strip() }} {{ eos_token }}", "{{- ' '  ~ content|trim ~ \" \" ~ eos_token }}"},
       {"{% endfor %}", "{%- endif -%}\n{%- endfor -%}"}});
}

TEST(ChatTemplate, Llama3IsRecognisedHoweverItIsWritten) {
  const Changes changes{
      {"{{ bos_token }}", "{{- bos_token -}}"},
      {"<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n{{ message.content | trim }}",
       "{{- '<|start_header_id|>' + message['role'] + \"<|end_header_id|>\\n\\n\" -}}\n"
       "{{- message[\"content\"]|trim }}"}};
  expect_the_same_with("llama3", changes);
  Changes with_date = changes;
  with_date.emplace_back("Cutting", "{% if tools %}{{ tools | tojson }}\n\n{% endif %}\nCutting");
  with_date.emplace_back("Today Date: {{ date_string | default(\"26 Jul 2024\") }}",
                         "{% if date_string is not defined %}\n"
                         "  {% set date_string = '26 Jul 2024' %}\n"
                         "{% endif %}\n"
                         "{{ 'Today Date: ' + date_string }}");
  expect_the_same_with("llama3.1", with_date);
}

TEST(ChatTemplate, MistralIsRecognisedHoweverItIsWritten) {
  const Changes roles{{"{% if message.role == \"user\" %}\n",
                       "{%- if message['role'] == 'user' -%}\n{% if tools %}[AVAILABLE_TOOLS]{{ "
                       "tools }}{% endif %}"},
                      {"elif message.role == \"assistant\"", "elif message['role']=='assistant'"}};
  expect_the_same_with("mistral_v0.1", roles);
  for (const char* name : {"mistral_v0.2", "mistral_v0.3", "mistral_nemo"}) {
    Changes changes = roles;
    changes.emplace_back("{{ system_message }}\n\n{{ message.content }}",
                         "{{ system_message + \"\\n\\n\" + message['content'] }}");
    expect_the_same_with(name, changes);
  }
  expect_the_same_with("mistral_v0.2", {{"loop.first and", "loop.index0 == 0 and"}});
}

TEST(ChatTemplate, AnyOtherTemplateIsRefused) {
  const std::string plain = kPlain;
  const std::vector<std::string> others{
      "x",
      "{{",
      "{% for",
      "{{ 'not closed",
      plain + "x",
      plain + "{{ eos_token }}",
      replaced(plain, "message['content']", "message['content'] | trim"),
      replaced(plain, "'<|im_end|>'", "'<|eot_id|>'"),
      replaced(plain, "assistant", "model"),
      replaced(plain, "'\\n'", "'\\x0a'"),
      replaced(plain, "in messages", "in messages[1:]"),
      replaced(plain, "{% endfor %}", ""),
      replaced(template_of("qwen2.5"), "{% if tools %}", "{% if xml_tools %}"),
      replaced(template_of("qwen3"), "is false", "is true"),
      replaced(template_of("qwen3"), "<|im_start|>assistant\n", "<|im_start|>assistant\n{{ x }}"),
      replaced(template_of("llama3"), "<|start_header_id|>assistant", "<|start_header_id|>model"),
      replaced(template_of("llama3.1"), "December 2023", "January 2025"),
      replaced(template_of("llama2"), "content.strip() }} [/INST]", "content }} [/INST]"),
      replaced(template_of("llama2"), "{{ bos_token }}[INST] ", "[INST] "),
      replaced(template_of("mistral_v0.1"), " [/INST]", "[/INSTRUCTION]"),
      replaced(template_of("mistral_v0.2"), "loop.first and", "not loop.first and"),
      replaced(template_of("mistral_v0.3"), "| trim }}{{ eos_token", "| upper }}{{ eos_token"),
      replaced(template_of("mistral_nemo"), "[INST]{{ system", "[SYSTEM_PROMPT]{{ system"),
  };
  for (const std::string& jinja : others) {
    EXPECT_THROW(recognise_chat_template(jinja), FormatError) << jinja;
  }
}

TEST(ChatTemplate, TheRefusalSaysWhatIsSupportedInOneLine) {
  try {
    recognise_chat_template("{{ bos_token }}\n[GMASK]");
    FAIL();
  } catch (const FormatError& error) {
    EXPECT_STREQ(
        error.what(),
        "chat template \"{{ bos_token }} [GMASK]\" is not known; these are: chatml, llama2, "
        "llama3, llama3.1, mistral-v1, mistral-v3, mistral-v3-tekken, qwen2.5, qwen3 "
        "(--chat-template NAME takes one of them instead)");
  }
}

TEST(ChatTemplate, FormatsGoByName) {
  for (const std::string& name : chat_format_names()) {
    EXPECT_EQ(chat_format_named(name).name, name);
  }
  EXPECT_EQ(render_chat(chat_format_named("mistral-v3"), Messages{{"user", "Hi"}}, kTokens),
            "<s>[INST] Hi[/INST]");
  try {
    chat_format_named("vicuna");
    FAIL();
  } catch (const std::invalid_argument& error) {
    EXPECT_NE(std::string(error.what()).find("'vicuna': chatml, llama2, "), std::string::npos);
  }
}

TEST(ChatTemplate, ADefaultMessageOfLlama2IsTaken) {
  const std::string jinja = replaced(template_of("llama2"), "set system_message = none",
                                     "set system_message = 'Be kind.'");
  EXPECT_EQ(render_chat(recognise_chat_template(jinja), Messages{{"user", "Hi"}}, kTokens),
            "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHi [/INST]");
}

TEST(ChatTemplate, MessagesEndWhereTheAnswerBegins) {
  const ChatFormat plain = recognise_chat_template(kPlain);
  EXPECT_EQ(
      render_chat(plain, Messages{{"user", "Hi"}, {"assistant", "Yes?"}, {"user", "No"}}, kTokens),
      "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes?<|im_end|>\n"
      "<|im_start|>user\nNo<|im_end|>\n<|im_start|>assistant\n");
  EXPECT_EQ(render_chat(plain, {}, kTokens), "<|im_start|>assistant\n");
  EXPECT_THROW(render_chat(plain, Messages{{"tool", "x"}}, kTokens), std::invalid_argument);
}

TEST(ChatTemplate, TheDefaultMessageIsAddedUnlessThereIsOne) {
  ChatFormat chat = chat_format_named("chatml");
  chat.default_system = "Default.";
  EXPECT_EQ(render_chat(chat, Messages{{"user", "Hi"}}, kTokens),
            "<|im_start|>system\nDefault.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
            "<|im_start|>assistant\n");
  EXPECT_EQ(render_chat(chat, Messages{{"system", "Mine."}, {"user", "Hi"}}, kTokens),
            "<|im_start|>system\nMine.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
            "<|im_start|>assistant\n");
}

// Of formats that write nothing anew, a turn and its answer are what the whole conversation says.
TEST(ChatTemplate, TurnsOneByOneAreTheConversation) {
  for (const std::string& name : chat_format_names()) {
    const ChatFormat format = chat_format_named(name);
    const bool is_mistral = name.starts_with("mistral-");
    const std::string answer = is_mistral || name == "llama2" ? format.assistant.before + "A" : "A";
    const std::string turns = render_chat(format, Messages{{"user", "Q"}}, kTokens) + answer +
                              render_next_turn(format, "R", kTokens);
    EXPECT_EQ(turns, render_chat(format, Messages{{"user", "Q"}, {"assistant", "A"}, {"user", "R"}},
                                 kTokens))
        << name;
  }
}

}  // namespace
}  // namespace kvquant
