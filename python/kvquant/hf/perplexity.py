"""Perplexity of a transformers model under cache specs, window by window as the engine does it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from kvquant._core import CacheSpec
from kvquant.hf.cache import CompressedDynamicCache
from kvquant.hf.shape import BEFORE_ROPE, ModelShape

BASELINE = CacheSpec("fp16")
Window = tuple[list[int], int]  # tokens, and the first one that is scored


def evaluate_windows(
    model: Any,
    windows: Sequence[Window],
    specs: Sequence[CacheSpec],
    mode: str,
    ubatch: int,
    calibration: str | os.PathLike[str] | None = None,
    keys: str = BEFORE_ROPE,
) -> list[dict[str, Any]]:
    """A result for each spec; ubatch tokens go through the layers at once."""
    baseline = _Run(model, BASELINE, mode, ubatch, None, keys)
    runs = [_Run(model, spec, mode, ubatch, calibration, keys) for spec in specs]
    with torch.no_grad():
        for tokens, first in windows:
            exact = baseline.log_probabilities(tokens, first)
            for run in runs:
                run.score(tokens, first, exact)
    return [run.result() for run in runs]


def windows_of(
    text: Sequence[int], prefix: Sequence[int], window: int, stride: int, max_windows: int
) -> Iterator[Window]:
    """Windows of a text, with what stands before each of them; each token is scored once."""
    if not 0 <= stride <= window or window <= len(prefix) + 1:
        raise ValueError(f"a stride of {stride} and windows of {window} tokens don't go together")
    if len(text) < 2:
        raise ValueError(f"the text has {len(text)} tokens; 2 are the least")
    size = window - len(prefix)
    step = min(stride, size) if stride else size
    scored = 0
    for count, begin in enumerate(range(0, len(text), step)):
        end = min(begin + size, len(text))
        if (stride == 0 and begin > 0 and end - begin < size) or 0 < max_windows <= count:
            return
        yield [*prefix, *text[begin:end]], max(1, len(prefix) + scored - begin)
        scored = end
        if end == len(text):
            return


class _Run:
    """What is added up for one spec."""

    def __init__(
        self,
        model: Any,
        spec: CacheSpec,
        mode: str,
        ubatch: int,
        calibration: str | os.PathLike[str] | None,
        keys: str,
    ) -> None:
        self.model, self.spec, self.mode, self.ubatch = model, spec, mode, ubatch
        self.losses: list[torch.Tensor] = []
        self.exact: list[torch.Tensor] = []
        self.divergences: list[torch.Tensor] = []
        self.agreements: list[torch.Tensor] = []
        self.shape = ModelShape.of(model.config, keys)
        self.cache = CompressedDynamicCache.from_spec(
            model,
            spec,
            mode=mode,
            calibration=calibration,
            keys=keys,
            fused=not self.shape.softcap,
        )
        self.full = (0, 0, 0)  # tokens, cache bytes, compressed tokens of the longest window

    def log_probabilities(self, tokens: list[int], first: int) -> torch.Tensor:
        """Of tokens first, first + 1, ... of a window: float32 [tokens, vocab_size]."""
        self.cache.reset()
        ids = torch.tensor([tokens], device=self.model.device)
        chunks: tuple[torch.Tensor, ...] = torch.split(ids, self.ubatch, dim=1)
        logits = torch.cat(
            [self.model(chunk, past_key_values=self.cache).logits[0].float() for chunk in chunks]
        )
        return torch.log_softmax(logits[first - 1 : -1].cpu(), dim=-1)

    def score(self, tokens: list[int], first: int, exact: torch.Tensor) -> None:
        """One window, against the baseline's log-probabilities."""
        ours = self.log_probabilities(tokens, first)
        targets = torch.tensor(tokens[first:])[:, None]
        self.losses.append(-ours.gather(1, targets)[:, 0])
        self.exact.append(-exact.gather(1, targets)[:, 0])
        self.divergences.append((exact.exp() * (exact - ours)).sum(-1))
        self.agreements.append(exact.argmax(-1) == ours.argmax(-1))
        if len(tokens) > self.full[0]:
            compressed = self.cache.num_compressed_tokens()
            self.full = (len(tokens), self.cache.memory_bytes(), compressed)

    def result(self) -> dict[str, Any]:
        """The names of the engine's results."""
        loss, exact = torch.cat(self.losses).double(), torch.cat(self.exact).double()
        divergence = torch.cat(self.divergences).double()
        perplexity, baseline = math.exp(loss.mean()), math.exp(exact.mean())
        shape, (num_tokens, cache_bytes, compressed) = self.shape, self.full
        stored = 2 * num_tokens * shape.num_layers * shape.num_kv_heads * shape.head_dim
        error = float(loss.std() / math.sqrt(len(loss))) if len(loss) > 1 else math.nan
        return {
            "spec": self.spec.text,
            "spec_resolved": self.cache.spec.resolved if self.cache.spec else "",
            "mode": self.mode,
            "perplexity": perplexity,
            "ppl_stderr": perplexity * error,
            "ppl_delta": perplexity - baseline,
            "ppl_delta_rel": perplexity / baseline - 1,
            "nll_delta_mean": float((loss - exact).mean()),
            "nll_delta_sd": float((loss - exact).std()) if len(loss) > 1 else 0.0,
            "kl_mean": float(divergence.mean()),
            "kl_median": float(divergence.median()),
            "kl_p99": float(divergence.quantile(0.99)),
            "kl_max": float(divergence.max()),
            "top1_agreement": float(torch.cat(self.agreements).double().mean()),
            "true_bits": 8 * cache_bytes / stored,
            "cache_bytes": cache_bytes,
            "tokens": len(loss),
            "compressed_tokens": compressed,
        }


def evaluate(
    model: Any,
    text: Sequence[int],
    specs: Sequence[CacheSpec],
    *,
    prefix: Sequence[int],
    window: int,
    stride: int,
    max_windows: int,
    mode: str,
    ubatch: int,
    keys: str = BEFORE_ROPE,
) -> list[dict[str, Any]]:
    """A result for each spec of a text's tokens; prefix: what the tokenizer puts before a text."""
    context = ModelShape.of(model.config, keys).max_positions
    if window > context:
        raise ValueError(f"max_seq_len is {window}, and the model's context {context} tokens")
    if ubatch < 1:
        raise ValueError(f"ubatch is {ubatch}, not positive")
    windows = list(windows_of(text, prefix, window, stride, max_windows))
    return evaluate_windows(model, windows, specs, mode, ubatch, keys=keys)
