"""What the harness's model needs of what runs it: the engine, or transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

Message = dict[str, str]  # role, content
Request = tuple[list[int], list[int]]  # context and continuation, both of a token at least
Score = tuple[float, bool, int]  # log-likelihood, is_greedy, compressed tokens that were read
OnProgress = Callable[[int, int], None]  # done, total


@dataclass(frozen=True)
class CacheOptions:
    """What a cache is made of; ubatch tokens go through the layers at once."""

    spec: str
    calibration: str | None = None
    precision: str = "auto"
    num_threads: int = 0
    ubatch: int = 512
    keys: str = "before-rope"  # or "after-rope", in transformers


@dataclass(frozen=True)
class Sampling:
    """How answers are made and where they end, beside the model's own end of text."""

    max_tokens: int
    until: tuple[str, ...] = ()
    temperature: float = 0.0  # 0: greedy
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    min_p: float = 0.0
    repeat_penalty: float = 1.0


@dataclass(frozen=True)
class Answer:
    """Text up to the place where it was stopped, which may hold the stop string."""

    text: str
    compressed_tokens: int = field(default=0)


class Backend(Protocol):
    """A model with its tokenizer; bos and eos are None where it has none."""

    name: str
    max_length: int  # tokens of the model's context
    bos_token_id: int | None
    eos_token_id: int | None
    chat_template: str | None

    def encode(self, text: str, add_bos: bool | None) -> list[int]:
        """Token ids; special tokens that are written out count as such. None: as configured."""

    def token_text(self, token: int) -> str:
        """Also of special tokens."""

    def render(self, messages: Sequence[Message]) -> str:
        """A prompt that ends where the assistant's answer begins."""

    def score(self, requests: Sequence[Request], mode: str, progress: OnProgress) -> list[Score]:
        """In the order of the requests."""

    def generate(self, prompts: Sequence[list[int]], sampling: Sampling, mode: str) -> list[Answer]:
        """One for each prompt."""

    def info(self) -> dict[str, Any]:
        """What else a result should say of the model."""
