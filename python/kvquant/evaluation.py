"""Perplexity of a text under cache specs, computed by the engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, overload

from kvquant._core import CacheSpec, Model, Tokenizer, evaluate_tokens, find_asset

# The text that comes with the package: short, so that a figure is there at once. Figures that are
# to be compared with others need a text that others have, such as WikiText-2's test split.
SAMPLE_TEXT = "sample.txt"
BEFORE_ROPE = "before-rope"  # as of kvquant.hf, which needs torch


class SupportsEncode(Protocol):
    """What a tokenizer has to have: transformers' tokenizers and the engine's own."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...


def tokens_of(tokenizer: SupportsEncode | Tokenizer, text: str) -> list[int]:
    """Token ids of a text, without special ones."""
    if isinstance(tokenizer, Tokenizer):
        return tokenizer.encode(text, add_special_tokens=False, parse_special=False)
    return tokenizer.encode(text, add_special_tokens=False)


@overload
def evaluate_perplexity(
    model: Any,
    tokenizer: SupportsEncode | Tokenizer | None = None,
    text: str | None = None,
    *,
    max_seq_len: int = 2048,
    stride: int = 512,
    kv: str | CacheSpec = "fp16",
    mode: str = "strict",
    max_windows: int = 0,
    ubatch: int = 512,
    keys: str = BEFORE_ROPE,
) -> dict[str, Any]: ...
@overload
def evaluate_perplexity(
    model: Any,
    tokenizer: SupportsEncode | Tokenizer | None = None,
    text: str | None = None,
    *,
    max_seq_len: int = 2048,
    stride: int = 512,
    kv: list[str | CacheSpec] | list[str],
    mode: str = "strict",
    max_windows: int = 0,
    ubatch: int = 512,
    keys: str = BEFORE_ROPE,
) -> list[dict[str, Any]]: ...
def evaluate_perplexity(
    model: Any,
    tokenizer: SupportsEncode | Tokenizer | None = None,
    text: str | None = None,
    *,
    max_seq_len: int = 2048,
    stride: int = 512,
    kv: str | CacheSpec | Sequence[str | CacheSpec] = "fp16",
    mode: str = "strict",
    max_windows: int = 0,
    ubatch: int = 512,
    keys: str = BEFORE_ROPE,
) -> dict[str, Any] | list[dict[str, Any]]:
    """Sliding-window perplexity of a text, and how far a spec is from fp16 in the same pass.

    model: a Model, or a transformers model (kvquant.hf), which needs its tokenizer.
    tokenizer: the model's own by default, or anything whose encode gives the model's ids.
    text: the sample that comes with kvquant by default ("text" in the result says which).
    max_seq_len: tokens of a window, at most the model's context; stride: tokens between windows,
    each scored once (0: windows side by side).
    kv: a spec, or a list of them, which gives a list of results in one pass over the text.
    mode: "strict" (every token is read as it is stored) or "as-served".
    max_windows: 0 for all of the text.
    keys: "after-rope" for transformers models whose RoPE can't be undone (docs/huggingface.md).

    A result has perplexity, ppl_stderr, ppl_delta, ppl_delta_rel, kl_mean, kl_median, kl_p99,
    kl_max (nats against fp16), top1_agreement, true_bits, cache_bytes, tokens, compressed_tokens,
    spec, spec_resolved, mode, text.
    """
    content = Path(find_asset(SAMPLE_TEXT)).read_text(encoding="utf-8") if text is None else text
    several = not isinstance(kv, (str, CacheSpec))
    specs = list(kv) if not isinstance(kv, (str, CacheSpec)) else [kv]
    if tokenizer is None:
        if not isinstance(model, Model):
            raise ValueError("tokenizer is None, but a transformers model has none of its own")
        tokenizer = model.tokenizer
    tokens = tokens_of(tokenizer, content)
    options: dict[str, Any] = {
        "window": max_seq_len,
        "stride": stride,
        "max_windows": max_windows,
        "mode": mode,
        "ubatch": ubatch,
    }
    if isinstance(model, Model):
        if keys != BEFORE_ROPE:
            raise ValueError(f"keys is {keys!r}, but the engine's models store them before RoPE")
        results = evaluate_tokens(model, tokens, specs, **options)
    else:
        from kvquant.hf.perplexity import evaluate

        parsed = [spec if isinstance(spec, CacheSpec) else CacheSpec(spec) for spec in specs]
        prefix = tokenizer.encode("", add_special_tokens=True)  # BOS, where the tokenizer adds one
        results = evaluate(model, tokens, parsed, prefix=prefix, keys=keys, **options)
    for result in results:
        result["text"] = SAMPLE_TEXT if text is None else "given"
    return results if several else results[0]
