"""What `kvquant bench --baseline` asks for, and what comes of it."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass, field
from itertools import product


@dataclass(frozen=True)
class Shape:
    """n_prompt tokens read, then n_gen decoded, by batch sequences that hold n_depth already."""

    n_prompt: int
    n_gen: int
    n_depth: int
    batch: int

    @property
    def num_tokens(self) -> int:
        return self.batch * (self.n_prompt + self.n_gen)

    @property
    def length(self) -> int:
        return self.n_depth + self.n_prompt + self.n_gen

    def __str__(self) -> str:
        parts = [f"pp{self.n_prompt}"] if self.n_prompt else []
        parts += [f"tg{self.n_gen}"] if self.n_gen else []
        depth = f" @ d{self.n_depth}" if self.n_depth else ""
        return "+".join(parts) + depth + (f" x {self.batch}" if self.batch > 1 else "")


@dataclass(frozen=True)
class Request:
    """A document of the program: numbers are checked there."""

    program: str  # kvquant
    model: str  # a path
    gguf: str  # the same model for llama.cpp; empty: there is none
    threads: int
    repetitions: int  # of a round
    tests: list[tuple[int, int]]  # tokens of a prompt, then generated ones
    depths: list[int]
    batches: list[int]
    kv: list[str]
    precision: str  # "f32" or "bf16"
    ubatch: int
    seed: int
    flags: list[str]  # more for the program: a calibration, for instance
    output: str = "md"
    json: str = ""  # a file, "-" for stdout
    quiet: bool = False

    @property
    def shapes(self) -> list[Shape]:
        return [Shape(*t, d, b) for t, d, b in product(self.tests, self.depths, self.batches)]

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def parse_request(text: str) -> Request:
    document = json.loads(text)
    document["tests"] = [(int(p), int(n)) for p, n in document["tests"]]
    return Request(**document)


@dataclass
class Row:
    """One cache of one engine at one shape."""

    engine: str
    version: str
    cache: str
    weights: str
    shape: Shape
    tokens_per_s: list[float]  # a sample per repetition
    cache_bytes: int | None = None
    peaks: dict[str, float] = field(default_factory=dict)  # of the machine, where it measured them

    def __post_init__(self) -> None:
        if not self.tokens_per_s or not all(rate > 0 for rate in self.tokens_per_s):
            raise ValueError(f"{self.shape}: {self.tokens_per_s} are no rates")

    @property
    def key(self) -> tuple[str, str, Shape]:
        return (self.engine, self.cache, self.shape)

    @property
    def median(self) -> float:
        return statistics.median(self.tokens_per_s)

    @property
    def spread(self) -> float:
        """The sample standard deviation."""
        return statistics.stdev(self.tokens_per_s) if len(self.tokens_per_s) > 1 else 0.0
