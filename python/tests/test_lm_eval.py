"""The model of the lm-evaluation-harness, on tasks of the tests' own: no network is asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kvquant
import pytest

pytest.importorskip("lm_eval", reason="lm-eval is not installed (pip install 'kvquant[lm-eval]')")

ROOT = Path(__file__).resolve().parent.parent.parent
EMBEDDED = str(ROOT / "assets/ref5m")
pytestmark = pytest.mark.filterwarnings("ignore")  # of the harness and what it imports

SENTENCES = [
    "Once upon a time there was a little girl named Lily",
    "The old man went down to the harbour and saw the sea",
    "He opened the door and looked into the dark room",
    "They all went home because it was late and they were tired",
]
TASKS: dict[str, dict[str, Any]] = {
    "last_word": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{text.rsplit(' ', 1)[0]}}",
        "doc_to_target": "{{' ' + text.rsplit(' ', 1)[1]}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "perplexity"}, {"metric": "acc"}],
    },
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{text.rsplit(' ', 2)[0]}}",
        "doc_to_choice": ["{{text.split(' ', 8)[-1]}}", "of of", "the big red ball and a dog"],
        "doc_to_target": 0,
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "byte_perplexity"}],
    },
    "answer": {
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{text}}",
        "generation_kwargs": {"until": [","], "max_gen_toks": 12},
        "metric_list": [{"metric": "exact_match"}],
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """With tasks and data; what the harness writes stays there."""
    path = tmp_path_factory.mktemp("harness")
    data = path / "data.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in SENTENCES))
    source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}}
    for name, task in TASKS.items():
        whole = {"task": f"kvquant_{name}", "test_split": "test", **source, **task}
        (path / f"{name}.yaml").write_text(json.dumps(whole))  # JSON is YAML
    before = dict(os.environ)
    os.environ |= {"HF_HOME": str(path / "hf"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    yield path
    os.environ.clear()
    os.environ.update(before)


def run(folder: Path, model_args: str, *tasks: str, model: str = "kvquant", **more: Any) -> Any:
    """What the harness makes of tasks of TASKS: results, with samples in the data's order."""
    import kvquant.lm_eval  # noqa: F401  (registers the model)
    from lm_eval import evaluator, simple_evaluate
    from lm_eval.tasks import TaskManager

    evaluator.add_env_info = lambda _storage: None  # asks pip, which takes a second
    names = [f"kvquant_{task}" for task in tasks]
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    options: dict[str, Any] = {"bootstrap_iters": 0, "task_manager": manager, **more}
    return simple_evaluate(model, model_args=model_args, tasks=names, **options)


def responses(out: Any, task: str) -> list[Any]:
    samples = sorted(out["samples"][f"kvquant_{task}"], key=lambda sample: sample["doc_id"])
    return [response for sample in samples for response in sample["filtered_resps"]]


def arguments(**given: Any) -> str:
    given = {"pretrained": EMBEDDED, "threads": 1, **given}
    return ",".join(f"{name}={value}" for name, value in given.items())


@pytest.mark.parametrize("spec", ["fp16", "nuq3-1%"])
def test_likelihoods_are_those_of_the_programs_own_task(folder: Path, spec: str) -> None:
    file = folder / f"{spec}.json"
    command = [sys.executable, "-m", "kvquant", "eval", "-m", "embedded", "--tasks", "lambada"]
    command += ["--data", f"lambada={folder / 'data.jsonl'}", "--kv", spec, "--json", str(file)]
    subprocess.run(command, check=True, capture_output=True)
    results = json.loads(file.read_text())["results"]
    expected = next(result for result in results if result["spec"] == spec)
    out = run(folder, arguments(kv=spec), "last_word")
    found = out["results"]["kvquant_last_word"]
    assert found["perplexity,none"] == pytest.approx(expected["perplexity,none"], rel=1e-12)
    assert found["acc,none"] == expected["acc,none"]
    for name in ("spec", "spec_resolved", "mode"):
        assert out["config"][name] == expected[name], name
    assert (out["config"]["compressed_tokens"] > 0) == (spec != "fp16")
    assert out["config"]["backend"] == "native"


def test_fp16_agrees_with_the_harnesss_transformers_model(folder: Path) -> None:
    pytest.importorskip("accelerate", reason="the harness's model hf needs accelerate")
    tasks = ["last_word", "choice", "rolling", "answer"]
    # transformers' tokenizer doesn't add the BOS that the model's configuration asks for.
    plain = f"pretrained={EMBEDDED},dtype=float32,add_bos_token=False"
    expected = run(folder, plain, *tasks, model="hf", device="cpu", batch_size=2)
    for backend in ("native", "hf"):
        args = arguments(backend=backend, precision="f32", add_bos_token=False)
        out = run(folder, args, *tasks, batch_size=2)
        assert out["config"]["backend"] == backend
        for task in ("last_word", "choice"):
            pairs = zip(responses(out, task), responses(expected, task), strict=True)
            for (ours, our_greedy), (theirs, their_greedy) in pairs:
                assert ours == pytest.approx(theirs, abs=0.02)  # keys and values of 16 bits
                assert our_greedy == their_greedy
        for ours, theirs in zip(
            responses(out, "rolling"), responses(expected, "rolling"), strict=True
        ):
            assert ours == pytest.approx(theirs, abs=0.02)
        assert responses(out, "answer") == responses(expected, "answer")


@pytest.mark.parametrize("backend", ["native", "hf"])
def test_results_do_not_depend_on_the_batch_size(folder: Path, backend: str) -> None:
    args = arguments(backend=backend, kv="nuq3-1%,sink=4", precision="f32")
    tasks = ["last_word", "choice", "answer"]
    one, three = (run(folder, args, *tasks, batch_size=size) for size in (1, 3))
    assert responses(one, "answer") == responses(three, "answer")
    for task in ("last_word", "choice"):
        for alone, together in zip(responses(one, task), responses(three, task), strict=True):
            assert alone[0] == pytest.approx(
                together[0], rel=1e-12 if backend == "native" else 2e-3
            )
    config = one["config"]
    assert config["spec"] == "nuq3-1%,sink=4"
    assert config["mode"] == {"likelihood": "strict", "generation": "as-served"}
    assert "sink=4,recent=0" in config["spec_resolved"]["likelihood"]
    assert config["compressed_tokens"]["likelihood"] > 0


@pytest.mark.parametrize("backend", ["native", "hf"])
def test_answers_behind_compressed_prompts_do_not_depend_on_the_batch(backend: str) -> None:
    from kvquant.lm_eval import KvquantLM
    from kvquant.lm_eval.backend import Sampling

    lm = KvquantLM(
        EMBEDDED,
        "nuq3-1%",
        backend=backend,
        precision="f32",
        ubatch=64,
        batch_size=3,
    )
    text = Path(kvquant.find_asset("sample.txt")).read_text(encoding="utf-8")
    words = lm.tok_encode(text)
    prompts = [words[:300], words[40:190], words[7:90]]
    sampling = Sampling(12)
    together = lm.engine.generate(prompts, sampling, "as-served")
    alone = [lm.engine.generate([prompt], sampling, "as-served")[0] for prompt in prompts]
    assert [a.text for a in together] == [a.text for a in alone]
    assert len({a.text for a in together}) == 3
    assert min(a.compressed_tokens for a in together[:2]) > 0


def test_backends_agree_where_nothing_is_fitted_to_the_context(folder: Path) -> None:
    preset = kvquant.get_preset_info("embedded", "balanced")
    common = {"preset": "balanced", "precision": "f32", "add_bos_token": False}
    native, hf = (
        run(folder, arguments(backend=name, **common), "last_word", "rolling")
        for name in ("native", "hf")
    )
    exact = run(folder, arguments(precision="f32", add_bos_token=False), "last_word")
    assert native["config"]["spec"] == preset.spec
    assert native["config"]["calibration"] == preset.calibration_path
    pairs = zip(responses(native, "last_word"), responses(hf, "last_word"), strict=True)
    for (ours, _), (theirs, _) in pairs:
        assert ours == pytest.approx(theirs, abs=0.3)  # a code may fall to the other side
    assert responses(native, "last_word") != responses(exact, "last_word")


def test_rolling_likelihoods_are_those_of_a_session(folder: Path, model: kvquant.Model) -> None:
    out = run(folder, arguments(max_length=8), "rolling")
    whole = run(folder, arguments(), "rolling")
    for text, windows, total in zip(
        SENTENCES, responses(out, "rolling"), responses(whole, "rolling"), strict=True
    ):
        ids = model.tokenizer.encode(text)
        scores = kvquant.Session(model, "fp16", "strict").score(ids)
        assert total == pytest.approx(scores.sum(), abs=0.05)
        parts = [ids[:9], ids[len(ids) - 9 :]]  # two windows of 8, the second one's context behind
        own = [kvquant.Session(model, "fp16", "strict").score(part) for part in parts]
        expected = own[0].sum() + own[1][8 - (len(ids) - 9) :].sum()
        assert windows == pytest.approx(expected, abs=0.05)


def test_answers_are_those_of_a_session_as_served(folder: Path, model: kvquant.Model) -> None:
    out = run(folder, arguments(kv="nuq2"), "answer")
    for text, answer in zip(SENTENCES, responses(out, "answer"), strict=True):
        made = kvquant.Session(model, "nuq2").generate(text, max_tokens=12)["text"]
        assert answer == made.split(",")[0]
    assert out["config"]["mode"] == "as-served"
    assert out["config"]["compressed_tokens"] == 0  # and a warning says that this is no result


def test_chat_templates_are_applied(folder: Path) -> None:
    from kvquant.lm_eval import KvquantLM

    lm = KvquantLM(EMBEDDED, chat_template="chatml")
    messages = [{"role": "user", "content": "Hi"}]
    prompt = lm.apply_chat_template(messages)
    assert prompt.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    messages.append({"role": "assistant", "content": "Well,"})
    assert lm.apply_chat_template(messages, add_generation_prompt=False) == prompt + "Well,"
    plain = run(folder, arguments(), "last_word")
    args = arguments(chat_template="chatml")
    chatting = run(folder, args, "last_word", apply_chat_template=True)
    assert responses(plain, "last_word") != responses(chatting, "last_word")
    with pytest.raises(ValueError, match="no chat template: give chat_template=NAME"):
        run(folder, arguments(), "last_word", apply_chat_template=True)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"kv": "nuq9"}, "nuq9"),
        ({"no_such": 1}, "unknown model_args: no_such"),
        ({"preset": "balanced", "kv": "nuq3"}, "leave kv out"),
        ({"backend": "cuda"}, "backend is 'cuda'"),
        ({"mode": "fast"}, "mode is 'fast'"),
        ({"max_length": 1 << 20}, "max_length is 1048576"),
        ({"batch_size": "auto"}, "batch_size is 'auto'"),
    ],
)
def test_mistakes_are_refused(args: dict[str, Any], message: str) -> None:
    from kvquant.lm_eval import KvquantLM

    with pytest.raises(ValueError, match=message):
        KvquantLM(EMBEDDED, **args)


def test_generation_arguments_are_taken_or_refused() -> None:
    from kvquant.lm_eval.arguments import sampling_of

    given = {"max_gen_toks": 5, "until": [], "do_sample": True, "temperature": 0.7, "top_k": 3}
    sampling = sampling_of({**given, "repetition_penalty": 1.1}, ["\n", ""])
    assert (sampling.max_tokens, sampling.until, sampling.top_k) == (5, ("\n",), 3)
    assert (sampling.temperature, sampling.repeat_penalty) == (0.7, 1.1)
    assert sampling_of({**given, "do_sample": False}, []).temperature == 0
    with pytest.raises(ValueError, match="typical_p"):
        sampling_of({**given, "typical_p": 0.9}, [])


def test_the_harnesss_own_program_finds_kvquant(folder: Path) -> None:
    code = (
        "import site, sys; site.addsitedir(sys.argv.pop(1));"
        "from lm_eval.__main__ import cli_evaluate; cli_evaluate()"
    )
    command = [sys.executable, "-c", code, str(ROOT / "python/startup"), "--model", "kvquant"]
    command += ["--model_args", "pretrained=embedded,kv=nuq4-1%", "--tasks", "kvquant_choice"]
    command += ["--include_path", str(folder), "--output_path", str(folder / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "kvquant_choice" in done.stdout
    (written,) = (folder / "out").rglob("results*.json")
    assert json.loads(written.read_text())["config"]["spec"] == "nuq4-1%"
