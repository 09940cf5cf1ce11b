// kvquant chat as its user sees it: lines on standard input, answers on standard output.
#include <fcntl.h>
#include <sys/types.h>
#include <unistd.h>

#include <csignal>
#include <string>
#include <vector>

#include "program.h"

namespace kvquant {
namespace {

using test::Outcome;

constexpr const char* kChat = "chat -m embedded --chat-template chatml --quiet ";

class Chat : public test::ProgramTest {
 protected:
  Outcome chat(const std::string& input, const std::string& arguments = "",
               int max_tokens = 6) const {
    write_file_atomic(path("in"), input);
    return run(kChat + ("-n " + std::to_string(max_tokens) + " ") + arguments, path("in"));
  }
};

TEST_F(Chat, AnswersAreTheSameForASeed) {
  const Outcome one = chat("The sea\nAnd then?\n", "--seed 3");
  EXPECT_EQ(one.code, 0) << one.err;
  EXPECT_EQ(one.err, "> > > ");
  EXPECT_EQ(one.out, chat("The sea\nAnd then?\n", "--seed 3").out);
  EXPECT_NE(one.out, chat("The sea\nAnd then?\n", "--seed 4").out);
}

TEST_F(Chat, AResetBeginsAnew) {
  const std::string twice = chat("The sea\n/reset\nThe sea\n").out;
  const std::string once = chat("The sea\n").out;
  EXPECT_EQ(twice, once + once);
}

TEST_F(Chat, ASavedConversationGoesOn) {
  for (const std::string spec : {"--kv fp16", "--kv nuq4-1%"}) {
    const std::string file = path("talk.kvq");
    const Outcome whole = chat("The sea\n/save " + file + "\nAnd then?\n", spec);
    EXPECT_EQ(whole.code, 0) << whole.err;
    const std::string first = chat("The sea\n", spec).out;
    EXPECT_EQ(first + chat("/load " + file + "\nAnd then?\n", spec).out, whole.out);
    const Outcome other = chat("/load " + file + "\n", "--kv nuq2");
    EXPECT_EQ(other.code, 0);
    EXPECT_NE(other.err.find("spec"), std::string::npos) << other.err;
  }
}

TEST_F(Chat, WrongCommandsAreNamedAndTheChatGoesOn) {
  const Outcome outcome =
      chat("/nothing\n/save\n/reset now\n/load " + path("none") + "\n/help\nThe sea\n");
  EXPECT_EQ(outcome.code, 0);
  for (const char* part : {"there is no /nothing", "/save needs a file", "/reset takes nothing",
                           "none.json", "/load FILE"}) {
    EXPECT_NE(outcome.err.find(part), std::string::npos) << part << " in " << outcome.err;
  }
  EXPECT_EQ(outcome.out, chat("The sea\n").out);
}

TEST_F(Chat, AFullContextIsToldAndTheChatGoesOn) {
  std::string input;
  for (int i = 0; i < 5; ++i)
    input += "Tell me more of the sea and of the old man in the harbour.\n";
  for (const char* spec : {"fp16", "nuq4-1%"}) {
    const Outcome outcome = chat(input, std::string("-c 250 --kv ") + spec, 40);
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_NE(outcome.err.find("the context of 250 tokens was full"), std::string::npos);
    EXPECT_EQ(outcome.err.find("nothing can move") != std::string::npos,
              std::string(spec) == "fp16");
  }
  const Outcome tight = chat(input + "\n", "-c 20");
  EXPECT_EQ(tight.code, 0);
  EXPECT_NE(tight.err.find("the message needs"), std::string::npos) << tight.err;
}

TEST_F(Chat, TemplatesGoByNameOrAreAskedFor) {
  expect_refused("chat -m embedded", "has no chat template: give --chat-template NAME (chatml,");
  expect_refused("chat -m embedded --chat-template vicuna", "'vicuna': chatml, llama2");
  expect_refused("generate -m embedded --chat -p Hi", "--chat-template NAME");
  expect_refused("generate -m embedded --chat-template chatml -p Hi", "needs --chat");
  EXPECT_EQ(run("generate -m embedded --chat --chat-template llama3 -p Hi -n 2 --quiet").code, 0);
}

// The program with pipes for its streams.
class Running {
 public:
  explicit Running(const std::vector<std::string>& arguments) {
    int in[2], out[2], err[2];
    if (pipe(in) != 0 || pipe(out) != 0 || pipe(err) != 0) std::abort();
    pid_ = fork();
    if (pid_ == 0) {
      dup2(in[0], 0);
      dup2(out[1], 1);
      dup2(err[1], 2);
      for (const int fd : {in[0], in[1], out[0], out[1], err[0], err[1]}) close(fd);
      std::vector<char*> argv{const_cast<char*>(KVQUANT_PROGRAM)};
      for (const std::string& argument : arguments) {
        argv.push_back(const_cast<char*>(argument.c_str()));
      }
      argv.push_back(nullptr);
      execv(KVQUANT_PROGRAM, argv.data());
      _exit(127);
    }
    for (const int fd : {in[0], out[1], err[1]}) close(fd);
    in_ = in[1];
    out_ = out[0];
    err_ = err[0];
  }
  ~Running() {
    for (const int fd : {in_, out_, err_}) close(fd);
  }

  void type(const std::string& text) const {
    EXPECT_EQ(write(in_, text.data(), text.size()), static_cast<ssize_t>(text.size()));
  }
  // Waits for one byte of output.
  void await_output() const {
    char byte;
    EXPECT_EQ(read(out_, &byte, 1), 1);
  }
  void await_prompt() const {
    std::string seen;
    char byte;
    while (!seen.ends_with("> ") && read(err_, &byte, 1) == 1) seen += byte;
    EXPECT_TRUE(seen.ends_with("> "));
  }
  void interrupt() const { kill(pid_, SIGINT); }
  int wait() const {
    int status = 0;
    waitpid(pid_, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

 private:
  pid_t pid_;
  int in_, out_, err_;
};

TEST_F(Chat, CtrlCStopsTheAnswerAndAtThePromptTheChat) {
  Running chat({"chat", "-m", "embedded", "--chat-template", "chatml", "-n", "1000", "--quiet"});
  chat.await_prompt();
  chat.type("The sea\n");
  chat.await_output();
  chat.interrupt();
  chat.await_prompt();
  chat.type("/help\n");  // goes on
  chat.await_prompt();
  chat.interrupt();
  EXPECT_EQ(chat.wait(), 130);
}

}  // namespace
}  // namespace kvquant
