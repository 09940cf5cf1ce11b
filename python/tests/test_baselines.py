from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from hf_models import EMBEDDED
from kvquant.baselines.__main__ import (
    Outcome,
    main,
    results_of,
    run_all,
    run_engine,
    to_table,
    to_text,
)
from kvquant.baselines.engines import (
    Engine,
    KvquantEngine,
    LlamaBenchEngine,
    WorkerEngine,
    all_engines,
    parse,
)
from kvquant.baselines.request import Request, Row, Shape, parse_request
from kvquant.baselines.worker import time_shape

LLAMA_BENCH = [
    {
        "build_commit": "b0c0",
        "model_type": "llama 5M F16",
        "type_k": "f16",
        "type_v": "f16",
        "n_prompt": 16,
        "n_gen": 0,
        "n_depth": 0,
        "samples_ts": [100.0, 110.0],
    }
]


def request_of(**more: Any) -> Request:
    values: dict[str, Any] = {
        "program": "kvquant",
        "model": str(EMBEDDED),
        "gguf": "",
        "threads": 2,
        "repetitions": 2,
        "tests": [(16, 0)],
        "depths": [0],
        "batches": [1],
        "kv": ["fp16"],
        "precision": "f32",
        "ubatch": 512,
        "seed": 42,
        "flags": [],
        "quiet": True,
    }
    return Request(**(values | more))


def put_on_path(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A llama-bench that leaves its arguments beside it."""
    program = folder / "llama-bench"
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {folder}/arguments\n{script}\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


class Steady(Engine):
    """An engine that needs no process of its own; takes note of its turns."""

    def __init__(self, name: str, turns: list[str], text: str = "[1]") -> None:
        self.name, self.turns, self.text = name, turns, text

    def why_not(self, request: Request) -> str:
        return ""

    def command(self, request: Request) -> list[str]:
        self.turns.append(self.name)
        return ["echo", self.text]

    def rows(self, output: Any, request: Request) -> list[Row]:
        rates = [float(value) for value in output]
        return [Row(self.name, "1", "fp16", "f32", request.shapes[0], rates)]


def test_engines_take_turns_forwards_and_backwards() -> None:
    turns: list[str] = []
    outcome = run_all([Steady(name, turns) for name in "abc"], request_of())
    assert turns == ["a", "b", "c", "c", "b", "a"]
    assert [row.tokens_per_s for row in outcome.rows.values()] == [[1.0, 1.0]] * 3


@pytest.mark.parametrize("text", ["no JSON", "[]", '["x"]', "7", '{"a": 1}', "[0]", "[-1]"])
def test_bad_output_is_an_error_of_its_row_and_the_rest_goes_on(text: str) -> None:
    engines = [Steady("bad", [], text), Steady("good", [], "[5, 7]")]
    outcome = run_all(engines, request_of())
    assert list(outcome.errors) == ["bad"]
    assert [row.engine for row in outcome.rows.values()] == ["good"]
    results = results_of(outcome, request_of())
    assert [result["status"] for result in results] == ["ok", "failed"]
    assert results[0]["tokens_per_s_median"] == 6


def test_a_program_that_fails_is_named_with_what_it_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_on_path(tmp_path, monkeypatch, "echo 'no such model' >&2; exit 3")
    outcome = run_all([LlamaBenchEngine()], request_of(gguf="model.gguf"))
    assert outcome.errors == {"llama-bench": "ended with exit code 3: no such model"}


class HangingEngine(Engine):
    name = "hanging"

    def why_not(self, request: Request) -> str:
        return ""

    def command(self, request: Request) -> list[str]:
        return [sys.executable, "-c", "import time; time.sleep(600)"]

    def rows(self, output: Any, request: Request) -> list[Row]:
        return []


def test_an_engine_that_hangs_is_stopped() -> None:
    outcome = Outcome(limit_s=0.2)
    run_engine(HangingEngine(), request_of(), outcome)
    assert outcome.errors == {"hanging": "stopped after 0 s"}


def test_llama_bench_gets_the_same_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_on_path(tmp_path, monkeypatch, f"echo '{json.dumps(LLAMA_BENCH)}'")
    request = request_of(gguf="model.gguf", batches=[1, 4], ubatch=128)
    outcome = run_all([LlamaBenchEngine()], request)
    assert not outcome.errors
    row = next(iter(outcome.rows.values()))
    assert (row.shape, row.tokens_per_s) == (Shape(16, 0, 0, 1), [100, 110, 100, 110])
    assert (row.cache, row.weights, row.version) == ("f16 / f16", "llama 5M F16", "b0c0")
    arguments = " ".join((tmp_path / "arguments").read_text().split())
    assert "-m model.gguf -p 16 -n 0 -d 0 -t 2 -r 2 -ub 128 -ngl 0 -o json" in arguments
    assert "batch 4" in outcome.left_out["llama-bench"]


def test_figures_nobody_asked_for_are_refused() -> None:
    other = [LLAMA_BENCH[0] | {"n_prompt": 32}]
    with pytest.raises(ValueError, match="pp32, which was not asked for"):
        parse(LlamaBenchEngine(), json.dumps(other), request_of())
    with pytest.raises(ValueError, match="lacks or garbles 'samples_ts'"):
        parse(
            LlamaBenchEngine(),
            '[{"n_prompt": 16, "n_gen": 0, "build_commit": "", '
            '"type_k": "", "type_v": "", "model_type": ""}]',
            request_of(),
        )


def test_what_is_not_there_is_listed_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    missing = WorkerEngine("some engine", "dynamic", {"no_such_package.x": "no-such-package"})
    outcome = run_all([LlamaBenchEngine(), missing], request_of())
    assert outcome.absent == {
        "llama-bench": "not on PATH",
        "some engine": "not installed (pip install no-such-package)",
    }
    put_on_path(tmp_path, monkeypatch, "exit 1")
    assert "needs a GGUF file" in LlamaBenchEngine().why_not(request_of())
    assert "one sequence" in LlamaBenchEngine().why_not(request_of(gguf="x", batches=[2]))


def test_llama_cpp_is_timed_through_its_python_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "llama_cpp.py").write_text(
        "class Llama:\n"
        "    def __init__(self, **options):\n"
        "        assert options['n_ctx'] == 8 + 16 + 4, options\n"
        "    def n_vocab(self):\n        return 100\n"
        "    def reset(self):\n        self.n_tokens = 0\n"
        "    def eval(self, tokens):\n"
        "        self.n_tokens += len(tokens)\n"
        "        assert self.n_tokens <= 28\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    engine = WorkerEngine("llama-cpp-python", "llama_cpp", {"json": "llama-cpp-python"})
    request = request_of(gguf="model.gguf", tests=[(16, 4)], depths=[8], batches=[1, 2])
    outcome = run_all([engine], request)
    assert not outcome.errors
    (row,) = outcome.rows.values()
    assert row.shape == Shape(16, 4, 8, 1)
    assert len(row.tokens_per_s) == 4


def test_dynamic_cache_of_transformers_is_timed_on_the_embedded_model() -> None:
    engine = all_engines()[3]
    request = request_of(tests=[(16, 4), (0, 2)], depths=[8], batches=[2])
    request = parse_request(request.to_json())
    outcome = run_all([engine], request)
    assert not outcome.errors
    rows = list(outcome.rows.values())
    assert [row.shape for row in rows] == request.shapes
    # 8 layers or so: keys and values of 2 sequences of 28 tokens in f32.
    assert rows[0].cache_bytes is not None
    assert rows[0].cache_bytes % (2 * 2 * 28 * 4) == 0


@pytest.mark.parametrize("number", [4, 5])
def test_a_quantized_cache_of_transformers_is_timed(number: int) -> None:
    engine = all_engines()[number]
    request = request_of(tests=[(160, 2)])
    if why := engine.why_not(request):
        pytest.skip(f"{engine.name}: {why}")
    outcome = run_all([engine], request)
    assert not outcome.errors
    assert next(iter(outcome.rows.values())).cache == "4 bits"


def test_the_first_repetition_does_not_count() -> None:
    class Counting:
        name = weights = ""
        runs = fills = rewinds = 0

        def fill(self, shape: Shape) -> None:
            self.fills += 1

        def rewind(self) -> None:
            self.rewinds += 1

        def run(self) -> None:
            self.runs += 1

        def num_bytes(self) -> None:
            return None

    cache = Counting()
    assert len(time_shape(cache, Shape(1, 0, 0, 1), 3)) == 3
    assert (cache.fills, cache.rewinds, cache.runs) == (1, 4, 4)


def kvquant_document() -> dict[str, Any]:
    result = {"spec": "nuq4", "n_prompt": 16, "n_gen": 0, "n_depth": 0, "batch": 1}
    peaks = {"read_gb_per_s": 20.0, "bf16_gemm_gflop_per_s": 400.0, "f32_gemm_gflop_per_s": 200.0}
    return {
        "machine": {"commit": "abc"},
        "model": {"name": "tiny"},
        "config": {"weights": "auto", "precision": "bf16", "peaks": peaks},
        "results": [result | {"samples_s": [0.16, 0.08], "cache_bytes": 2**20}],
    }


def test_rows_stand_beside_the_first_spec_and_the_peaks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "kvquant"
    program.write_text(f"#!/bin/sh\necho '{json.dumps(kvquant_document())}'\n")
    program.chmod(0o755)
    put_on_path(tmp_path, monkeypatch, f"echo '{json.dumps(LLAMA_BENCH)}'")
    monkeypatch.setattr(
        "kvquant.baselines.__main__.all_engines", lambda: [KvquantEngine(), LlamaBenchEngine()]
    )
    file = tmp_path / "out.json"
    request = request_of(program=str(program), gguf="model.gguf", json=str(file))
    assert main([request.to_json()]) == 0
    out = capsys.readouterr().out
    assert "measured peaks: read 20.0 GB/s, GEMM bf16 400" in out
    assert "| 150.0 ± 57.7" in out
    document = json.loads(file.read_text())
    assert document["model"] == {"name": "tiny"}
    assert document["config"]["rounds"] == 2
    assert [r["ratio_to_first_spec"] for r in document["results"]] == [1.0, 105 / 150]
    for style in ("csv", "jsonl", "json", "md"):
        assert "llama-bench" in to_text(document, style)
    assert to_table(document).count("\n") == 4
    bad = request_of(program=str(program), gguf="model.gguf", json=str(tmp_path / "no/out.json"))
    assert main([bad.to_json()]) == 3
