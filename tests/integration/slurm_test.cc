// `kvquant sweep --slurm` against programs of Slurm that are shell scripts of the test's own.
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "program.h"

namespace kvquant {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using test::Outcome;

class Slurm : public test::ProgramTest {
 protected:
  void SetUp() override {
    ProgramTest::SetUp();
    path_ = std::getenv("PATH");
    fs::create_directories(path("bin"));
    setenv("PATH", (path("bin") + ":" + path_).c_str(), 1);
    // Numbers from 71 on.
    fake("sbatch", "echo \"$@\" >>" + path("submitted") + "; echo $((70 + $(wc -l <" +
                       path("submitted") + ")))");
    fake("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1");
    fake("sacct", "exit 1");
    fake("scontrol", "exit 1");
  }
  void TearDown() override {
    setenv("PATH", path_.c_str(), 1);
    ProgramTest::TearDown();
  }
  void fake(const std::string& name, const std::string& body) const {
    write_file_atomic(path("bin/" + name), "#!/bin/sh\n" + body + "\n");
    fs::permissions(path("bin/" + name), fs::perms::owner_all);
  }
  std::string sweep(const std::string& rest) const {
    return "sweep -m embedded --warmup 1 --min-repetitions 1 --max-repetitions 1 --slurm-cpus 1 "
           "--config len16_batch1_gen2_fp16 --config len16_batch1_gen2_nuq4 -o '" +
           path("of results") + "' " + rest;
  }
  std::string script() const { return path("of results/slurm/array_1.sh"); }

 private:
  std::string path_;
};

TEST_F(Slurm, SubmitsAnArrayWithAConfigurationATask) {
  const Outcome outcome =
      run(sweep("--slurm --slurm-account lab --slurm-partition long --slurm-gpus a100:1 "
                "--slurm-mem 3G --slurm-time 1-00:00:00 --slurm-max-running 4"));
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_NE(outcome.err.find("job 71, 2 tasks"), std::string::npos) << outcome.err;
  EXPECT_EQ(read_text(path("submitted")),
            "--parsable --chdir " + path("of results") + " " + script() + "\n");
  const std::string text = read_text(script());
  for (const char* line : {"--account=lab\n", "--partition=long\n", "--gres=gpu:a100:1\n",
                           "--mem=3G\n", "--time=1-00:00:00\n", "--array=0-1%4\n",
                           "--cpus-per-task=1\n", "--output=logs/%A_%a.log\n"}) {
    EXPECT_NE(text.find(std::string("#SBATCH ") + line), std::string::npos) << line;
  }
  EXPECT_EQ(std::system(("bash -n '" + script() + "'").c_str()), 0);
}

TEST_F(Slurm, ATaskOfTheScriptWritesItsResultAndCollectingTheIndex) {
  ASSERT_EQ(run(sweep("--slurm-dry-run")).code, 0);
  EXPECT_FALSE(fs::exists(path("submitted")));
  const std::string task = "SLURM_ARRAY_TASK_ID=1 bash '" + script() + "' >/dev/null 2>&1";
  EXPECT_EQ(std::system(task.c_str()), 0);
  const Outcome outcome = run(sweep("--collect"));
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_NE(outcome.out.find("| nuq4"), std::string::npos) << outcome.out;
  EXPECT_NE(outcome.err.find("len16_batch1_gen2_fp16: missing"), std::string::npos) << outcome.err;
  EXPECT_EQ(Json::parse(read_text(path("of results/index.jsonl"))).at("status"), "ok");
}

TEST_F(Slurm, AKilledTaskIsQueuedAgainUpToALimit) {
  ASSERT_EQ(run(sweep("--slurm-dry-run")).code, 0);
  fake("scontrol", "echo \"$@\" >>" + path("requeued"));
  // In place of the program: a process that kills itself.
  const std::string killed = "sed 's/^command=($/command=(sh -c \"kill -9 \\\\$\\\\$\"/' '" +
                             script() + "' >" + path("killed.sh");
  ASSERT_EQ(std::system(killed.c_str()), 0);
  const std::string task =
      "SLURM_ARRAY_JOB_ID=71 SLURM_ARRAY_TASK_ID=1 bash " + path("killed.sh") + " >/dev/null 2>&1";
  EXPECT_NE(std::system(task.c_str()), 0);
  EXPECT_EQ(read_text(path("requeued")), "requeue 71_1\n");
  EXPECT_NE(std::system(("SLURM_RESTART_COUNT=3 " + task).c_str()), 0);
  EXPECT_EQ(read_text(path("requeued")), "requeue 71_1\n");
}

TEST_F(Slurm, ATaskThatEndsAsMemoryRunsOutIsNotQueuedAgain) {
  ASSERT_EQ(run(sweep("--slurm-dry-run")).code, 0);
  fake("scontrol", "echo \"$@\" >>" + path("requeued"));
  write_file_atomic(path("vmstat"), std::string("nr_free_pages 1\noom_kill 4\n"));
  // In place of the program: a process that is killed, as the kernel counts.
  write_file_atomic(path("bin/program"),
                    "#!/bin/sh\necho 'oom_kill 5' >" + path("vmstat") + "; kill -9 $$\n");
  fs::permissions(path("bin/program"), fs::perms::owner_all);
  const std::string changed =
      "sed 's/^command=($/command=(program/; s|^vmstat=.*|vmstat=" + path("vmstat") + "|' '" +
      script() + "' >" + path("killed.sh");
  ASSERT_EQ(std::system(changed.c_str()), 0);
  const std::string task = "SLURM_ARRAY_JOB_ID=71 SLURM_ARRAY_TASK_ID=1 bash " + path("killed.sh") +
                           " >" + path("log") + " 2>&1";
  EXPECT_EQ(WEXITSTATUS(std::system(task.c_str())), 137);
  EXPECT_NE(read_text(path("log")).find("as memory ran out"), std::string::npos);
  EXPECT_FALSE(fs::exists(path("requeued")));
  EXPECT_EQ(WEXITSTATUS(std::system(task.c_str())), 137);  // no kill that the kernel counts
  EXPECT_EQ(read_text(path("requeued")), "requeue 71_1\n");
}

TEST_F(Slurm, WhatIsQueuedIsNotSubmittedAgainAndWhatHasEndedIs) {
  ASSERT_EQ(run(sweep("--slurm --quiet")).code, 0);
  fake("squeue", "echo 71_0 RUNNING");
  fake("sacct", "echo 71_1 OUT_OF_MEMORY");
  fake("sbatch", "echo 72");
  const Outcome collected = run(sweep("--collect"));
  EXPECT_EQ(collected.code, 1);
  EXPECT_NE(collected.err.find("fp16: RUNNING"), std::string::npos) << collected.err;
  EXPECT_NE(collected.err.find("nuq4: OUT_OF_MEMORY (--slurm-mem"), std::string::npos)
      << collected.err;
  const Outcome again = run(sweep("--slurm"));
  EXPECT_NE(again.err.find("job 72, 1 tasks"), std::string::npos) << again.err;
}

TEST_F(Slurm, TasksThatNeverRanHaveOneLineTogether) {
  ASSERT_EQ(run(sweep("--slurm --quiet")).code, 0);
  // As sacct of Slurm 22.05, which doesn't know --array.
  fake("sacct",
       "case \"$*\" in *--array*) exit 1;; esac; echo 71_0 FAILED; "
       "echo '71_[0-1%4] CANCELLED by 0'");
  const Outcome collected = run(sweep("--collect"));
  EXPECT_EQ(collected.code, 1);
  EXPECT_NE(collected.err.find("fp16: FAILED\n"), std::string::npos) << collected.err;
  EXPECT_NE(collected.err.find("nuq4: CANCELLED\n"), std::string::npos) << collected.err;
}

TEST_F(Slurm, NothingIsSubmittedWhileSlurmDoesNotAnswer) {
  ASSERT_EQ(run(sweep("--slurm --quiet")).code, 0);
  fake("squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1");
  fake("sbatch", "echo 1 >" + path("again"));
  const Outcome outcome = run(sweep("--slurm --quiet"));
  EXPECT_EQ(outcome.code, 2);
  EXPECT_NE(outcome.err.find("Unable to contact"), std::string::npos) << outcome.err;
  EXPECT_FALSE(fs::exists(path("again")));
}

TEST_F(Slurm, OptionsWithoutSlurmAreRefused) {
  const std::string command = "sweep -m embedded --config len16_batch1_gen2_fp16 -o " + path("o");
  expect_refused(command + " --slurm-mem 4G", "--slurm-mem needs --slurm");
  expect_refused(command + " --slurm --collect", "--collect submits nothing");
}

TEST_F(Slurm, SplitsAtTheSizeOfAnArray) {
  fake("scontrol", "echo 'MaxArraySize            = 1'");
  EXPECT_EQ(run(sweep("--slurm --quiet")).code, 0);
  EXPECT_TRUE(fs::exists(path("of results/slurm/array_2.sh")));
}

TEST_F(Slurm, AbsentSlurmIsALineAndNothingIsLost) {
  setenv("PATH", path("nowhere").c_str(), 1);
  const Outcome absent = run(sweep("--slurm --quiet"));
  EXPECT_EQ(absent.code, 2);
  EXPECT_NE(absent.err.find("no sbatch on PATH"), std::string::npos) << absent.err;
  EXPECT_EQ(std::count(absent.err.begin(), absent.err.end(), '\n'), 1) << absent.err;
  EXPECT_TRUE(fs::exists(script()));
}

TEST_F(Slurm, RefusingSlurmIsItsMessageInALine) {
  fake("sbatch", "printf 'sbatch: error: invalid account\\nsbatch: error: no job\\n' >&2; exit 1");
  const Outcome refused = run(sweep("--slurm --quiet"));
  EXPECT_EQ(refused.code, 2);
  EXPECT_NE(refused.err.find("invalid account"), std::string::npos) << refused.err;
  EXPECT_EQ(std::count(refused.err.begin(), refused.err.end(), '\n'), 1) << refused.err;
  fake("sbatch", "echo nonsense");
  expect_refused(sweep("--slurm --quiet"), "no number of a job: nonsense");
}

TEST_F(Slurm, AnotherClusterIsAskedForItsJobs) {
  fake("sbatch", "echo 'sbatch: warning: 2 of 3' >&2; echo '71;alpha'");
  const std::string tell = "echo \"$(basename $0) $@\" >>" + path("asked");
  fake("squeue", tell + "; echo 71_0 RUNNING; echo 71_1 PENDING");
  fake("scontrol", tell);
  ASSERT_EQ(run(sweep("--slurm --quiet --slurm-clusters alpha,beta")).code, 0);
  EXPECT_NE(read_text(script()).find("#SBATCH --clusters=alpha,beta\n"), std::string::npos);
  EXPECT_EQ(read_text(path("asked")), "scontrol show config -M alpha,beta\n");
  ASSERT_EQ(run(sweep("--collect")).code, 0);
  EXPECT_NE(read_text(path("asked")).find(" -j 71 -M alpha\n"), std::string::npos);
}

// A cluster that was set up anew counts from the beginning.
TEST_F(Slurm, TheSameNumberAgainIsAnotherJob) {
  ASSERT_EQ(run(sweep("--slurm --quiet")).code, 0);
  const std::string old = path("of results/slurm/job_71_20200101T000000.json");
  write_file_atomic(old, std::string(R"({"job": "71", "cluster": "", "results": ["x", "y"],
                                         "submitted": "2020-01-01T00:00:00"})"));
  fake("squeue", "echo 71_0 RUNNING");
  fake("sbatch", "echo 72");
  const Outcome again = run(sweep("--slurm"));
  EXPECT_EQ(again.code, 0) << again.err;
  EXPECT_NE(again.err.find("job 72, 1 tasks"), std::string::npos) << again.err;
  EXPECT_TRUE(fs::exists(old));
  write_file_atomic(old, std::string("{"));
  expect_refused(sweep("--collect --quiet"), "job_71_20200101T000000.json: job is missing");
}

}  // namespace
}  // namespace kvquant
