"""The engines: why one can't run, the command that times it, the rows that its output says."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import shutil
import sys
from abc import ABC, abstractmethod
from typing import Any

from kvquant.baselines.request import Request, Row, Shape


class Engine(ABC):
    """A process that prints JSON."""

    name: str

    @abstractmethod
    def why_not(self, request: Request) -> str:
        """Empty where it can run."""

    @abstractmethod
    def command(self, request: Request) -> list[str]:
        """What times the shapes that it can do."""

    @abstractmethod
    def rows(self, output: Any, request: Request) -> list[Row]:
        """Of its output. KeyError, TypeError, ValueError, AttributeError: not what it should be."""

    def left_out(self, request: Request) -> str:
        """Which of the shapes it can't do, and why; empty: none."""
        return ""


def _lists(request: Request) -> list[str]:
    """-p, -n, -pg and -d, which llama-bench and kvquant share."""
    prompts = [str(p) for p, n in request.tests if n == 0]
    gens = [str(n) for p, n in request.tests if p == 0]
    out = ["-p", ",".join(prompts) or "0", "-n", ",".join(gens) or "0"]
    for prompt, gen in request.tests:
        if prompt and gen:
            out += ["-pg", f"{prompt},{gen}"]
    return [*out, "-d", ",".join(map(str, request.depths))]


class KvquantEngine(Engine):
    """The program itself, all specs in one process."""

    name = "kvquant"

    def why_not(self, request: Request) -> str:
        return ""

    def command(self, request: Request) -> list[str]:
        out = [request.program, "bench", "-m", request.model, *_lists(request), "--peaks"]
        out += ["-b", ",".join(map(str, request.batches)), "-t", str(request.threads)]
        out += ["-r", str(request.repetitions), "--precision", request.precision]
        out += ["-ub", str(request.ubatch), "--seed", str(request.seed), "--quiet", "--json", "-"]
        for spec in request.kv:
            out += ["--kv", spec]
        return out + request.flags

    def rows(self, output: Any, request: Request) -> list[Row]:
        weights = f"{output['config']['weights']}, {output['config']['precision']}"
        version = output["machine"]["commit"]
        rows = []
        for result in output["results"]:
            shape = Shape(*(result[key] for key in ("n_prompt", "n_gen", "n_depth", "batch")))
            rates = [shape.num_tokens / time_s for time_s in result["samples_s"]]
            row = Row("kvquant", version, result["spec"], weights, shape, rates)
            row.cache_bytes = result["cache_bytes"]
            row.peaks = output["config"]["peaks"]
            rows.append(row)
        return rows


def _why_no_gguf(request: Request) -> str:
    return "" if request.gguf else f"needs a GGUF file, {request.model} is none: give --gguf FILE"


def _one_sequence(request: Request) -> str:
    many = [batch for batch in request.batches if batch != 1]
    return f"batch {', '.join(map(str, many))}: it times one sequence" if many else ""


class LlamaBenchEngine(Engine):
    """llama-bench of the PATH, with an fp16 cache."""

    name = "llama-bench"

    def why_not(self, request: Request) -> str:
        if shutil.which("llama-bench") is None:
            return "not on PATH"
        return _why_no_gguf(request) or ("" if 1 in request.batches else _one_sequence(request))

    def left_out(self, request: Request) -> str:
        return _one_sequence(request)

    def command(self, request: Request) -> list[str]:
        out = ["llama-bench", "-m", request.gguf, *_lists(request), "-t", str(request.threads)]
        out += ["-r", str(request.repetitions), "-ub", str(request.ubatch), "-ngl", "0"]
        return [*out, "-o", "json"]

    def rows(self, output: Any, request: Request) -> list[Row]:
        rows = []
        for test in output:
            shape = Shape(test["n_prompt"], test["n_gen"], test.get("n_depth", 0), 1)
            if shape not in request.shapes:
                raise ValueError(f"timed {shape}, which was not asked for")
            cache = f"{test['type_k']} / {test['type_v']}"
            rates = [float(rate) for rate in test["samples_ts"]]
            version = str(test["build_commit"])
            rows.append(Row("llama-bench", version, cache, test["model_type"], shape, rates))
        return rows


def is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of a package around it
        return False


class WorkerEngine(Engine):
    """A cache of a Python package, in a process of kvquant.baselines.worker."""

    def __init__(self, name: str, kind: str, packages: dict[str, str]) -> None:
        """packages: module -> what pip calls it."""
        self.name, self.kind, self.packages = name, kind, packages

    def why_not(self, request: Request) -> str:
        for module, package in self.packages.items():
            if not is_installed(module):
                return f"not installed (pip install {package})"
        if self.kind != "llama_cpp":
            return ""
        return _why_no_gguf(request) or ("" if 1 in request.batches else _one_sequence(request))

    def left_out(self, request: Request) -> str:
        return _one_sequence(request) if self.kind == "llama_cpp" else ""

    def command(self, request: Request) -> list[str]:
        return [sys.executable, "-m", "kvquant.baselines.worker", self.kind, request.to_json()]

    def rows(self, output: Any, request: Request) -> list[Row]:
        rows = []
        for result in output:
            shape = Shape(**result["shape"])
            rates = [shape.num_tokens / time_s for time_s in result["samples_s"]]
            row = Row(self.name, self.version, result["cache"], result["weights"], shape, rates)
            row.cache_bytes = result["cache_bytes"]
            rows.append(row)
        return rows

    @property
    def version(self) -> str:
        package = next(iter(self.packages.values()))
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return "unknown"


_TRANSFORMERS = {"transformers": "transformers", "torch": "torch"}


def all_engines() -> list[Engine]:
    """Kvquant first: the others are compared with its first spec."""
    return [
        KvquantEngine(),
        LlamaBenchEngine(),
        WorkerEngine("llama-cpp-python", "llama_cpp", {"llama_cpp": "llama-cpp-python"}),
        WorkerEngine("transformers DynamicCache", "dynamic", _TRANSFORMERS),
        WorkerEngine(
            "transformers QuantizedCache quanto",
            "quanto",
            _TRANSFORMERS | {"optimum.quanto": "optimum-quanto"},
        ),
        WorkerEngine("transformers QuantizedCache hqq", "hqq", _TRANSFORMERS | {"hqq": "hqq"}),
    ]


def parse(engine: Engine, text: str, request: Request) -> list[Row]:
    """ValueError with what is wrong where the output is not what the engine's should be."""
    try:
        rows = engine.rows(json.loads(text), request)
    except json.JSONDecodeError as error:
        raise ValueError(f"its output is not JSON: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"its output lacks or garbles {error}") from error
    if not rows:
        raise ValueError("its output has no results")
    return rows
